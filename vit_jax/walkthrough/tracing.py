"""Traces of a model: the shapes of its calls, its products and its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from vit_jax.models import ViTOrMixer, abstract_params
from vit_jax.models.flops import Product, forward_of, products_of

# The scope of a block's attention, and the ends of the scopes of its two products.
_CORE = "Block/attention"
WEIGHTS, MIXED = f"{_CORE}/weights", f"{_CORE}/mixed"
# Modules that are called there, whose products are not attention's own.
_PROJECTIONS = ("query", "key", "value", "out")


class Call(NamedTuple):
    """One call of a module or of one of its methods, without the batch."""

    input: tuple[int, ...]  # shape of the first array that is passed
    output: tuple[
        int, ...
    ]  # shape of the result; of several, of one after their number


class Trace(NamedTuple):
    """The trace of a model for one image.

    Attributes:
      calls: scope → the last call there. All blocks have the same scope.
      products: FLOPs of all products, with their scopes.
      params: path → number of elements; "blocks_03" is "blocks".
    """

    calls: dict[str, Call]
    products: list[Product]
    params: dict[str, int]


def trace(architecture: ViTOrMixer) -> Trace:
    """Traces the Linen module of an architecture; computes and allocates nothing.

    The program is the one whose FLOPs are counted (`vit_jax.models.flops`): every block
    computes all tokens.
    """
    forward, arguments = forward_of(architecture)
    recorder = _Recorder()
    with nn.override_named_call(True), nn.intercept_methods(recorder):
        program = jax.make_jaxpr(forward)(*arguments)
    products = _with_core(list(products_of(program.jaxpr)))
    return Trace(recorder.calls, products, _params(architecture))


class _Recorder:
    """An interceptor of Flax that notes the shapes of every call."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self._scope: list[str] = []

    def __call__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        # The name by which Flax opens a named scope in the traced program.
        name = context.module.name or type(context.module).__name__
        if context.method_name != "__call__":
            name = f"{name}.{context.method_name}"
        self._scope.append(name)
        try:
            result = call(*args, **kwargs)
            arrays, results = _arrays(args), _arrays(result)
            if arrays and results:
                several = (len(results),) if len(results) > 1 else ()
                shape = several + results[0].shape[1:]
                call_ = Call(arrays[0].shape[1:], shape)
                self.calls["/".join(self._scope)] = call_
        finally:
            self._scope.pop()
        return result


def _arrays(values: Any) -> list[Any]:
    """Lists arrays, also those in lists, but not those in dictionaries."""
    if isinstance(values, tuple | list):
        return [array for value in values for array in _arrays(value)]
    return [values] if isinstance(values, jax.Array) and values.ndim else []


def _with_core(products: list[Product]) -> list[Product]:
    """Gives the two products of each attention in a block scopes of their own."""
    projections = tuple(f"{_CORE}/{name}" for name in _PROJECTIONS)
    core = [
        i
        for i, product in enumerate(products)
        if _CORE in product.scope and not any(p in product.scope for p in projections)
    ]
    for number, i in enumerate(core):
        before = products[i].scope.partition(_CORE)[0]
        scope = before + (MIXED if number % 2 else WEIGHTS)
        products[i] = products[i]._replace(scope=scope)
    return products


def _params(architecture: ViTOrMixer) -> dict[str, int]:
    """Counts the elements of parameters by path; blocks are added up."""
    found: dict[str, int] = {}
    leaves = jax.tree_util.tree_flatten_with_path(abstract_params(architecture))[0]
    for keys, leaf in leaves:
        first, *rest = (key.key for key in keys)
        first = "blocks" if first.startswith("blocks_") else first
        path = "/".join([first, *rest])
        found[path] = found.get(path, 0) + leaf.size
    return found
