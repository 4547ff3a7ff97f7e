"""Classification by nearest neighbours among the features of the training images.

This is the protocol of DINO and DINOv2 (arXiv:2104.14294, appendix F.1; dinov2's
eval/knn.py): features of length 1, cosine similarity s, and votes exp(s / 0.07) of the
k nearest training images for their class. It trains nothing, so it shows what features
are worth before there is a head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.errors import Problems, UserError
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.protocol import Evaluator, Params, Subject, Watch
from vit_jax.sharding import AXES

FEATURES = ("pre_logits", "pooled")
_BLOCK = 16_384  # training images that a device compares with at once
_COUNTS = (10, 20, 100, 200)


class Bank(NamedTuple):
    """Training images to compare with, spread over the devices by rows."""

    features: Any  # of length 1, float32 [n, d]
    labels: Any  # int32 [n]
    counts: Any  # bool [n]; False = padding, or an image that cannot be read


class Neighbors(Evaluator):
    """Top-1 and top-5 accuracy of a vote of the k nearest training images.

    `top1` and `top5` are those for the first number of `k`, `top1_k10` and so on those
    for each of several.
    """

    better: ClassVar = {
        "top1": 1.0,
        "top5": 1.0,
        **{f"{top}_k{k}": 1.0 for top in ("top1", "top5") for k in _COUNTS},
    }

    def __init__(
        self,
        subject: Subject,
        data: Data,
        k: int | Sequence[int] | str = 20,
        temperature: float = 0.07,
        features: str = "pre_logits",
    ):
        """Makes the evaluator.

        Args:
          subject: the model.
          data: neighbours are looked for in its `train_split`.
          k: number of neighbours that vote, or several numbers, also as "10,20".
          temperature: a vote is exp(similarity / temperature).
          features: "pre_logits", the input of the head, or "pooled".

        Raises:
          UserError: an option is wrong, an image may have several labels, there is no
            split for training, or both splits have images in common.
        """
        self._counts = _checked(k, temperature, features)
        _check_splits(data)
        self._train = data.examples(subject, data.train_split)
        self._examples = data.examples(subject)
        for examples in (self._train, self._examples):
            if examples.source.multi_label:
                raise UserError(
                    "neighbours vote for one class, but an image of these data may "
                    "have several labels; use data with one label per image"
                )
        self._subject, self._features = subject, features
        replicated = sharding.replicated(subject.mesh)
        self._read: Any = jax.jit(self._read_features, out_shardings=replicated)
        vote = _make_vote(self._counts, temperature, self._train.source.num_classes)
        nearest = _make_nearest(max(self._counts), subject.mesh)

        def step(params: Params, batch: Mapping[str, Array], bank: Bank) -> Any:
            found = nearest(self._vectors(params, batch), bank)
            return vote(*found, batch)

        self._step: Any = jax.jit(step, out_shardings=replicated)

    def compile(self, params: Params) -> None:
        """Compiles both steps: reading features, and comparing them."""
        batch = self._train.abstract_batch()
        columns = jax.eval_shape(self._read_features, params, batch)["columns"]
        self._read = self._read.lower(params, batch).compile()
        bank = self._empty_bank(columns["features"].shape[1])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows), bank
        )
        batch = self._examples.abstract_batch()
        self._step = self._step.lower(params, batch, abstract).compile()

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Returns the accuracies, `examples`, `bad_images` and `neighbors`."""
        bank = self._make_bank(params, watch)

        def step(params: Params, batch: Mapping[str, Array]) -> Any:
            return self._step(params, batch, bank)

        totals = self._examples.sums(step, params, watch)
        examples = int(totals["examples"])
        found = {
            name: float(total / examples)
            for name, total in totals.items()
            if name.startswith("top")
        }
        first = self._counts[0]
        return {
            "top1": found[f"top1_k{first}"],
            "top5": found[f"top5_k{first}"],
            **(found if len(self._counts) > 1 else {}),
            "examples": examples,
            "bad_images": int(totals["bad_images"]),
            "neighbors": int(bank.counts.sum()),
        }

    @property
    def _rows(self) -> NamedSharding:
        return NamedSharding(self._subject.mesh, PartitionSpec(AXES))

    def _vectors(
        self, params: Params, batch: Mapping[str, Array]
    ) -> Float[Array, "b d"]:
        images = self._subject.preprocessing.normalize(batch["image"])
        wanted = (self._features,)
        placed = self._subject.placed_model
        _, found = placed(params, images, intermediates=wanted)
        vectors = found[self._features].astype(jnp.float32)
        lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / jnp.maximum(lengths, 1e-12)

    def _read_features(self, params: Params, batch: Mapping[str, Array]) -> Any:
        counts = batch["mask"] > 0
        return {
            "examples": jnp.sum(counts, dtype=jnp.int32),
            "bad_images": jnp.sum(batch["bad"], dtype=jnp.int32),
            "columns": {
                "features": self._vectors(params, batch),
                "label": batch["label"],
                "counts": counts,
            },
        }

    def _empty_bank(self, width: int) -> Bank:
        rows = bank_rows(len(self._train), self._subject.mesh.size)
        return Bank(
            np.zeros((rows, width), np.float32),
            np.zeros(rows, np.int32),
            np.zeros(rows, bool),
        )

    def _make_bank(self, params: Params, watch: Watch) -> Bank:
        """Reads the features of all training images."""
        parts: list[Mapping[str, np.ndarray]] = []
        self._train.sums(self._read, params, watch, parts.append)
        bank, start = self._empty_bank(parts[0]["features"].shape[1]), 0
        for part in parts:
            counts = part["counts"]
            rows = slice(start, start := start + int(counts.sum()))
            bank.features[rows] = part["features"][counts]
            bank.labels[rows], bank.counts[rows] = part["label"][counts], True
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                x.shape, self._rows, lambda index, x=x: x[index]
            ),
            bank,
        )


