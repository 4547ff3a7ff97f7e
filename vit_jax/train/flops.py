"""How much arithmetic a program asks for, read off its jaxpr before any compiler.

What is counted are the matrix products and convolutions, a multiplication and an
addition being two operations: the usual measure of a model, the same on every platform.
"""

import math
from typing import Any

import numpy as np
from jax.extend import core


def matmul_flops(jaxpr: Any) -> int:
    """Operations of all matrix products and convolutions, by their shapes.

    A loop's body counts as often as it runs, a shard's as often as there are shards;
    of branches the dearest counts. Products of a convolution with its padding, or with
    the holes of a dilated input, are none. So `jax.make_jaxpr(step)(*arguments)` of a
    step over several devices gives what all of them do together.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr` or `ClosedJaxpr`, as `jax.make_jaxpr` or a
        `jax.stages.Traced` have it.

    Raises:
      ValueError: there is a kernel, which hides its products (count the same program
        with attention "explicit"), or products are in a loop without a known length.
    """
    return sum(map(_of_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation)
    if name == "pallas_call":
        raise ValueError(
            "a kernel hides its products; count them with attention 'explicit'"
        )
    inner = list(map(matmul_flops, core.jaxprs_in_params(params)))
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("there are products in a loop whose length nobody knows")
    return sum(inner) * _times(name, params)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often what is inside an equation runs."""
    if name == "scan":
        return params["length"]
    return params["mesh"].size if name == "shard_map" else 1


def _dot_general(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation: Any) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right, out = (
        [x.aval.shape[axis] for axis in spec]
        for x, spec in (
            (equation.invars[0], numbers.lhs_spec),
            (equation.invars[1], numbers.rhs_spec),
            (equation.outvars[0], numbers.out_spec),
        )
    )
    pairs = map(
        _pairs,
        left[2:],
        right[2:],
        out[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
    )
    batch, features = out[:2]
    return 2 * batch * features * right[1] * math.prod(pairs)


def _pairs(
    size: int,
    kernel: int,
    out: int,
    stride: int,
    padding: tuple[int, int],
    hole: int,
    spread: int,
) -> int:
    """Products along one axis of a convolution: (output, kernel) on an input there."""
    start = np.arange(out).reshape(-1, 1) * stride - padding[0]
    position = start + np.arange(kernel).reshape(1, -1) * spread
    last = (size - 1) * hole
    there = (position >= 0) & (position <= last) & (position % hole == 0)
    return int(np.sum(there))


_PRODUCTS = {"dot_general": _dot_general, "conv_general_dilated": _convolution}
