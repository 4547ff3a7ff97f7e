"""Formulations of scaled dot-product attention, and the candidates for each device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.attention.short_kernels import fits, short_attention
from vit_jax.models.placement import Placement
from vit_jax.models.taps import padded


def attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    *,
    implementation: str = "auto",
    return_weights: bool = False,
    added: Float[Array, "b h i j"] | None = None,
    placement: Placement = Placement(),  # noqa: B008 (it never changes)
) -> tuple[Float[Array, "b n h k"], Float[Array, "b h n m"] | None]:
    """Computes softmax(query keyᵀ / √k) value per head (arXiv:1706.03762, eq. 1).

    The softmax is in float32 whatever the arguments' dtype.

    Args:
      query: queries of n tokens, in h heads of k channels.
      key: keys of m tokens.
      value: values of the same m tokens.
      implementation: one of `IMPLEMENTATIONS`; all compute the same function.
      placement: where the arrays lie, if there are several devices.
      return_weights: also return the softmax's result, in float32. Only the explicit
        formulation has it, so asking for it chooses that one.
      added: what is added to this result; see `taps.Taps`. It chooses that one too.

    Returns:
      The mixed values in the dtype of `value`, and the weights or None.

    Raises:
      ValueError: the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention is {implementation!r}, expected one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if return_weights or added is not None:
        return _explicit(query, key, value, added=added)
    return IMPLEMENTATIONS[implementation](query, key, value, placement)[0], None


def _explicit(query, key, value, _placement=None, added=None):
    weights = jax.nn.softmax(_scores(query, key) / query.shape[-1] ** 0.5, axis=-1)
    if added is not None:
        weights = weights + padded(added, weights)
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(value.dtype), value), weights


@jax.custom_vjp
def _scores(query, key):
    """Multiplies into float32; the gradient's products have the arguments' dtype."""
    return jnp.einsum("bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32)


def _scores_backward(operands, gradient):
    query, key = operands
    gradient = gradient.astype(query.dtype)
    return (
        jnp.einsum("bhnm,bmhk->bnhk", gradient, key),
        jnp.einsum("bhnm,bnhk->bmhk", gradient, query),
    )


_scores.defvjp(lambda query, key: (_scores(query, key), (query, key)), _scores_backward)


def _fused(implementation):
    def attention(query, key, value, _placement):
        mixed = jax.nn.dot_product_attention(
            query, key, value, implementation=implementation
        )
        return mixed, None

    return attention


def _short(query, key, value, placement):
    by_xla = _fused("xla")
    if key.shape != query.shape:  # the kernels only do self-attention
        if _most_are_queries(query, key):
            return _one_query_per_key(_short, query, key, value, placement)
        return by_xla(query, key, value, placement)

    def attention(query, key, value):
        """Attends within the examples and heads of one device."""
        b, n, heads, channels = query.shape
        if not fits(n, heads * channels, heads, query.dtype, placement.device_kind):
            return by_xla(query, key, value, placement)[0]
        tokens = (x.reshape(b, n, heads * channels) for x in (query, key, value))
        mixed: Any = short_attention(
            *tokens, num_heads=heads, device_kind=placement.device_kind
        )
        return mixed.reshape(query.shape)

    return placement.apart(attention)(query, key, value), None


def _most_are_queries(query, key):
    """Whether most tokens are queries but some, a model's prompts, are not."""
    return 2 * key.shape[1] < 3 * query.shape[1] < 3 * key.shape[1]


def _one_query_per_key(attention, query, key, value, placement):
    """Lets a kernel for self-attention compute more queries, which are not read."""
    n, m = query.shape[1], key.shape[1]
    query = jnp.pad(query, ((0, 0), (0, m - n), (0, 0), (0, 0)))
    return attention(query, key, value, placement)[0][:, :n], None


def _cudnn(query, key, value, placement):
    # Its backward pass rejects a single query. Cross-attention is a small part of a
    # step, so the explicit formulation is good enough for both.
    if _most_are_queries(query, key):
        return _one_query_per_key(_cudnn, query, key, value, placement)
    if query.shape[1] == 1 or key.shape != query.shape:
        return _explicit(query, key, value)

    def attention(query, key, value):
        """Attends within the examples and heads of one device."""
        b, n, *_ = query.shape
        fused = partial(jax.nn.dot_product_attention, implementation="cudnn")
        if n % 2 == 0:
            return fused(query, key, value)
        # JAX has no gradient for odd lengths, so add one more token that is not read.
        one_more = ((0, 0), (0, 1), (0, 0), (0, 0))
        lengths = jnp.full((b,), n, jnp.int32)
        mixed = fused(
            *(jnp.pad(x, one_more) for x in (query, key, value)),
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
        )
        return mixed[:, :n]

    return placement.apart(attention)(query, key, value), None


def _per_head(query, key, value, placement):
    def attention(query, key, value):
        """Attends within the examples and heads of one device."""
        heads = query.shape[2]
        # A head's channels are adjacent, so slicing them out transposes nothing.
        parts = (
            jnp.split(x.reshape(*x.shape[:2], -1), heads, axis=-1)
            for x in (query, key, value)
        )
        mixed = [_one_head(*of_head) for of_head in zip(*parts, strict=True)]
        return jnp.concatenate(mixed, axis=-1).reshape(query.shape)

    return placement.apart(attention)(query, key, value), None


@jax.jit  # traced once for all heads and blocks
def _one_head(query, key, value):
    """Attention for one head on [b, n, k].

    Normalises after mixing the values, on [n, k] instead of [n, n].
    """
    scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("bnk,bmk->bnm", query * scale, key)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    mixed = product("bnm,bmk->bnk", weights.astype(value.dtype), value)
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)


