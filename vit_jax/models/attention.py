"""Formulations of scaled dot-product attention, and which one to use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b m h k"],
    value: Float[Array, "b m h k"],
    *,
    implementation: str = "auto",
    return_weights: bool = False,
) -> tuple[Float[Array, "b n h k"], Float[Array, "b h n m"] | None]:
    """softmax(query keyᵀ / √k) value for each head (arXiv:1706.03762, eq. 1).

    The softmax is computed in float32 whatever the arguments' dtype.

    Args:
      query: what each of n tokens looks for, in h heads of k channels.
      key: what each of m tokens offers.
      value: what each of them hands over.
      implementation: one of `IMPLEMENTATIONS`; all compute the same function.
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
    return IMPLEMENTATIONS[implementation](query, key, value)[0], None


def _explicit(query, key, value):
    scores = jnp.einsum(
        "bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores / query.shape[-1] ** 0.5, axis=-1)
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(value.dtype), value), weights


def _fused(implementation):
    def attention(query, key, value):
        mixed = jax.nn.dot_product_attention(
            query, key, value, implementation=implementation
        )
        return mixed, None

    return attention


IMPLEMENTATIONS: dict[str, Callable] = {
    "auto": _fused(None),  # JAX chooses
    "xla": _fused("xla"),
    "explicit": _explicit,
}
