"""The MLP-Mixer (arXiv:2105.01601): MLPs across the patches and across the channels."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vit_jax.models.architecture import MixerArchitecture
from vit_jax.models.dropout import drop
from vit_jax.models.layers import Mlp, layer_norm_on, lecun_normal, zeros
from vit_jax.models.patch_model import PatchModel
from vit_jax.models.placement import Placement

INTERMEDIATES = ("embedding", "tokens", "normed", "pooled", "pre_logits")


class MlpMixer(PatchModel):
    """Images to logits; `PatchModel` explains the call and the fields.

    Dropout is after both layers of the MLPs. There is no attention to return, and no
    other number of patches than the architecture's.
    """

    architecture: MixerArchitecture

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        train: bool = False,
        intermediates: tuple[str, ...] = (),
    ) -> Float[Array, "b k"] | tuple[Float[Array, "b k"], dict[str, Array]]:
        """See `PatchModel`."""
        a = self.architecture
        self._check(images, intermediates, INTERMEDIATES)
        *keys, _ = self._keys(train)

        x = self._patch_embed(jnp.asarray(images, self.dtype))
        x = x.reshape(len(x), a.num_tokens, a.width)
        found = {"embedding": x}
        block = MixerBlock(
            a, self.dtype, self.dropout_rate, self.placement, parent=None
        )
        # The tokens are a dimension of the parameters.
        x, of_blocks = self._encode(block, x, x[:1], keys, intermediates)
        found |= of_blocks
        norm = nn.LayerNorm(epsilon=a.layernorm_epsilon, dtype=self.dtype, name="norm")
        x = norm(x)
        found["normed"] = x
        x = x.mean(axis=1)
        found["pooled"] = found["pre_logits"] = x
        x = self._head(x)
        if not intermediates:
            return x
        return x, {name: found[name] for name in intermediates}


class MixerBlock(nn.Module):
    """An MLP across the tokens, then one across the channels, both residual (eq. 1)."""

    architecture: MixerArchitecture
    dtype: Any = jnp.float32
    dropout_rate: float = 0.0
    placement: Placement = Placement()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        key: Key[Array, ""] | None = None,
        skip_rate: Float[Array | np.ndarray, ""] | np.float32 | None = None,
        wanted: tuple[str, ...] = (),  # noqa: ARG002, nothing but tokens is there
    ) -> tuple[Float[Array, "b n d"], dict[str, Array]]:
        """Tokens, and nothing besides; without a key nothing is dropped."""
        a = self.architecture
        norm = layer_norm_on(self.placement, self.dtype, a.layernorm_epsilon)
        mlp = partial(
            Mlp,
            gelu=a.gelu,
            dtype=self.dtype,
            dropout_rate=self.dropout_rate,
            kernel_init=lecun_normal,
            bias_init=zeros,
            placement=self.placement,
        )
        keys: Any = [None] * 4 if key is None else jax.random.split(key, 4)

        y = norm(name="norm1")(x).swapaxes(1, 2)
        y = mlp(a.tokens_mlp_dim, name="tokens_mlp")(y, keys[0]).swapaxes(1, 2)
        x = x + drop(y, skip_rate, keys[1], whole_examples=True)

        y = norm(name="norm2")(x)
        y = mlp(a.mlp_dim, name="mlp")(y, keys[2])
        return x + drop(y, skip_rate, keys[3], whole_examples=True), {}