IMPLEMENTATIONS: dict[str, Callable] = {
    "auto": _fused(None),  # JAX chooses
    "xla": _fused("xla"),
    "pallas": _short,  # on TPUs, where the kernels fit; otherwise XLA's
    "cudnn": _cudnn,  # on NVIDIA GPUs only, see `why_not_cudnn`
    "per_head": _per_head,  # separate products for each head, for CPUs
    "explicit": _explicit,
}

# The only candidate on a CPU, untried: the fastest as measured (docs/performance.md).
FASTEST_ON_CPU = "per_head"


def candidates(
    platform: str,
    device_kind: str,
    *,
    tokens: int,
    heads: int,
    channels: int,
    dtype: Any,
) -> tuple[str, ...]:
    """Lists the formulations that may be the fastest, the most promising first.

    Args:
      platform: JAX's name for the devices' platform: "tpu", "gpu", "cpu".
      device_kind: JAX's name for the kind of devices: "TPU v5 lite".
      tokens: number of tokens that attend to each other.
      heads: number of heads per device.
      channels: channels per head.
      dtype: dtype of query, key and value.
    """
    if platform == "tpu":
        # TPUs before v4 multiply bfloat16 differently.
        old = device_kind in ("TPU v2", "TPU v3")
        if not old and fits(tokens, heads * channels, heads, dtype, device_kind):
            return "pallas", "xla"
    if platform == "gpu":
        fused = () if why_not_cudnn(platform, channels, dtype) else ("cudnn",)
        return (*fused, "explicit", "xla")
    return (FASTEST_ON_CPU,) if platform == "cpu" else ("xla",)


def why_not_cudnn(platform: str, channels: int, dtype: Any) -> str:
    """Explains why cuDNN's fused attention cannot run here; "" if it can.

    Args:
      platform: JAX's name for the devices' platform.
      channels: channels per head.
      dtype: dtype of query, key and value.
    """
    if platform != "gpu":
        return f"it runs on NVIDIA GPUs, but the devices are {platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, but compute_dtype is {jnp.dtype(dtype)}"
    if channels % 8 or channels > _CUDNN_CHANNELS:
        return (
            f"a head has {channels} channels, but it takes multiples of 8 up to "
            f"{_CUDNN_CHANNELS}"
        )
    return ""


_CUDNN_CHANNELS = 128  # the maximum that every GPU supports
