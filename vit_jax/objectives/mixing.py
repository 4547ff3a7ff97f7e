"""Mixup, CutMix and random erasing of normalised images, on the device.

All are pure functions of the arrays and a random key. They see the whole batch of a
step, before it is split into microbatches, so no value depends on the number of
devices, processes or microbatches.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.config import Config

# The values of timm's random erasing: the share of the image that is erased, the ratio
# of height to width, and how often a rectangle is drawn before giving up.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_TRIES = 10


class Examples(NamedTuple):
    """A batch of images, targets and weights, before it enters the model."""

    images: Float[Array, "b h w c"]
    targets: Float[Array, "b k"]
    weights: Float[Array, " b"]  # 0 = the example does not count


class Kept(NamedTuple):
    """The shares of itself, 0 … 1, that an example keeps; the rest is its partner's."""

    pixels: Float[Array, "h w"]
    label: Float[Array, ""]


class Span(NamedTuple):
    """The pixels of a rectangle: (row, column) of the first and after the last."""

    start: Int[Array, "2"]
    stop: Int[Array, "2"]


class Form(NamedTuple):
    """One published way of mixing a batch."""

    draw: Callable[[Array, tuple[int, int], Config], Kept]
    partner: Callable[[Array], Array]  # rows [b, …] → the row that each is mixed with


def make_mixing(mixing: Config) -> Callable[[Array, Examples], Examples] | None:
    """Makes the function (key, whole batch) → batch that `config.mixing` asks for.

    Images are erased first and then mixed, as in DeiT's training. Returns None if
    everything is off.
    """
    mixes = max(mixing.mixup_alpha, mixing.cutmix_alpha) > 0 and mixing.prob > 0
    if not mixes and not mixing.erasing_prob:
        return None

    def apply(key: Array, examples: Examples) -> Examples:
        erasing_key, mixing_key = jax.random.split(key)
        if mixing.erasing_prob:
            images = random_erasing(
                erasing_key,
                examples.images,
                prob=mixing.erasing_prob,
                mode=mixing.erasing_mode,
                count=mixing.erasing_count,
            )
            examples = examples._replace(images=images)
        if mixes:
            form = FORMS[mixing.form]
            _, height, width, _ = examples.images.shape
            kept = form.draw(mixing_key, (height, width), mixing)
            examples = mix(examples, kept, form.partner)
        return examples

    return apply


def mix(examples: Examples, kept: Kept, partner: Callable[[Array], Array]) -> Examples:
    """Mixes every example with its partner.

    With weights m, an example's loss is meant to be kept·m·(loss of its own label) +
    (1 − kept)·m_partner·(loss of its partner's). So its new weight is the sum of the
    two factors, and its targets are mixed in their proportion. Equal weights stay as
    they are, and so does the plain mixture of the targets.

    An example of weight 0, such as an image that could not be read, takes no part: it
    stays as it is, and so does the example that it would be the partner of.
    """
    images, targets, weights = examples
    others = partner(weights)
    apart = (weights == 0) | (others == 0)
    label = jnp.where(apart, 1.0, kept.label)
    pixels = jnp.where(apart[:, None, None], 1.0, kept.pixels[None])[..., None]
    mixed = label * weights + (1 - label) * others
    other = (1 - label) * others / jnp.where(mixed > 0, mixed, 1.0)
    other = other[:, None]
    return Examples(
        pixels * images + (1 - pixels) * partner(images),
        (1 - other) * targets + other * partner(targets),
        mixed,
    )


def draw_big_vision(key: Array, size: tuple[int, int], mixing: Config) -> Kept:
    """Draws big_vision's mixup: one a ~ Beta(α, α) per step; keeps max(a, 1 − a).

    Only the partner differs: in big_vision it is the previous example within each
    device's part of the batch, here the previous example of the whole batch, so that
    the numbers do not depend on the number of devices.
    """
    lam = jax.random.beta(key, mixing.mixup_alpha, mixing.mixup_alpha)
    return _keep_evenly(jnp.maximum(lam, 1 - lam), size)


def draw_timm(key: Array, size: tuple[int, int], mixing: Config) -> Kept:
    """Draws mixup or CutMix once for the batch, like timm's `Mixup` in mode "batch".

    One of the two is applied with probability `prob`; if both are on, it is CutMix with
    probability `switch_prob`. The partners are the batch in reverse: here the batch of
    all devices together, in timm the batch of each device.
    """
    kind_key, lam_key, center_key, on_key = jax.random.split(key, 4)
    both = mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0
    share = mixing.switch_prob if both else float(mixing.cutmix_alpha > 0)
    cuts = jax.random.uniform(kind_key) < share
    alpha = jnp.where(cuts, mixing.cutmix_alpha, mixing.mixup_alpha)
    lam = jax.random.beta(lam_key, alpha, alpha)
    lam = jnp.where(jax.random.uniform(on_key) < mixing.prob, lam, 1.0)
    center = jax.random.randint(center_key, (2,), 0, jnp.array(size))
    return jax.tree.map(
        functools.partial(jnp.where, cuts),
        keep_outside(cutmix_box(lam, center, size), size),
        _keep_evenly(lam, size),
    )


