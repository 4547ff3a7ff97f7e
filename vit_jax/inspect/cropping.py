"""The free crop box of an image: the box around what a model's last layer reads most.

The whole image is resized to the model's input; nothing is cropped first, because what
a centre crop loses could not be in a box. Squashing a wide image into a square would
distort what the model sees. So the grid of patches is a rectangle of nearly the image's
shape, with about as many patches as the model was loaded for, and the positions are
resized for it as in fine-tuning at another size. Each grid is compiled once, so there
are only those of `ASPECTS`: between them an image is squashed, by less than a sixth up
to 2:1. Boxes do not need to know, see `boxes.box_of`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vit_jax.data.preprocessing import Preprocessing, to_pixels
from vit_jax.data.transforms.resizing import resize_image
from vit_jax.errors import UserError
from vit_jax.inspect.attention import read_map
from vit_jax.inspect.boxes import (
    MASS,
    PADDING,
    Found,
    attention_box,
    check,
    tokencut_box,
)
from vit_jax.model import Model
from vit_jax.models import Architecture, VisionTransformer
from vit_jax.models.heads import MAP_ATTENTION
from vit_jax.prediction.inputs import inputs
from vit_jax.prediction.stream import Prepared, overlapped, prepared
from vit_jax.words import either

# Width / height of the longer to the shorter side of inputs; tall images turn them.
ASPECTS = (1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0, 3.0, 4.0)
# Equals Pillow's; antialiased, because photographs are many times the input's size.
_INTERPOLATION = "bicubic_antialias"
_AHEAD = 4  # decoded images that wait for the device


class Method(NamedTuple):
    """How a box is found.

    Attributes:
      read: function of the module, parameters, one image and its grid that computes
        what `draw` needs, on the device.
      draw: function of that, the image's size and keywords that draws the box.
      takes_mass: whether `mass` is one of the keywords.
      score: what `Found.score` is.
    """

    read: Callable[..., Array]
    draw: Callable[..., Found]
    takes_mass: bool
    score: str


class Crop(NamedTuple):
    """The result of one image.

    Attributes:
      name: its path or address, or "image 3".
      pixels: the image, upright, uint8 [h, w, c]; None if it cannot be read.
      found: its box; None after an error.
      error: the reason why there is no box.
    """

    name: str
    pixels: np.ndarray | None
    found: Found | None
    error: UserError | None = None


class Cropper:
    """Finds the box of each image, one by one, since their shapes differ."""

    def __init__(
        self,
        model: Model,
        method: str = "attention",
        *,
        mass: float = MASS,
        padding: float = PADDING,
        aspect: float | None = None,
        image_size: int | None = None,
    ):
        """Sets the model and how boxes are drawn.

        Args:
          model: a Vision Transformer of any pooling.
          method: a row of `METHODS`, see `boxes`.
          mass: for "attention", the share of the attention that is kept.
          padding: patches that the box is larger on each side.
          aspect: width / height that boxes are widened to.
          image_size: the model reads about as many patches as a square image of this
            side has; by default as many as the model was loaded for.

        Raises:
          UserError: the model is an MLP-Mixer, or an argument is invalid.
        """
        if method not in METHODS:
            raise UserError(f"method={method!r}: choose {either(list(METHODS))}")
        a, module = model.architecture, model.module
        if not isinstance(a, Architecture) or not isinstance(module, VisionTransformer):
            raise UserError(
                "this model is an MLP-Mixer, which has neither attention nor keys to "
                "draw a box by; pass a Vision Transformer"
            )
        check(mass=mass, padding=padding, aspect=aspect)
        self.method = METHODS[method]
        self._keywords: dict[str, Any] = {"padding": padding, "aspect": aspect}
        if self.method.takes_mass:
            self._keywords["mass"] = mass
        self._patch = a.patch_size
        self._patches = math.prod(a.grid)
        if image_size is not None:
            if image_size < max(self._patch):
                raise UserError(
                    f"image_size={image_size}: expected at least {max(self._patch)} "
                    "pixels, the side of a patch"
                )
            self._patches = math.prod(image_size // side for side in self._patch)
        # Accepts every size. What is stored is resized once, for the size of the image.
        method_of_positions = a.flexible_resize or model.config["posemb_resize"]
        self._module = module.clone(posemb_resize=method_of_positions)
        self._params, self._preprocessing = model.params, model.preprocessing

    def __call__(self, image: UInt8[np.ndarray, "h w c"]) -> Found:
        """Returns the box in pixels of the image, and what it was drawn around.

        Args:
          image: pixels as decoded for the model (`preprocessing.to_pixels`), upright.

        Raises:
          UserError: the model does not give finite numbers.
        """
        return self._finish(self._start(image), image)

    def stream(self, images: Any) -> Iterator[Crop]:
        """Finds the boxes of any number of images in bounded memory, in order.

        Threads decode the next images while the device and the last box compute.

        Args:
          images: paths, folders, addresses and all else that `Model.predict` takes.

        Returns:
          An iterator over the results. An image that cannot be read, or of which no box
          follows, has an `error`.

        Raises:
          UserError: `images` are none.
        """
        taken = self._preprocessing

        def decode(image: Any, name: str) -> np.ndarray:
            return to_pixels(image, taken.channels, name, taken.white_level)

        decoded = prepared(inputs(images, taken.channels), decode, _AHEAD)
        return self._crops(overlapped(([image] for image in decoded), self._begun))

    def _crops(
        self, started: Iterator[tuple[list[Prepared], Array | None]]
    ) -> Iterator[Crop]:
        for (image,), read in started:
            found, error = None, image.error
            if image.pixels is not None and read is not None:
                try:
                    found = self._finish(read, image.pixels)
                except UserError as reason:
                    error = UserError(f"{image.name}: {reason}")
            yield Crop(image.name, image.pixels, found, error)

    def _begun(self, images: list[Prepared]) -> Array | None:
        (image,) = images
        return None if image.pixels is None else self._start(image.pixels)

    def _start(self, image: UInt8[np.ndarray, "h w c"]) -> Array:
        """Starts what the device computes for an image, and does not wait for it."""
        height, width = image.shape[:2]
        grid = nearest_grid((height, width), self._patches, self._patch)
        size = (grid[0] * self._patch[0], grid[1] * self._patch[1])
        pixels = resize_image(image, size, _INTERPOLATION)[None]
        read = self.method.read
        return _read(
            read, self._module, self._preprocessing, grid, self._params, pixels
        )

    def _finish(self, read: Array, image: UInt8[np.ndarray, "h w c"]) -> Found:
        """Draws the box by what `_start` returned for an image."""
        height, width = image.shape[:2]
        return self.method.draw(np.asarray(read), (height, width), **self._keywords)


def nearest_grid(
    image_size: tuple[int, int], patches: int, patch_size: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Returns the (height, width) in patches of the input for an image.

    Args:
      image_size: (height, width) of the image in pixels.
      patches: the largest number of patches.
      patch_size: (height, width) of a patch in pixels.
    """
    image, patch = (side[1] / side[0] for side in (image_size, patch_size))
    shapes = sorted({*ASPECTS, *(1 / aspect for aspect in ASPECTS)})
    grids = [_grid(aspect / patch, patches) for aspect in shapes]
    return min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0] * patch / image)))


