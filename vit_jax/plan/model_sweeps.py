"""Sweeps over patches, image sizes or variants: what a model needs at each of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from vit_jax.errors import Problems, UserError
from vit_jax.models import (
    HYBRIDS,
    MIXERS,
    Architecture,
    ViTOrMixer,
    abstract_params,
    architecture_from_variant,
    parse_variant,
)
from vit_jax.plan import flops, sweep
from vit_jax.plan.forward import measure_forward
from vit_jax.plan.plans import logger, parameters_of
from vit_jax.plan.scaling import predict
from vit_jax.plan.suggest import Prepare
from vit_jax.plan.topologies import Topology
from vit_jax.train.setup import Setup
from vit_jax.words import pair, times

PATCHES = (8, 14, 16, 32)
SIZES = (160, 192, 224, 256, 288, 320, 384, 448, 512)
SIZE_NAMES = ("Ti", "S", "B", "L", "H", "g", "G")
# Of a variant without a recipe: that of ImageNet.
_CLASSES = 1000
_BYTES_OF_SCORE = 4  # float32, in every formulation and dtype


class Base(NamedTuple):
    """The model that is changed.

    Attributes:
      variant: its name; "" if a recipe takes the architecture from weights.
      image_size: (height, width) in pixels.
      patch_size: (height, width) in pixels.
      is_mixer: whether it is an MLP-Mixer.
    """

    variant: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    is_mixer: bool


class Point(NamedTuple):
    """A value of a sweep, and the model there.

    Attributes:
      value: the value as text.
      architecture: the model; of a recipe that draws patch sizes, the one of the most
        tokens.
      setup: the run of the recipe, if there is one.
    """

    value: str
    architecture: ViTOrMixer
    setup: Setup | None = None


class Axis(NamedTuple):
    """A row of `AXES`.

    Attributes:
      key: what takes the values, as `vit_jax.plan.sweep` names it.
      values: returns the values to try with a model, and the reasons for which others
        are left out.
    """

    key: str
    values: Callable[[Base], tuple[list[str], dict[str, str]]]


def _patches(base: Base) -> tuple[list[str], dict[str, str]]:
    size = base.image_size
    reasons = {
        str(patch): f"not a divisor of {times(size)}"
        for patch in PATCHES
        if any(side % patch for side in size)
    }
    return _without(map(str, PATCHES), reasons), reasons


def _sizes(base: Base) -> tuple[list[str], dict[str, str]]:
    patch = base.patch_size
    reasons = {
        str(size): f"not a multiple of {times(patch)}"
        for size in SIZES
        if any(size % side for side in patch)
    }
    return _without(map(str, SIZES), reasons), reasons


def _variants(base: Base) -> tuple[list[str], dict[str, str]]:
    names = MIXERS if base.is_mixer else SIZE_NAMES
    return [f"{name}/{base.patch_size[0]}" for name in names], {}


def _without(values: Any, reasons: dict[str, str]) -> list[str]:
    return [value for value in values if value not in reasons]


# The word of --sweep → what it varies.
AXES = {
    "patch": Axis("patch_size", _patches),
    "size": Axis("image_size", _sizes),
    "variant": Axis("model.variant", _variants),
}


def axis_of(texts: Sequence[str]) -> str:
    """Returns which of `AXES` the values of --sweep name; "" if none.

    Raises:
      UserError: they name one and something else.
    """
    named = [text.strip() for text in texts if text.strip() in AXES]
    if named and len(texts) > 1:
        raise UserError(
            f"--sweep={named[0]} makes a table of its own: pass one of "
            f"{', '.join(AXES)} at a time, without other sweeps"
        )
    return named[0] if named else ""


def base_of_variant(name: str, image_size: tuple[int, int]) -> Base:
    """Returns the model of a variant.

    Raises:
      UserError: there is no such variant.
    """
    try:
        fields = parse_variant(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Base(name, image_size, fields["patch_size"], "tokens_mlp_dim" in fields)


def base_of_recipe(setup: Setup) -> Base:
    """Returns the model of a recipe as it is."""
    a = setup.heaviest
    is_mixer = not isinstance(a, Architecture)
    return Base(setup.config.model.variant, a.image_size, a.patch_size, is_mixer)


def points_of_variant(axis: str, base: Base) -> tuple[list[Point], dict[str, str]]:
    """Returns models of 1,000 classes, and why values are left out.

    Raises:
      UserError: this kind of model cannot be varied so, or no value is left.
    """
    values, left_out = _values(axis, base)
    size = base.image_size
    names = {
        "patch": lambda value: (f"{base.variant.rpartition('/')[0]}/{value}", size),
        "size": lambda value: (base.variant, pair(int(value))),
        "variant": lambda value: (value, size),
    }
    made = [Point(value, _architecture(*names[axis](value))) for value in values]
    return made, left_out


def points_of_recipe(
    axis: str, base: Base, argv: Sequence[str], prepare: Prepare
) -> tuple[list[Point], dict[str, str]]:
    """Returns the runs of a recipe at the values of a sweep, and why others are not.

    Args:
      axis: one of `AXES`.
      base: the recipe's own model.
      argv: the command line of the recipe.
      prepare: sets up such a run; where it raises UserError, the value is left out.

    Raises:
      UserError: this kind of model cannot be varied so, or no value is left.
    """
    values, left_out = _values(axis, base)
    found = []
    for point, config in sweep.configs(argv, {AXES[axis].key: values}):
        value = point[AXES[axis].key]
        try:
            setup = prepare(config)
        except UserError as error:
            left_out[value] = str(error).partition("\n")[0]
            continue
        found.append(Point(value, setup.heaviest, setup))
    if not found:
        raise Problems(*(f"{value}: {why}" for value, why in left_out.items()))
    return found, left_out


def run(
    axis: str,
    points: Sequence[Point],
    topology: Topology | None = None,
    measured: int = 0,
) -> list[dict[str, Any]]:
    """Makes the rows of a sweep, as JSON values.

    Args:
      axis: one of `AXES`.
      points: from `points_of_variant` or `points_of_recipe`.
      topology: the devices for which the recipe's training step is compiled; None = it
        is not.
      measured: number of images of a forward pass to measure on this machine's first
        device; 0 = none.

    Returns:
      For each point the value that is `set`; `tokens`, `params`, `flops_per_image`
      (forward) and `attention_bytes`: the scores of one image in one block, float32.
      Measured: `forward_seconds` and `forward_peak` bytes of a forward pass. From the
      compiler, of a training step on a device: `peak` bytes, whether it `fits`,
      `hyb_seconds` and `cyc_seconds`, and whether these are `extrapolated`. What is not
      known is None.
    """
    return [_row(axis, point, topology, measured) for point in points]


def score_bytes(architecture: ViTOrMixer) -> int:
    """Returns the memory of the attention weights of one image in one block.

    They are float32 [heads, n, m]; kernels that never store them need less. A Mixer has
    none.
    """
    a = architecture
    if not isinstance(a, Architecture):
        return 0
    # A block's own prompts are read, but read nothing.
    queries = a.num_tokens - a.prompts * a.prompts_deep
    return _BYTES_OF_SCORE * a.num_heads * queries * a.num_tokens


def _row(
    axis: str, point: Point, topology: Topology | None, measured: int
) -> dict[str, Any]:
    a, setup = point.architecture, point.setup
    if setup is None:
        params = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(a)))
    else:
        params = parameters_of(setup)
    found: dict[str, Any] = {
        "set": {AXES[axis].key: point.value},
        "tokens": a.num_tokens,
        "params": params,
        "flops_per_image": flops.count(a).total,
        "attention_bytes": score_bytes(a),
    }
    found |= dict.fromkeys(("forward_seconds", "forward_peak"))
    if measured:
        logger.info("measuring: %s=%s", AXES[axis].key, point.value)
        passed = measure_forward(a, measured)
        found |= {"forward_seconds": passed.seconds, "forward_peak": passed.peak_bytes}
    names = ("peak", "fits", "hyb_seconds", "cyc_seconds", "extrapolated")
    found |= dict.fromkeys(names)
    if topology is not None and setup is not None:
        step = predict(setup, topology, f"{AXES[axis].key}={point.value}")
        hyb, cyc = step.seconds or (None, None)
        values = (step.peak_bytes, step.fits, hyb, cyc, step.extrapolated)
        found |= dict(zip(names, values, strict=True))
    return found


def _values(axis: str, base: Base) -> tuple[list[str], dict[str, str]]:
    if axis == "patch" and base.variant in HYBRIDS:
        raise UserError(
            f"{base.variant} has one patch size, which its ResNet fixes: sweep over "
            "size or variant"
        )
    if axis != "size" and not base.variant:
        raise UserError(
            f"--sweep={axis} needs the name of a variant: pass --config.model.variant"
        )
    values, left_out = AXES[axis].values(base)
    if not values:
        raise UserError(
            f"--sweep={axis} has no value for this model: {', '.join(left_out)} are "
            + " or ".join(dict.fromkeys(left_out.values()))
        )
    return values, left_out


def _architecture(name: str, image_size: tuple[int, int]) -> ViTOrMixer:
    try:
        return architecture_from_variant(
            name, image_size=image_size, num_classes=_CLASSES
        )
    except ValueError as error:
        raise UserError(str(error)) from error
