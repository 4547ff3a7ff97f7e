"""Muon: momentum whose matrices are made nearly orthogonal before they are applied.

The definition is Keller Jordan's (https://kellerjordan.github.io/posts/muon), with the
scale of "Muon is Scalable for LLM Training" (arXiv:2502.16982) as the default.

`optax.contrib.scale_by_muon` is not used: it corrects the bias of the momentum and of
the gradient by different factors before it adds them for Nesterov's form, so their
proportion differs from the published one during the first updates. And where
parameters are sharded, the compiler would divide every product of its iteration.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.optim.rule import Option, RuleInputs
from vit_jax.trees import path_name

# Coefficients of x, x·xᵀ·x and (x·xᵀ)²·x. They maximise the slope at 0; singular values
# end between about 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPSILON = 1e-7  # added to the norm

# Factor of an orthogonal update of a matrix [inputs, outputs].
_SCALES: dict[str, Callable[[int, int], float]] = {
    # Its elements have a root mean square of 0.2, like those of AdamW's updates.
    "consistent_rms": lambda inputs, outputs: 0.2 * max(inputs, outputs) ** 0.5,
    "original": lambda inputs, outputs: max(1.0, outputs / inputs) ** 0.5,
}

OPTIONS = {
    "momentum": Option(0.95, 0.0, 0.999999),
    "nesterov": Option(True),
    "steps": Option(5, 1, 100),
    "scale": Option("consistent_rms", choices=tuple(_SCALES)),
    "adamw_lr": Option(1.0),
}

# The kernels of attention and MLPs, in the model's blocks and in a decoder's.
_MATRICES = re.compile(r"(.*/)?blocks_\d+/(.*/)?kernel")


class MuonState(NamedTuple):
    """The state of Muon's own parameters."""

    mu: Any  # averages of the gradients, like the parameters


def muon(given: RuleInputs) -> optax.GradientTransformation:
    """Makes Muon for the blocks' matrices, and Adam for all other parameters.

    Those are the head, patches, positions, tokens, norms, biases, and the matrices of
    low-rank adapters.
    """
    config = given.config
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=given.dtype)
    if config.weight_decay_form == "independent":
        adam = optax.chain(adam, optax.scale(given.options["adamw_lr"]))
    return optax.partition({"muon": _orthogonal(given), "adamw": adam}, _labels)


def adamw_factor(given: RuleInputs) -> optax.GradientTransformation:
    """Multiplies the directions of parameters on AdamW by the option `adamw_lr`.

    Their weight decay is multiplied too, unless it is independent of the rate.
    """
    factor = given.options["adamw_lr"]
    if given.config.weight_decay_form == "independent":
        factor = 1.0

    def scaled(updates: Any, params: Any) -> Any:
        del params
        if factor == 1:
            return updates
        return jax.tree.map(
            lambda u, label: u * factor if label == "adamw" else u,
            updates,
            _labels(updates),
        )

    return optax.stateless(scaled)


def _labels(tree: Any) -> Any:
    """Returns a tree like `tree` with the name of each parameter's part."""
    return jax.tree.map_with_path(
        lambda path, x: (
            "muon" if x.ndim == 2 and _MATRICES.fullmatch(path_name(path)) else "adamw"
        ),
        tree,
    )


def _orthogonal(given: RuleInputs) -> optax.GradientTransformation:
    """Makes Muon's own part, for matrices."""
    beta, nesterov = given.options["momentum"], given.options["nesterov"]
    scale = _SCALES[given.options["scale"]]

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=given.dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = jax.tree.map(lambda g, m: beta * m + (1 - beta) * g, updates, state.mu)

        def direction(g: Array, m: Array) -> Array:
            mixed = beta * m + (1 - beta) * g if nesterov else m
            whole = _whole(mixed, given.mesh)
            found = orthogonalised(whole, given.options["steps"])
            return _whole(found, given.mesh) * scale(*g.shape)

        directions = jax.tree.map(direction, updates, mu)
        return directions, MuonState(optax.tree.cast(mu, given.dtype))

    return optax.GradientTransformation(init, update)


def orthogonalised(x: Float[Array, "m n"], steps: int = 5) -> Float[Array, "m n"]:
    """Computes a nearly orthogonal matrix by Newton–Schulz iterations.

    With the singular value decomposition x = U·S·Vᵀ, the result is U·S'·Vᵀ with values
    around 1 in S'. Its products have JAX's default precision: bfloat16 on TPUs, as
    published.

    Args:
      x: a matrix.
      steps: number of iterations.
    """
    a, b, c = _COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x  # the smaller of both products x·xᵀ
    x = x / (jnp.linalg.norm(x) + _EPSILON)

    def iteration(_: Any, x: Array) -> Array:
        square = x @ x.T
        return a * x + (b * square + c * square @ square) @ x

    x = jax.lax.fori_loop(0, steps, iteration, x)
    return x.T if tall else x


def _whole(x: Array, mesh: Mesh | None) -> Array:
    """Gathers a matrix on every device, so that the iteration communicates nothing."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))
