"""Flexible patch sizes (FlexiViT, arXiv:2212.08013): one set of weights for them all.

The kernel of the patch embedding and the positions are stored at sizes of their own and
resized in the program. Resizes do not compose (from 32 pixels to 8 and back, details
are lost), so training always resizes what is stored.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.models.architecture import Architecture, ViTOrMixer
from vit_jax.models.layers import lecun_normal, zeros
from vit_jax.models.positions import METHODS, resize
from vit_jax.words import pair

Kind = TypeVar("Kind", bound=ViTOrMixer)
PatchSize = int | tuple[int, int]  # side, or (height, width), in pixels


def at_patch_size(
    architecture: Kind, patch_size: PatchSize, method: str | None = None
) -> Kind:
    """Returns the architecture that reads the same parameters at another patch size.

    Args:
      architecture: any Vision Transformer without a trunk.
      patch_size: side or (height, width) in pixels.
      method: a row of `positions.METHODS`, for learned positions of a model that is not
        flexible and so has none of its own.

    Raises:
      ValueError: patches of that size cannot be cut from the image, or not by this
        kind of model, or the method is missing.
    """
    a, size = architecture, pair(patch_size)
    if size == a.patch_size:
        return a
    if reason := why_not_flexible(a):
        raise ValueError(f"patch_size={patch_size}: {reason}")
    assert isinstance(a, Architecture)
    learned = a.posemb == "learned"
    method = a.flexible_resize or method or ""
    if learned and not method:
        raise ValueError(
            f"patch_size={patch_size}: the positions are those of patches of "
            f"{a.patch_size}; set posemb_resize, the method to resize them"
        )
    return dataclasses.replace(
        a,
        patch_size=size,
        flexible_kernel=a.embed_kernel,
        flexible_grid=a.position_grid if learned else None,
        flexible_resize=method if learned else "",
    )


def why_not_flexible(architecture: ViTOrMixer) -> str:
    """Explains why a kind of model has a single patch size; "" if it can have any."""
    if not isinstance(architecture, Architecture):
        return "an MLP-Mixer mixes a fixed number of patches"
    if architecture.trunk is not None:
        return "a ResNet in front of the patches fixes their size"
    return ""


def is_flexible(architecture: ViTOrMixer) -> bool:
    """Returns whether the parameters are stored at sizes of their own."""
    return getattr(architecture, "flexible_kernel", None) is not None


def fixed(architecture: Kind) -> Kind:
    """Returns the architecture of the same function with a fixed patch size."""
    if not is_flexible(architecture):
        return architecture
    plain = {"flexible_kernel": None, "flexible_grid": None, "flexible_resize": ""}
    return dataclasses.replace(architecture, **plain)


def fixed_params(params: Mapping[str, Any], architecture: ViTOrMixer) -> dict[str, Any]:
    """Returns the parameters of `fixed(architecture)`, which compute the same.

    Args:
      params: parameters of the architecture, as NumPy arrays.
      architecture: a flexible one.
    """
    a = architecture
    assert isinstance(a, Architecture)
    kernel = resize_patches(np.asarray(params["patch_embed"]["kernel"]), a.embed_window)
    found = dict(params) | {"patch_embed": params["patch_embed"] | {"kernel": kernel}}
    if a.flexible_grid is not None:
        positions = resize(params["pos_embed"], a.grid, a.flexible_resize)
        found["pos_embed"] = np.asarray(positions)
    return found


@functools.lru_cache(maxsize=64)
def pseudo_inverse(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Computes the matrix that resizes one side of a patch embedding's kernel.

    Let B [new, old] be the matrix of the bilinear resize of an image. Then pinv(Bᵀ)
    applied to a kernel gives the kernel whose products with resized patches are closest
    to those of the old kernel with the original patches (arXiv:2212.08013, section
    3.4); they are equal if the patches grow.
    """
    return np.linalg.pinv(METHODS["bilinear"](old, new).T)


def resize_patches(
    kernel: Float[Array | np.ndarray, "h w c d"], size: tuple[int, int]
) -> Float[Array | np.ndarray, "new_h new_w c d"]:
    """Resizes a patch embedding's kernel to patches of another size.

    This is the pseudo-inverse resize of arXiv:2212.08013. Two-dimensional resizes are
    products of one for each side, and so are their pseudo-inverses.

    Args:
      kernel: on the host, computed in float64; or traced, in float32.
      size: new (height, width).

    Returns:
      The new kernel, in float32.
    """
    on_host = isinstance(kernel, np.ndarray)
    dtype = np.float64 if on_host else np.float32
    rows, columns = (
        pseudo_inverse(old, new).astype(dtype)
        for old, new in zip(kernel.shape[:2], size, strict=True)
    )
    if on_host:
        wide = kernel.astype(dtype)
        return np.einsum("yh,xw,hwcd->yxcd", rows, columns, wide).astype(np.float32)
    return jnp.einsum(
        "yh,xw,hwcd->yxcd",
        rows,
        columns,
        jnp.asarray(kernel, dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


class ResizedPatchEmbed(nn.Module):
    """A patch embedding whose kernel is stored at another size than its patches'.

    Attributes:
      conv: constructor of the convolution at the size of the patches.
      stored: (height, width) of the stored kernel.
    """

    conv: Callable[..., nn.Module]
    stored: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        """Embeds each patch with the resized kernel."""
        conv: Any = self.conv(parent=None)
        shape = (*self.stored, x.shape[-1], conv.features)
        kernel = self.param("kernel", lecun_normal, shape)
        bias = self.param("bias", zeros, (conv.features,))
        params = {"kernel": resize_patches(kernel, conv.kernel_size), "bias": bias}
        return conv.apply({"params": params}, x)