def cutmix_box(
    lam: Float[Array, ""], center: Int[Array, "2"], size: tuple[int, int]
) -> Span:
    """Returns a box of √(1 − lam) times the image's sides, clipped at its borders.

    This is timm 1.0.31's rule; the versions of DeiT's time left out the last pixel of
    odd sides.
    """
    sides = jnp.array(size)
    cut = (sides * jnp.sqrt(1 - lam)).astype(jnp.int32)
    start, stop = center - cut // 2, center + (cut + 1) // 2
    return Span(jnp.clip(start, 0, sides), jnp.clip(stop, 0, sides))


def keep_outside(box: Span, size: tuple[int, int]) -> Kept:
    """Keeps all pixels but the box; the label's share follows from the box's true area.

    This is CutMix: the partner provides the box and that share of the label.
    """
    area = jnp.prod(box.stop - box.start)
    inside = _inside(box, size)
    return Kept(1.0 - inside.astype(jnp.float32), 1 - area / (size[0] * size[1]))


def random_erasing(
    key: Array,
    images: Float[Array, "b h w c"],
    *,
    prob: float,
    mode: str = "pixel",
    count: int = 1,
) -> Float[Array, "b h w c"]:
    """Fills rectangles in some of the images, like timm's `RandomErasing`.

    Args:
      key: random key.
      images: normalised, so that noise of mean 0 and deviation 1 resembles an image.
      prob: probability that an image is erased at all.
      mode: "pixel": normal noise; "rand": one normal colour; "const": 0.
      count: maximum number of rectangles per image. Each image gets 1 … count of them;
        with k rectangles, each is k times smaller.
    """
    erase = functools.partial(_erase, prob=prob, mode=mode, count=count)
    return jax.vmap(erase)(jax.random.split(key, images.shape[0]), images)


def erasing_box(
    areas: Float[Array, " n"],
    aspects: Float[Array, " n"],
    corner: Float[Array, "2"],
    size: tuple[int, int],
) -> Span:
    """Returns the first of n rectangles smaller than the image; empty if none is.

    Args:
      areas: areas as shares of the image.
      aspects: ratios of height to width.
      corner: position between the image's borders, from 0 to 1 (excluded).
      size: height and width of the image.
    """
    sides = jnp.array(size)
    shapes = jnp.stack([areas * aspects, areas / aspects], axis=-1)
    shapes = jnp.round(jnp.sqrt(shapes * (size[0] * size[1]))).astype(jnp.int32)
    fits = jnp.all(shapes < sides[None], axis=-1)
    shape = jnp.where(jnp.any(fits), shapes[jnp.argmax(fits)], 0)
    start = jnp.floor(corner * (sides - shape + 1)).astype(jnp.int32)
    return Span(start, start + shape)


FORMS = {
    "big_vision": Form(draw_big_vision, lambda rows: jnp.roll(rows, 1, axis=0)),
    "timm": Form(draw_timm, lambda rows: jnp.flip(rows, axis=0)),
}

# Mode → the fill of a rectangle in an image [h, w, c]; it has the image's rank.
FILLS = {
    "pixel": lambda key, h, w, c: jax.random.normal(key, (h, w, c)),
    "rand": lambda key, h, w, c: jax.random.normal(key, (1, 1, c)),
    "const": lambda key, h, w, c: jnp.zeros((1, 1, 1)),
}


def _keep_evenly(lam: Float[Array, ""], size: tuple[int, int]) -> Kept:
    """Keeps the same share of every pixel and of the label, as mixup does."""
    return Kept(jnp.full(size, lam), lam)


def _erase(
    key: Array, image: Float[Array, "h w c"], *, prob: float, mode: str, count: int
) -> Float[Array, "h w c"]:
    """Applies `random_erasing` to one image."""
    height, width, channels = image.shape
    on_key, number_key, *keys = jax.random.split(key, 2 + count)
    number = jax.random.randint(number_key, (), 1, count + 1)
    number = jnp.where(jax.random.uniform(on_key) < prob, number, 0)
    for index, rectangle_key in enumerate(keys):
        area_key, aspect_key, corner_key, fill_key = jax.random.split(rectangle_key, 4)
        areas = _uniform(area_key, *ERASED_AREA) / jnp.maximum(number, 1)
        aspects = jnp.exp(_uniform(aspect_key, *map(math.log, ERASED_ASPECT)))
        corner = jax.random.uniform(corner_key, (2,))
        box = erasing_box(areas, aspects, corner, (height, width))
        erased = _inside(box, (height, width)) & (index < number)
        fill = FILLS[mode](fill_key, height, width, channels)
        image = jnp.where(erased[..., None], fill, image)
    return image


def _uniform(key: Array, low: float, high: float) -> Float[Array, " n"]:
    """Draws one number per attempt at a rectangle."""
    return jax.random.uniform(key, (ERASING_TRIES,), minval=low, maxval=high)


def _inside(box: Span, size: tuple[int, int]) -> Bool[Array, "h w"]:
    """Marks the pixels that lie in a rectangle."""
    rows, columns = (
        (start <= jnp.arange(side)) & (jnp.arange(side) < stop)
        for start, stop, side in zip(box.start, box.stop, size, strict=True)
    )
    return rows[:, None] & columns[None, :]
