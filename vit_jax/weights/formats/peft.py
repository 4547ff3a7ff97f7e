"""Adapters that PEFT saved, read as those of this package.

A file has `lora_A` [r, in] and `lora_B` [out, r] for each module with an adapter, and
whole tensors of modules that were trained beside them, such as the classifier. PEFT
adds scale · B(A(x)) to what the module computes (arXiv:2106.09685).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.files.directories import ADAPTER_CONFIG
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.known import shapes_of
from vit_jax.weights.formats.layout import (
    WEIGHTS,
    Row,
    difference,
    empty,
    flatten,
    read_finite,
    unflatten,
)
from vit_jax.weights.formats.peft_config import PeftConfig
from vit_jax.weights.formats.peft_modules import (
    Found,
    find_naming,
    found_in,
    inner_name,
    with_head,
)
from vit_jax.weights.formats.peft_names import (
    Naming,
    namings,
    shared_names,
    targets_of,
)
from vit_jax.weights.formats.peft_scales import (
    Common,
    Piece,
    common_of,
    padded,
    separated,
)
from vit_jax.weights.formats.timm import MLPS
from vit_jax.words import plain, shortened


class AdapterReading(NamedTuple):
    """A model with an adapter.

    Attributes:
      architecture: the base's, with the adapter's head and its low-rank layers.
      params: nested dict of float32 arrays, those of the base included.
      assumed: a sentence for each fact that the caller should know.
      new_head: whether the head is the adapter's.
    """

    architecture: Architecture
    params: dict[str, Any]
    assumed: tuple[str, ...]
    new_head: bool


def read_adapter(
    tensors: Tensors,
    config: PeftConfig,
    architecture: Architecture,
    params: Mapping[str, Any],
) -> AdapterReading:
    """Applies an adapter to the model that it was trained on.

    Adapters of layers that have none in this package, and those with magnitudes (DoRA),
    are merged into the weights.

    Args:
      tensors: the opened file of the adapter.
      config: the file's settings.
      architecture: that of the base.
      params: its parameters, a nested dict.

    Raises:
      UserError: the adapter is for another model, does not match its settings, or has
        parts that this package lacks. Lists all problems.
    """
    found = found_in(tensors.specs)
    if not found.adapters:
        raise UserError(
            f"{tensors.path} holds no adapter: none of its {len(tensors.specs)} "
            "tensors is called lora_A or lora_B. Fetch the adapter again"
        )
    _check_base(architecture, tensors)
    naming, prefix = find_naming(found, architecture, tensors)
    target = with_head(naming, architecture, tensors, found, prefix)
    naming = next(n for n in namings(target) if n[:3] == naming[:3])
    reader = _Reader(tensors, config, naming, prefix, found, target)
    if problems := [*reader.problems()]:
        raise UserError(
            f"{tensors.path} does not fit this model ({architecture.depth} blocks of "
            f"width {architecture.width}, MLPs of {architecture.mlp_dim}):\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + "Pass the model that it was trained on as base= (in commands --base=), "
            "or fetch the adapter again"
        )
    flat = flatten(params)
    said = [*_left_out(architecture, target, flat)]
    flat = {path: flat[path] for path in shapes_of(target) if path in flat}
    whole = reader.whole()
    flat |= whole
    flat, common, sentences = reader.apply(flat)
    if common is not None:
        target = dataclasses.replace(target, **common.fields)
    return AdapterReading(
        target, unflatten(flat), (*said, *sentences), new_head="head/kernel" in whole
    )


def _check_base(a: Any, tensors: Tensors) -> None:
    if not isinstance(a, Architecture) or a.mlp_type not in MLPS:
        kind = f"MLPs of the kind {a.mlp_type!r}" if hasattr(a, "mlp_type") else "Mixer"
        raise UserError(
            f"{tensors.path} is an adapter for Vision Transformers, and PEFT's names "
            f"for this base ({kind}) are not known: pass another base="
        )


def _left_out(
    base: Architecture, target: Architecture, params: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a sentence if parts of the base are not in the adapter's model."""
    kept = shapes_of(target)
    lost = {path.partition("/")[0] for path in params if path not in kept}
    if lost - {"head"}:
        yield (
            f"left out {shortened(sorted(lost - {'head'}), plain)} of the base, which "
            "the classifier of the adapter does not read"
        )
    if base.pooling != target.pooling:
        yield (
            f"the classifier of the adapter reads the features {target.pooling!r}, "
            f"where the base has {base.pooling!r}"
        )


