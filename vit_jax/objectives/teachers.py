"""Teachers: frozen models, loaded from anywhere, that answer for the data's classes."""

import dataclasses
import hashlib
import json
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vit_jax.data.sources.class_names import match_names
from vit_jax.data.sources.protocol import DatasetInfo, in_order
from vit_jax.errors import UserError, problems_of
from vit_jax.models import MixerArchitecture, ViTOrMixer, build
from vit_jax.models.attention.formulations import candidates
from vit_jax.models.vit import HEADS
from vit_jax.objectives.protocol import Given, Params
from vit_jax.sharding import PlacedModel, misfits
from vit_jax.trees import leaves_by_path
from vit_jax.weights.adapt import adapt
from vit_jax.weights.base import add_to_digest
from vit_jax.weights.contents import Weights
from vit_jax.weights.loading import load_weights
from vit_jax.words import did_you_mean, plain, shortened, times

logger = logging.getLogger(__name__)

# How a teacher's outputs find the data's classes, as in `vit_jax.evaluate`.
BY_NAME, BY_ORDER = "names", "order"
_SEPARATOR = ";"


def sources_of(teachers: Any) -> list[str]:
    """Reads the names of teachers: one text, with ";" between several; or a list."""
    if not isinstance(teachers, list | tuple):
        teachers = str(teachers).split(_SEPARATOR)
    return [name for name in (str(one).strip() for one in teachers) if name]


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A teacher as it was read, with what identifies it wherever it lies."""

    source: str
    weights: Weights
    checksum: str


# Runs are set up more than once before they start; the file is read only once.
_LOADED: weakref.WeakValueDictionary[Any, Loaded] = weakref.WeakValueDictionary()


def load_teacher(source: str) -> Loaded:
    """Reads a teacher's weights; see `load_weights` for what a source may be.

    Raises:
      UserError: it cannot be read.
    """
    key = (source, _stamp(source))
    found = _LOADED.get(key)
    if found is None:
        try:
            weights = load_weights(source)
        except UserError as error:
            raise UserError(
                f"objective_options.teachers: {source} cannot be read: {error}"
            ) from error
        found = _LOADED[key] = Loaded(source, weights, checksum_of(weights))
    return found


def checksum_of(weights: Weights) -> str:
    """Computes the SHA-256 of the function: parameters, architecture, preprocessing.

    It is the same for every format, place and machine that the weights come from.
    """
    about = weights.description
    facts = {
        "architecture": about.architecture.to_dict(),
        "preprocessing": about.preprocessing.to_dict(),
        "outputs": about.outputs,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    add_to_digest(digest, leaves_by_path(weights.params))
    return digest.hexdigest()


class Teacher:
    """A frozen model whose outputs are the data's classes, in their order.

    Attributes:
      loaded: the weights as they were read.
      architecture: theirs at the size and with the outputs that are used.
      column: name of the batch's images that it sees.
    """

    def __init__(
        self, loaded: Loaded, given: Given, size: tuple[int, int] | None, classes: str
    ):
        """Checks a teacher; its arrays are adapted only when `params` is called.

        Args:
          loaded: the weights.
          given: the run.
          size: (height, width) of its images; None = those of its own training.
          classes: `BY_NAME` or `BY_ORDER`.

        Raises:
          UserError: lists everything for which it cannot teach this run.
        """
        about = loaded.weights.description
        self.loaded, self._given = loaded, given
        self.outputs, self.preprocessing = about.outputs, about.preprocessing
        own = about.architecture
        problems = _wrong_channels(own.channels, given.architecture.channels)
        try:
            self._order, self._remark = _order(loaded, given.info, classes)
        except UserError as error:
            problems += problems_of(error)
            self._order, self._remark = None, ""
        try:
            self.architecture = _resized(own, size)
        except ValueError as error:
            problems.append(f"objective_options.teacher_size={size}: {error}")
            self.architecture = own
        problems += [f"{one}; choose another mesh" for one in misfits(given.mesh, own)]
        if problems:
            raise UserError(
                "\n".join(f"the teacher {loaded.source}: {one}" for one in problems)
            )
        if self._order is not None:
            self.architecture = dataclasses.replace(
                self.architecture, num_classes=len(self._order)
            )
        size, student = self.architecture.image_size, given.architecture.image_size
        self.column = "image" if size == student else f"image_{size[0]}x{size[1]}"
        self._model = PlacedModel(
            build(
                self.architecture,
                dtype=given.model.dtype,
                scan=given.model.scan,
                attention=_attention(self.architecture, given),
            ),
            given.mesh,
        )

    def params(self) -> Params:
        """Returns its parameters for the size and outputs that are used; says so."""
        about, params = self.loaded.weights.description, self.loaded.weights.params
        if self._remark:
            logger.warning("the teacher %s: %s", self.loaded.source, self._remark)
        own = about.architecture
        if self._order is not None:
            params = _selected(params, self._order)
            own = dataclasses.replace(own, num_classes=len(self._order))
        if own != self.architecture:
            params = adapt(
                *(params, own, self.architecture),
                posemb_resize=about.config["posemb_resize"],
            )
        a, count = self.architecture, sum(x.size for x in jax.tree.leaves(params))
        logger.info(
            "%-10s %s: width %d, depth %d, %s, %s parameters, images of %s pixels, "
            "SHA-256 %s…",
            *("teacher", self.loaded.source, a.width, a.depth, a.mixing),
            *(f"{count:,}", times(a.image_size), self.loaded.checksum[:12]),
        )
        return params

    def __call__(
        self, params: Params, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b k"]:
        """Computes logits of images in its own value range, without gradients."""
        return jax.lax.stop_gradient(self._model(params, images))


def _order(
    loaded: Loaded, info: DatasetInfo, classes: str
) -> tuple[tuple[int, ...] | None, str]:
    """Finds the teacher's output for each class of the data.

    Returns:
      The outputs in the order of the classes, None if they are all of them in their
      order; and what has to be said about it.

    Raises:
      UserError: the teacher has no outputs, or not those.
    """
    about = loaded.weights.description
    outputs = about.architecture.num_classes
    if not outputs:
        raise UserError(
            "it has no head, so it predicts no classes; fine-tune it on these data "
            "first (--config.pretrained=…)"
        )
    if not info.num_examples:  # the data could not be opened, which is said already
        return None, ""
    known, wanted, opened = about.output_names, info.class_names, True
    if wanted is None:
        wanted, opened = (), False
    if classes == BY_NAME and known and wanted:
        return _by_name(known, wanted)
    if outputs == info.num_classes:
        if classes == BY_ORDER:
            return None, ""
        whose = "its class names" if not known else "the names of the data's classes"
        return None, f"{whose} are unknown, so their order is assumed to be the same"
    if known and not opened and classes == BY_NAME and outputs > info.num_classes:
        # A part of its classes, which the data will name when they are opened.
        return tuple(range(info.num_classes)), ""
    raise UserError(
        f"it has {outputs:,} outputs, but the data have {info.num_classes:,} classes"
        + (
            ", and without class names on both sides a part of them cannot be found"
            if classes == BY_NAME
            else ", and objective_options.classes='order' needs as many"
        )
        + ". Name a teacher that was trained on these classes"
    )


def _by_name(
    known: Sequence[str], wanted: Sequence[str]
) -> tuple[tuple[int, ...] | None, str]:
    """Finds the outputs of the wanted classes among the known names."""
    order = match_names(wanted, known)
    missing = [name for name, at in zip(wanted, order, strict=True) if at < 0]
    if missing:
        others = sorted(set(known) - set(wanted))
        hint = did_you_mean(missing[0], others) if len(missing) < 1000 else ""
        by_order = (
            " If its outputs are these classes by other names and in the same order, "
            "pass objective_options.classes='order'."
            if len(known) == len(wanted)
            else ""
        )
        raise UserError(
            f"it does not know {len(missing):,} of the data's {len(wanted):,} classes: "
            f"{shortened(in_order(missing), plain)}{hint}. Only it knows "
            f"{shortened(in_order(others), plain) or 'none'}. Name a teacher that was "
            f"trained on these classes, or fine-tune it on them.{by_order}"
        )
    if order == list(range(len(known))):
        return None, ""
    return tuple(order), (
        f"its outputs were matched with the classes by name; {len(order)} of "
        f"{len(known)} are used"
    )


def _wrong_channels(theirs: int, ours: int) -> list[str]:
    """Lists why a model cannot see the run's images: only grey becomes colour."""
    if theirs == ours or (theirs, ours) == (3, 1):
        return []
    return [
        f"it takes images of {theirs} channel{'s'[: theirs != 1]}, but "
        f"model.channels={ours}; set model.channels={theirs}, or name a teacher for "
        f"{ours}"
    ]