def _grid(aspect: float, patches: int) -> tuple[int, int]:
    """Returns the (height, width) of a grid of about an aspect, counted in patches."""
    rows = math.sqrt(patches / aspect)
    gh = min(max(round(rows), 1), patches)
    return gh, min(max(round(patches / rows), 1), patches // gh)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _read(
    read: Callable[..., Array],
    module: VisionTransformer,
    preprocessing: Preprocessing,
    grid: tuple[int, int],
    params: Any,
    pixels: UInt8[Array, "1 h w c"],
) -> Array:
    return read(module, params, preprocessing.normalize(pixels), grid)


def _attention(
    module: VisionTransformer,
    params: Any,
    images: Float[Array, "1 h w c"],
    grid: tuple[int, int],
) -> Float[Array, "gh gw"]:
    """Computes by how much the pooled vector reads each patch, a mean over heads.

    A head that pools by attention is the last layer that attends: its own weights.
    """
    a = module.architecture
    name = MAP_ATTENTION if a.pooling == "map" else "attention"
    variables, last = {"params": params}, (a.depth - 1,)
    _, found = module.apply(variables, images, intermediates=(name,), layers=last)
    weights = jnp.asarray(found[name])
    if a.pooling == "map":
        return weights[0].mean(axis=0).reshape(grid)
    here = dataclasses.replace(a, image_size=images.shape[1:3])
    return read_map(weights[:, 0].mean(axis=1), here)[0]


def _keys(
    module: VisionTransformer,
    params: Any,
    images: Float[Array, "1 h w c"],
    grid: tuple[int, int],
) -> Float[Array, "gh gw d"]:
    """Computes the keys of the patches in the last block, heads side by side."""
    a = module.architecture
    variables, last = {"params": params}, (a.depth - 1,)
    _, found = module.apply(variables, images, intermediates=("keys",), layers=last)
    keys = jnp.asarray(found["keys"], jnp.float32)[0, 0, a.num_prefix_tokens :]
    return keys.reshape(*grid, -1)


METHODS = {
    "attention": Method(_attention, attention_box, True, "mass"),
    "tokencut": Method(_keys, tokencut_box, False, "eigenvalue"),
    "tokencut_centred": Method(
        _keys, partial(tokencut_box, centred=True), False, "eigenvalue"
    ),
}
