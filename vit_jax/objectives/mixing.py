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
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

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


class Mixing:
    """A function (key, whole batch) → batch that erases images and then mixes them."""

    def __init__(self, config: Config):
        """Takes the keys of `config.mixing`."""
        self._config = config
        alpha = max(config.mixup_alpha, config.cutmix_alpha)
        self._mixes = alpha > 0 and config.prob > 0

    def __bool__(self) -> bool:
        return self._mixes or self._config.erasing_prob > 0

    def __call__(self, key: Array, examples: Examples) -> Examples:
        return self.all_sizes(key, examples, ())[0]

    def all_sizes(
        self, key: Array, examples: Examples, others: tuple[Array, ...]
    ) -> tuple[Examples, tuple[Array, ...]]:
        """Changes the same images at other sizes too, at the same places.

        Args:
          key: random key.
          examples: the batch, for which everything is drawn.
          others: its images at other sizes, [b, h', w', c] each.

        Returns:
          The batch, as without `others`; and those.
        """
        config = self._config
        erasing_key, mixing_key = jax.random.split(key)
        if config.erasing_prob:
            images, *erased = erase_all(
                erasing_key,
                (examples.images, *others),
                prob=config.erasing_prob,
                mode=config.erasing_mode,
                count=config.erasing_count,
            )
            examples, others = examples._replace(images=images), tuple(erased)
        if self._mixes:
            form = FORMS[config.form]
            _, height, width, _ = examples.images.shape
            kept = form.draw(mixing_key, (height, width), config)
            weights = examples.weights
            examples = mix(examples, kept, form.partner)
            others = tuple(mix_images(x, weights, kept, form.partner) for x in others)
        return examples, others


def make_mixing(mixing: Config) -> Mixing | None:
    """Makes the function that `config.mixing` asks for.

    Images are erased first and then mixed, as in DeiT's training. Returns None if
    everything is off.
    """
    return Mixing(mixing) or None


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
    label = jnp.where(_apart(weights, partner), 1.0, kept.label)
    mixed = label * weights + (1 - label) * others
    other = (1 - label) * others / jnp.where(mixed > 0, mixed, 1.0)
    other = other[:, None]
    return Examples(
        mix_images(images, weights, kept, partner),
        (1 - other) * targets + other * partner(targets),
        mixed,
    )


def mix_images(
    images: Float[Array, "b h w c"],
    weights: Float[Array, " b"],
    kept: Kept,
    partner: Callable[[Array], Array],
) -> Float[Array, "b h w c"]:
    """Mixes images as `mix` does, whatever their size.

    Args:
      images: the images.
      weights: the examples' weights before they are mixed.
      kept: what each keeps, drawn for images of any size.
      partner: see `Form`.
    """
    pixels = at_size(kept.pixels, images.shape[1:3])
    apart = _apart(weights, partner)[:, None, None]
    pixels = jnp.where(apart, 1.0, pixels[None])[..., None]
    return pixels * images + (1 - pixels) * partner(images)


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
    return erase_all(key, (images,), prob=prob, mode=mode, count=count)[0]


def erase_all(
    key: Array,
    views: tuple[Float[Array, "..."], ...],
    *,
    prob: float,
    mode: str,
    count: int,
) -> tuple[Float[Array, "..."], ...]:
    """Erases the same rectangles, with the same fill, in several sizes of the images.

    Args:
      key: random key.
      views: arrays [b, h, w, c]. The rectangles are drawn for the first, as
        `random_erasing` would.
      prob: see `random_erasing`, as for the rest.
      mode: kind of fill.
      count: maximum number of rectangles.
    """
    erase = functools.partial(_erase, prob=prob, mode=mode, count=count)
    return jax.vmap(erase)(jax.random.split(key, views[0].shape[0]), views)


def at_size(
    values: Shaped[Array, "h w ..."], size: tuple[int, ...]
) -> Shaped[Array, "h2 w2 ..."]:
    """Resizes an array's first two dimensions by repeating or leaving out values.

    Each result is the value at its centre (nearest neighbour, half-pixel centres).
    """
    for axis, (before, after) in enumerate(zip(values.shape[:2], size, strict=True)):
        if before != after:
            places = (2 * np.arange(after) + 1) * before // (2 * after)
            values = jnp.take(values, places, axis=axis)
    return values


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


def _apart(
    weights: Float[Array, " b"], partner: Callable[[Array], Array]
) -> Bool[Array, " b"]:
    """Marks the examples that are not mixed: they or their partners do not count."""
    return (weights == 0) | (partner(weights) == 0)


def _keep_evenly(lam: Float[Array, ""], size: tuple[int, int]) -> Kept:
    """Keeps the same share of every pixel and of the label, as mixup does."""
    return Kept(jnp.full(size, lam), lam)


def _erase(
    key: Array, views: tuple[Array, ...], *, prob: float, mode: str, count: int
) -> tuple[Array, ...]:
    """Applies `erase_all` to the views [h, w, c] of one image."""
    height, width, channels = views[0].shape
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
        views = tuple(_filled(view, erased, fill) for view in views)
    return views


def _filled(image: Array, erased: Bool[Array, "h w"], fill: Array) -> Array:
    """Fills a view [h, w, c] where another size of the image is erased."""
    size = image.shape[:2]
    if fill.shape[:2] != (1, 1):
        fill = at_size(fill, size)
    return jnp.where(at_size(erased, size)[..., None], fill, image)


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