class _Reader:
    """The tensors of an adapter beside the rows of its naming."""

    def __init__(
        self,
        tensors: Tensors,
        config: PeftConfig,
        naming: Naming,
        prefix: str,
        found: Found,
        architecture: Architecture,
    ):
        self._tensors, self._config = tensors, config
        self._expected, self._depth = shapes_of(architecture), architecture.depth
        self._modules, self._leaves = naming.modules, naming.leaves
        self._prefix = prefix
        self._found = found
        self._inner = {
            name: inner_name(name, known, prefix) or ""
            for known, names in (
                (self._modules, found.adapters),
                (self._leaves, found.whole),
            )
            for name in names
        }

    def problems(self) -> Iterator[str]:
        """Yields a sentence about each tensor that is missing or does not fit."""
        for name, place in self._found.whole.items():
            row = self._leaves[self._inner[name]]
            if set(row.ours) - self._expected.keys():
                yield f"{plain(name)}: this model has no such parameter"
            elif wrong := difference(row, self._shape(place), self._expected):
                yield wrong.replace(row.theirs, name, 1)
        for name, places in self._found.adapters.items():
            yield from self._wrong_adapter(name, places)
        places = [*self._found.whole.values()]
        places += [p for parts in self._found.adapters.values() for p in parts.values()]
        specs = self._tensors.specs
        if wrong := [p for p in places if specs[p].dtype not in WEIGHTS]:
            listed = [f"{plain(place)} ({specs[place].dtype})" for place in wrong]
            yield f"of a type that weights are not saved in: {shortened(listed)}"
        odd = [m for m in self._found.adapters if not self._config.has_adapter(m)]
        if odd:
            yield (
                f"{ADAPTER_CONFIG} gives these modules no adapter, but the file has "
                f"one: {shortened(shared_names(odd), plain)}"
            )
        if missing := self._missing():
            yield (
                f"{ADAPTER_CONFIG} gives these modules an adapter, but the file has "
                f"none: {shortened(missing, plain)}"
            )

    def _missing(self) -> list[str]:
        """Lists modules that should have an adapter in the file and do not."""
        if self._config.targets is None:
            return []
        names = (self._prefix + inner for inner in self._modules)
        there = {self._prefix + self._inner[name] for name in self._found.adapters}
        return [n for n in names if n not in there and self._config.has_adapter(n)]

    def _wrong_adapter(self, name: str, places: Mapping[str, str]) -> Iterator[str]:
        needed = {"A", "B"} | ({"magnitude_vector"} & ({*places} | self._magnitude))
        if missing := sorted(needed - places.keys()):
            parts = ", ".join(f"lora_{part}" for part in missing)
            yield f"{plain(name)}: {parts} is missing"
            return
        row = self._modules[self._inner[name]]
        if set(row.ours) - self._expected.keys():
            yield f"{plain(name)}: this model has no such layer"
            return
        outputs, *inputs = row.layout.write(
            *(empty(self._expected[path]) for path in row.ours)
        ).shape
        rank = self._config.rank_of(name)
        wanted = {
            "A": (rank, *inputs),
            "B": (outputs, rank, *(1 for _ in inputs[1:])),
            "B.bias": (outputs,),
            "magnitude_vector": (outputs,),
        }
        for part, place in places.items():
            shape = self._shape(place)
            # PEFT keeps the magnitudes of a convolution as [1, out, 1, 1].
            if part == "magnitude_vector":
                shape = tuple(n for n in shape if n != 1) or (1,)
            if shape != wanted[part]:
                yield (
                    f"{plain(name)}.lora_{part}: expected {wanted[part]} for rank "
                    f"{rank}, found {self._shape(place)}"
                )
        if "B.bias" in places and not self._bias(name):
            yield f"{plain(name)}: lora_B has a bias, but this layer has none"

    @property
    def _magnitude(self) -> set[str]:
        return {"magnitude_vector"} if self._config.magnitudes else set()

    def _bias(self, name: str) -> Row | None:
        row = self._leaves.get(f"{self._inner[name]}.bias")
        there = row is not None and set(row.ours) <= self._expected.keys()
        return row if there else None

    def _shape(self, place: str) -> tuple[int, ...]:
        return self._tensors.specs[place].shape

    def whole(self) -> dict[str, np.ndarray]:
        """Reads the tensors that are saved whole: "/"-joined path → array.

        A head without a bias gets one of zeros.
        """
        read: dict[str, np.ndarray] = {}
        for name, place in self._found.whole.items():
            row = self._leaves[self._inner[name]]
            arrays = row.layout.read(read_finite(self._tensors, place))
            read |= zip(row.ours, arrays, strict=True)
        for path in [path for path in read if path.endswith("head/kernel")]:
            bias = path.replace("kernel", "bias")
            read.setdefault(bias, np.zeros(self._expected[bias], np.float32))
        return read

    def apply(
        self, flat: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], Common | None, list[str]]:
        """Adds the adapters to the parameters.

        Returns:
          The parameters; what all adapters share, None if all were merged; sentences.
        """
        flat, pieces, shared, merged = dict(flat), [], [], []
        read: dict[str, tuple[Row, dict[str, np.ndarray], float]] = {}
        for name, places in self._found.adapters.items():
            row = self._modules[self._inner[name]]
            parts = {
                part: read_finite(self._tensors, place)
                for part, place in places.items()
            }
            rank = self._config.rank_of(name)
            scale = self._config.scale_of(name, rank)
            read[name] = row, parts, scale
            if "B.bias" in parts and (bias := self._bias(name)):
                added = bias.layout.read(scale * parts["B.bias"])
                for path, array in zip(bias.ours, added, strict=True):
                    flat[path] = flat[path] + array
            targets = targets_of(row)
            if not targets or "magnitude_vector" in parts:
                merged.append(name)
                continue
            bs = np.split(parts["B"], len(targets))
            found = [
                Piece(path, targets[path], parts["A"].T, b.T, scale)
                for path, b in zip(row.ours, bs, strict=True)
            ]
            (shared if len(found) > 1 else pieces).extend(found)
        separate, sentences = separated(shared)
        pieces += separate
        why = "this package has no such adapters"
        if self._too_high(pieces):
            pieces, merged, sentences = [], [*read], []
            why = "their rank exceeds a matrix"
        common, said = common_of(pieces, self._config, self._depth)
        for name in merged:
            flat |= _merged(read[name][0], flat, *read[name][1:])
        if common is not None:
            flat |= padded(pieces, common, self._expected)
        if merged:
            said.append(
                f"merged into the weights, because {why}: the adapters of "
                f"{shortened(shared_names(merged), plain)}"
            )
        return flat, common, [*sentences, *said]

    def _too_high(self, pieces: Sequence[Piece]) -> bool:
        """Returns whether a rank exceeds a matrix, which no model here has."""
        sides = [min(self._expected[piece.kernel]) for piece in pieces]
        ranks = [piece.a.shape[1] for piece in pieces]
        return max(ranks, default=0) > min(sides, default=0)


def _merged(
    row: Row,
    flat: Mapping[str, np.ndarray],
    parts: Mapping[str, np.ndarray],
    scale: float,
) -> dict[str, np.ndarray]:
    """Adds an adapter to a matrix or a kernel of patches, computed in float64.

    With magnitudes m, each output's weights get that norm (arXiv:2402.09353, eq. 5).
    """
    a, b = (parts[name].astype(np.float64) for name in "AB")
    weight = row.layout.write(*(flat[path] for path in row.ours))
    product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    weight = weight + scale * product.reshape(weight.shape)
    if "magnitude_vector" in parts:
        each = weight.reshape(len(weight), -1)
        each = each * (
            parts["magnitude_vector"].reshape(-1, 1)
            / np.linalg.norm(each, axis=1, keepdims=True)
        )
        weight = each.reshape(weight.shape)
    weight = weight.astype(np.float32)
    return dict(zip(row.ours, row.layout.read(weight), strict=True))
