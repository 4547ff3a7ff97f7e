"""Formulations of scaled dot-product attention, and which one to use."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.models.layout import Layout
from vit_jax.models.short_attention import fits, short_attention


def attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    *,
    implementation: str = "auto",
    return_weights: bool = False,
    layout: Layout = Layout(),  # noqa: B008 (it never changes)
) -> tuple[Float[Array, "b n h k"], Float[Array, "b h n m"] | None]:
    """softmax(query keyᵀ / √k) value for each head (arXiv:1706.03762, eq. 1).

    The softmax is computed in float32 whatever the arguments' dtype.

    Args:
      query: what each of n tokens looks for, in h heads of k channels.
      key: what each of m tokens offers.
      value: what each of them hands over.
      implementation: one of `IMPLEMENTATIONS`; all compute the same function.
      layout: where the arrays lie, if there are several devices.
      return_weights: also return what the softmax gives, in float32. Only the
        explicit formulation has it, so asking for it chooses that one.

    Returns:
      The mixed values in the dtype of `value`, and the weights or None.

    Raises:
      ValueError: unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention is {implementation!r}, expected one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if return_weights:
        return _explicit(query, key, value)
    return IMPLEMENTATIONS[implementation](query, key, value, layout)[0], None


def _explicit(query, key, value, _layout=None):
    scores = jnp.einsum(
        "bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores / query.shape[-1] ** 0.5, axis=-1)
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(value.dtype), value), weights


def _fused(implementation):
    def attention(query, key, value, _layout):
        mixed = jax.nn.dot_product_attention(
            query, key, value, implementation=implementation
        )
        return mixed, None

    return attention


def _short(query, key, value, layout):
    by_xla = _fused("xla")
    if key.shape != query.shape:  # the kernels are for attention among the same tokens
        return by_xla(query, key, value, layout)

    def attention(query, key, value):
        """Of the examples and heads of one device."""
        b, n, heads, channels = query.shape
        if not fits(n, heads * channels, heads, query.dtype):
            return by_xla(query, key, value, layout)[0]
        tokens = (x.reshape(b, n, heads * channels) for x in (query, key, value))
        mixed: Any = short_attention(*tokens, heads)
        return mixed.reshape(query.shape)

    return layout.apart(attention)(query, key, value), None


IMPLEMENTATIONS: dict[str, Callable] = {
    "auto": _fused(None),  # JAX chooses
    "xla": _fused("xla"),
    "pallas": _short,  # where the kernel fits; on other platforms than TPU it is XLA's
    "explicit": _explicit,
}