def _check_splits(data: Data) -> None:
    """Raises UserError if an image would be its own neighbour, or there is none."""
    if not data.train_split:
        raise UserError(
            "these data have no split for training, in which neighbours could be "
            "looked for; pass data that have one, or name a split as train_split"
        )
    same = data.train_split == data.split
    if same or data.common(data.split, data.train_split):
        raise UserError(
            f"the nearest neighbours of split {data.split!r} are looked for in "
            f"{data.train_split!r}, where some or all of these images would find "
            "themselves. Evaluate a split that shares no image with it, as with "
            "--split=val; a recipe's row has `split` and `train_split`"
        )


def _checked(k: Any, temperature: float, features: str) -> tuple[int, ...]:
    """Returns the numbers of neighbours; raises UserError if an option is wrong."""
    problems, counts = [], ()
    try:
        # On the command line, several numbers are a text.
        given = k.split(",") if isinstance(k, str) else np.ravel(k).tolist()
        counts = tuple(int(count) for count in given)
    except ValueError:
        pass
    if min(counts, default=0) < 1:
        problems.append(f"k={k!r}: give one or several numbers of at least 1: 10,20")
    if not (temperature > 0 and math.isfinite(temperature)):
        problems.append(f"temperature={temperature}: must be a number above 0")
    if features not in FEATURES:
        problems.append(f"features={features!r}: choose from {', '.join(FEATURES)}")
    if problems:
        raise Problems(*problems)
    return counts


def bank_rows(examples: int, devices: int) -> int:
    """Returns the rows of a bank: equal numbers of whole blocks on every device."""
    each = math.ceil(examples / devices)
    blocks = math.ceil(each / _BLOCK)
    return devices * blocks * math.ceil(each / blocks)


def _make_nearest(k: int, mesh: jax.sharding.Mesh) -> Any:
    """Makes the function (vectors [b, d], bank) → similarities and labels [b, k].

    The nearest come first, of equals the first of the bank. Each device compares with
    its own rows, one block at a time, so the memory is that of the bank and a block.
    """

    def best_of(similarities: Array, labels: Array) -> tuple[Array, Array]:
        values, index = jax.lax.top_k(similarities, k)
        return values, jnp.take_along_axis(labels, index, axis=1)

    def own(vectors: Array, bank: Bank) -> tuple[Array, Array]:
        rows = len(bank.labels)
        blocks = math.ceil(rows / _BLOCK)
        divided = jax.tree.map(lambda x: x.reshape(blocks, -1, *x.shape[1:]), bank)

        def compare(best: tuple[Array, Array], block: Bank) -> tuple[Any, None]:
            found = jnp.matmul(
                vectors, block.features.T, precision=jax.lax.Precision.HIGHEST
            )
            found = jnp.where(block.counts, found, -jnp.inf)
            labels = jnp.broadcast_to(block.labels, found.shape)
            pairs = zip(best, (found, labels), strict=True)
            return best_of(*(jnp.concatenate(pair, axis=1) for pair in pairs)), None

        none = (
            jnp.full((len(vectors), k), -jnp.inf),
            jnp.zeros((len(vectors), k), jnp.int32),
        )
        best, _ = jax.lax.scan(compare, none, divided)
        return best_of(*(jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in best))

    spread = PartitionSpec(AXES)
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(PartitionSpec(), Bank(spread, spread, spread)),
        out_specs=PartitionSpec(),
        # The result is the same on all devices, which JAX cannot know of a top-k.
        check_vma=False,
    )


def _make_vote(counts: Sequence[int], temperature: float, num_classes: int) -> Any:
    """Makes the function (similarities, labels, batch) → sums of right predictions."""

    def vote(
        similarities: Array, labels: Array, batch: Mapping[str, Array]
    ) -> dict[str, Array]:
        valid = batch["mask"] > 0
        sums = {
            "examples": jnp.sum(valid, dtype=jnp.int32),
            "bad_images": jnp.sum(batch["bad"], dtype=jnp.int32),
        }
        weights = jnp.exp((similarities - similarities[:, :1]) / temperature)
        rows = jnp.arange(len(labels))[:, None]
        votes, done = jnp.zeros((len(labels), num_classes)), 0
        for count in sorted(set(counts)):
            part = slice(done, done := count)
            votes = votes.at[rows, labels[:, part]].add(weights[:, part])
            _, best = jax.lax.top_k(votes, min(5, num_classes))
            right = (best == batch["label"][:, None]) & valid[:, None]
            sums[f"top1_k{count}"] = jnp.sum(right[:, 0], dtype=jnp.int32)
            sums[f"top5_k{count}"] = jnp.sum(right.any(axis=1), dtype=jnp.int32)
        return sums

    return vote
