"""Shapes and numbers as a walkthrough writes them."""

from vit_jax.words import si, times


def shape_text(shape: tuple[int, ...]) -> str:
    """Writes a shape: `shape_text((197, 768)) == "197×768"`."""
    return times(shape)


def amount(flops: int) -> str:
    """Writes FLOPs: `amount(35_128_000_000) == "35.1 G"`; few are written in full."""
    return si(flops) if flops >= 1e6 else f"{flops:,}"


def with_unit(flops: int) -> str:
    """Writes FLOPs with their unit: `with_unit(35_128_000_000) == "35.1 GFLOPs"`."""
    return f"{amount(flops)}{'' if flops >= 1e6 else ' '}FLOPs"
