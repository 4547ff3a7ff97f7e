"""Sweeps of a recipe over values of its keys, with a row for every combination."""

import itertools
from collections.abc import Sequence
from typing import Any

from vit_jax.config import Config
from vit_jax.config.recipes import load_recipe
from vit_jax.errors import UserError
from vit_jax.plan import flops
from vit_jax.plan.scaling import predict
from vit_jax.plan.suggest import Prepare
from vit_jax.plan.topologies import Topology

# The last part of `model.variant`; not a key of its own.
PATCH_SIZE = "patch_size"


def parse(texts: Sequence[str]) -> dict[str, list[str]]:
    """Reads "batch_size=64,128;image_size=224,384x256" into key → values as text.

    Raises:
      UserError: a text does not have this form.
    """
    axes: dict[str, list[str]] = {}
    for part in (part.strip() for text in texts for part in text.split(";")):
        key, equals, values = part.partition("=")
        if not part:
            continue
        if not (key and equals and all(values.split(","))) or key in axes:
            raise UserError(
                f"--sweep={part}: expected every key once, with its values, as in "
                "--sweep='batch_size=64,128;image_size=224,384x256;patch_size=14,16'; "
                "or patch, size or variant on its own"
            )
        axes[key] = values.split(",")
    return axes


def configs(
    argv: Sequence[str], axes: dict[str, list[str]]
) -> list[tuple[dict[str, str], Config]]:
    """Returns the recipe of a command line at every combination of values.

    Raises:
      UserError: there is no such key, or a value has the wrong type.
    """
    if not axes:
        return []
    found = []
    variant = load_recipe(argv)[0].model.variant
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        overrides = []
        for key, value in point.items():
            if key == PATCH_SIZE:
                if not variant:
                    raise UserError(
                        "a sweep over patch_size needs the name of a variant: pass "
                        "--config.model.variant"
                    )
                key, value = "model.variant", f"{variant.rpartition('/')[0]}/{value}"
            elif key == "image_size":
                value = value.replace("x", ",")
            overrides.append(f"--config.{key}={value}")
        found.append((point, load_recipe([*argv, *overrides])[0]))
    return found


def run(
    points: Sequence[tuple[dict[str, str], Config]],
    prepare: Prepare,
    topology: Topology,
) -> list[dict[str, Any]]:
    """Plans every combination.

    Returns:
      JSON values, a row for each combination: the values `set`; a `problem`, if the
      combination is impossible; tokens, FLOPs and attention's share of them; `peak` in
      bytes and whether it `fits`; both estimates of a step in seconds, and `hyb` also
      per image of a device; whether peak and estimates are `extrapolated` from models
      with fewer blocks.
    """
    return [_row(point, config, prepare, topology) for point, config in points]


def _row(
    point: dict[str, str], config: Config, prepare: Prepare, topology: Topology
) -> dict[str, Any]:
    try:
        setup = prepare(config)
    except UserError as error:
        return {"set": point, "fits": False, "extrapolated": False} | {
            "problem": str(error)
        }
    what = " ".join(f"{key}={value}" for key, value in point.items())
    found = predict(setup, topology, what)
    hyb, cyc = found.seconds or (None, None)
    images = setup.config.batch_size / setup.mesh.size
    arithmetic = flops.count(setup.heaviest)
    return {
        "set": point,
        "problem": None,
        "tokens": setup.heaviest.num_tokens,
        "train_flops_per_image": flops.of_step(setup),
        "attention_share": arithmetic.attention / arithmetic.total,
        "peak": found.peak_bytes,
        "fits": found.fits,
        "hyb_seconds": hyb,
        "cyc_seconds": cyc,
        "hyb_seconds_per_image": hyb and hyb / images,
        "extrapolated": found.extrapolated,
    }
