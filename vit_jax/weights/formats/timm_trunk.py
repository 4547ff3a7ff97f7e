"""Rows of the ResNet trunk of timm's hybrid models."""

from vit_jax.models import Architecture
from vit_jax.weights.formats.layout import OIHW, Row, Shapes
from vit_jax.weights.formats.shapes import numbers
from vit_jax.weights.formats.torch_layers import norm

BACKBONE = "patch_embed.backbone"


def root_of(trunk: tuple[int, ...]) -> str:
    """Returns the name of the module with the trunk's first convolution."""
    return f"{BACKBONE}.stem" if trunk else BACKBONE


def trunk_rows(a: Architecture) -> list[Row]:
    """Lists the rows of a model's trunk; [] without one."""
    if a.trunk is None:
        return []
    root = root_of(a.trunk)
    # (their convolution, their norm, our convolution, our norm)
    layers = [(f"{root}.conv", f"{root}.norm", "conv_root", "gn_root")]
    for stage, units in enumerate(a.trunk):
        for unit in range(units):
            theirs = f"{BACKBONE}.stages.{stage}.blocks.{unit}"
            ours = f"block{stage + 1}/unit{unit + 1}"
            parts = [(f"conv{i}", f"norm{i}", f"conv{i}", f"gn{i}") for i in (1, 2, 3)]
            if unit == 0:
                parts.append(
                    ("downsample.conv", "downsample.norm", "conv_proj", "gn_proj")
                )
            layers += [
                (
                    f"{theirs}.{p[0]}",
                    f"{theirs}.{p[1]}",
                    f"{ours}/{p[2]}",
                    f"{ours}/{p[3]}",
                )
                for p in parts
            ]
    rows = []
    for their_conv, their_norm, our_conv, our_norm in layers:
        rows.append(Row(f"{their_conv}.weight", (f"trunk/{our_conv}/kernel",), OIHW))
        rows += norm(their_norm, f"trunk/{our_norm}")
    return rows


def trunk_of(shapes: Shapes) -> tuple[int, ...] | None:
    """Counts the residual units of each stage; None without a trunk."""
    if not any(name.startswith(f"{BACKBONE}.") for name in shapes):
        return None
    stages = f"{BACKBONE}.stages."
    return tuple(
        len(numbers(shapes, f"{stages}{stage}.blocks.", "."))
        for stage in numbers(shapes, stages, ".")
    )