def _resized(architecture: ViTOrMixer, size: tuple[int, int] | None) -> ViTOrMixer:
    """Returns the architecture for images of another size.

    Raises:
      ValueError: it cannot take them.
    """
    if size is None or size == architecture.image_size:
        return architecture
    if isinstance(architecture, MixerArchitecture):
        raise ValueError(
            "an MLP-Mixer mixes a fixed number of patches, so it takes only images of "
            f"{times(architecture.image_size)} pixels; set teacher_size=0"
        )
    return dataclasses.replace(architecture, image_size=size)


def _selected(params: Params, order: Sequence[int]) -> Params:
    """Returns the parameters with only these outputs of the heads, in this order."""
    heads = {
        name: {leaf: np.asarray(x)[..., [*order]] for leaf, x in params[name].items()}
        for name in HEADS
        if name in params
    }
    return dict(params) | heads


def _attention(architecture: Any, given: Given) -> str:
    """Chooses the student's formulation of attention if it suits the teacher too."""
    chosen = getattr(given.model, "attention", "xla")
    if isinstance(architecture, MixerArchitecture) or chosen == "xla":
        return "xla"
    device = given.mesh.devices.flat[0]
    fitting = candidates(
        device.platform,
        device.device_kind,
        tokens=architecture.num_tokens,
        heads=max(architecture.num_heads // given.mesh.shape.get("tensor", 1), 1),
        channels=architecture.width // architecture.num_heads,
        dtype=given.model.dtype,
    )
    return chosen if chosen in fitting else "xla"


def _stamp(source: str) -> Any:
    """Returns what changes when a file or work directory gets other weights."""
    path = os.path.expanduser(source.partition("#")[0])
    checkpoints = os.path.join(path, "checkpoints")
    if os.path.isdir(checkpoints):
        return tuple(sorted(os.listdir(checkpoints)))
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
