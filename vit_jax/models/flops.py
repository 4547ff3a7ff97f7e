"""The FLOPs of a model, counted in the traced program: 2 per term of a product."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from vit_jax.models.architecture import ViTOrMixer
from vit_jax.models.building import build


class Flops(NamedTuple):
    """FLOPs per image from input to logits; only products count.

    By convention every block counts with all tokens, although the last one computes
    only those that the head reads.
    """

    total: int
    attention: int  # between activations: query with key, weights with value

    @property
    def training(self) -> int:
        """Forward and backward: each product needs two more for its gradients."""
        return 3 * self.total


def count(architecture: ViTOrMixer) -> Flops:
    """Counts a model's FLOPs, regardless of formulation, device and precision."""
    forward, arguments = forward_of(architecture)
    return of_program(jax.make_jaxpr(forward)(*arguments).jaxpr)


def forward_of(
    architecture: ViTOrMixer,
) -> tuple[Callable[..., Any], tuple[Any, Any]]:
    """Returns the function whose products are counted, and its abstract arguments.

    These are a model's variables and one image.
    """
    fields = {"attention": "explicit"} if hasattr(architecture, "num_heads") else {}
    model = build(architecture, **fields)
    size = (1, *architecture.image_size, architecture.channels)
    images = jax.ShapeDtypeStruct(size, jax.numpy.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def forward(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, intermediates=("tokens",))

    return forward, (shapes, images)


def of_program(jaxpr: core.Jaxpr) -> Flops:
    """Counts all FLOPs, and those of products between activations."""
    total = attention = 0
    for product in products_of(jaxpr):
        total += product.flops
        attention += product.flops * product.between_activations
    return Flops(total, attention)


class Product(NamedTuple):
    """A matrix product or a convolution of a traced program, with all its runs.

    A product with a parameter has no batch dimensions, because the parameter is the
    same for every image; one between activations has.
    """

    flops: int
    between_activations: bool
    scope: str  # the named scopes around it, outermost first, joined by "/"


def products_of(jaxpr: core.Jaxpr, scope: str = "", runs: int = 1) -> Iterator[Product]:
    """Lists the products of a traced program in their order.

    Args:
      jaxpr: the program; those that it runs are included.
      scope: the named scopes around it.
      runs: how often it runs.
    """
    for equation in jaxpr.eqns:
        inside = "/".join(filter(None, [scope, str(equation.source_info.name_stack)]))
        times = runs * equation.params.get("length", 1)  # of a scan
        for inner in _inner(equation.params):
            yield from products_of(inner, inside, times)
        if equation.primitive.name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            left = _shape(equation.invars[0])
            terms = math.prod(left[axis] for axis in contracted)
            yield Product(runs * _flops(terms, equation), bool(batch), inside)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            outputs = equation.params["dimension_numbers"].rhs_spec[0]
            terms = math.prod(kernel) // kernel[outputs]
            yield Product(runs * _flops(terms, equation), False, inside)


def _flops(terms: int, equation: Any) -> int:
    """Returns the FLOPs of a product each of whose results has so many terms."""
    return 2 * terms * math.prod(_shape(equation.outvars[0]))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    """Returns the programs that an equation runs."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if _is_jaxpr(leaf)]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
