"""The preprocessing that a model expects of its images; saved with its weights."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.any_format import from_pillow
from vit_jax.data.decode import (
    DecodeError,
    Opened,
    open_image,
    whole,
    with_channels,
)
from vit_jax.data.transforms.chains import Chain, parse_chain, rescale_chain
from vit_jax.errors import UserError

# Name → mean and standard deviation of values in [0, 1], for RGB or any channels.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
NORMALIZATIONS: dict[str, Normalization] = {
    "symmetric": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}

# Attributes that the first releases lack.
_OPTIONAL = {"white_level"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps from an image file to the model's input.

    Attributes:
      image_size: (height, width).
      channels: 3 for colour, 1 for grey.
      eval_transform: chain of deterministic operations (transforms/chains.py).
      mean, std: one number, or one per channel, for values in [0, 1]. With both at 0.5
        the model's values are in [−1, 1].
      white_level: the value of white in images of more than 8 bits per channel whose
        file does not say it; 0 = the largest of 16 bits.
    """

    image_size: tuple[int, int]
    channels: int = 3
    eval_transform: str = "resize"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    white_level: float = 0.0

    def __post_init__(self):
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = []
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            problems.append(
                f"image_size={self.image_size}: expected (height, width) in pixels"
            )
        if self.channels < 1:
            problems.append(f"channels={self.channels}: expected at least 1")
        if not 0 <= self.white_level < math.inf:
            problems.append(
                f"white_level={self.white_level}: expected a number above 0, or 0 for "
                "the largest value of 16 bits"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(set(values)) == 1:  # then it holds for any number of channels
                object.__setattr__(self, name, values[:1] * self.channels)
            elif len(values) != self.channels:
                problems.append(
                    f"{name}={values}: expected one number, or one for each of "
                    f"{self.channels} channels"
                )
        if not all(value > 0 for value in self.std):
            problems.append(f"std={self.std}: expected values above 0")
        if problems:
            raise UserError("preprocessing cannot be used: " + "; ".join(problems))
        if self.chain.random:
            raise UserError(
                f"evaluation must be deterministic, but the chain "
                f"{self.eval_transform!r} has a random operation. "
                "Use 'resize' or 'resize_small(256)|central_crop'."
            )

    @property
    def chain(self) -> Chain:
        return parse_chain(self.eval_transform, self.image_size)

    def for_images(self, image_size: tuple[int, int], channels: int) -> "Preprocessing":
        """Returns this preprocessing for another image size or number of channels.

        Explicit sizes in the transform change in proportion. If the number of channels
        changes, each new channel gets the average mean and standard deviation of the
        old ones.
        """
        transform = rescale_chain(self.eval_transform, self.image_size, image_size)
        values: dict[str, Any] = {"image_size": image_size, "channels": channels}
        values["eval_transform"] = transform
        if channels != self.channels:
            values["mean"] = (sum(self.mean) / self.channels,)
            values["std"] = (sum(self.std) / self.channels,)
        return dataclasses.replace(self, **values)

    def normalized_by(self, name: str) -> "Preprocessing":
        """Returns this preprocessing with the mean and deviation of `NORMALIZATIONS`.

        Other than three channels get the averages of RGB's.
        """
        mean, std = NORMALIZATIONS[name]
        if self.channels != 3:
            mean, std = ((sum(values) / len(values),) for values in (mean, std))
        return dataclasses.replace(self, mean=mean, std=std)

    def for_white(self, white_level: float) -> "Preprocessing":
        """Returns this preprocessing for images with another white; 0 keeps it."""
        if not white_level:
            return self
        return dataclasses.replace(self, white_level=white_level)

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes as JSON values, newer ones only if they are set.

        So releases that lack an attribute read what does not depend on it, and refuse
        the rest.
        """
        fields = dataclasses.asdict(self)
        for name in _OPTIONAL:
            if fields[name] == getattr(type(self), name):
                del fields[name]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in fields.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Makes a Preprocessing of the values that `to_dict` returned.

        Raises:
          UserError: a key is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) | _OPTIONAL != names:
            raise UserError(
                "the keys of preprocessing are not those that this version of vit_jax "
                f"writes: missing {sorted(names - _OPTIONAL - set(values))}, "
                f"unknown {sorted(set(values) - names)}"
            )
        return cls(**values)

    def normalize(self, images):
        """Computes (image / 255 − mean) / std, for numpy and JAX arrays alike.

        Args:
          images: uint8 [..., c].

        Returns:
          float32 [..., c]. With mean and std 0.5, 0 becomes exactly −1 and 255
          exactly 1.
        """
        # Scaled to 0…255, so that both ends of the range are exact; with the rank of
        # the images, because JAX can be configured to refuse implicit broadcasting.
        shape = (1,) * (images.ndim - 1) + (self.channels,)
        mean = (np.asarray(self.mean) * 255).astype(np.float32).reshape(shape)
        std = (np.asarray(self.std) * 255).astype(np.float32).reshape(shape)
        return (images.astype(np.float32) - mean) / std

    def prepare(
        self,
        image: bytes | str | pathlib.Path | np.ndarray | Image.Image,
        name: str = "",
    ) -> np.ndarray:
        """Decodes an image and applies the evaluation transform.

        Args:
          image: an encoded file's bytes, a path, uint8 [h, w, c] or a PIL image.
          name: the image's name in error messages; by default its path.

        Returns:
          uint8 [*image_size, channels], ready for `normalize`.

        Raises:
          DecodeError: the file cannot be read or decoded.
          UserError: an array has the wrong dtype or shape.
        """
        if isinstance(image, (str, pathlib.Path)):
            name = name or str(image)
            image = read_file(image)
        found = opened(image, self.channels, name, white_level=self.white_level)
        return self.chain(found, name=name)


def to_pixels(
    image: bytes | np.ndarray, channels: int, name: str = "", white_level: float = 0.0
) -> np.ndarray:
    """Converts an encoded or decoded image to uint8 [h, w, channels]."""
    return whole(opened(image, channels, name, white_level=white_level))


def opened(
    image: bytes | np.ndarray | Image.Image,
    channels: int,
    name: str = "",
    fast: bool = False,
    white_level: float = 0.0,
) -> Opened:
    """Opens an image; an ordinary JPEG stays encoded until a chain needs its pixels.

    `white_level` applies to encoded images and those of Pillow; see `Preprocessing`.
    """
    if isinstance(image, bytes):
        return open_image(image, channels, name, fast, white_level)
    if isinstance(image, np.ndarray):
        return with_channels(image, channels, name)
    if isinstance(image, Image.Image):
        return from_pillow(image, channels, name, white_level)
    raise UserError(
        f"{name or 'image'} is a {type(image).__name__}; expected a path, the bytes of "
        "an image file, or a uint8 array [height, width, channels]"
    )


def read_file(path: str | pathlib.Path) -> bytes:
    """Reads the bytes of an image file; DecodeError gives the file and the reason."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DecodeError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from error
