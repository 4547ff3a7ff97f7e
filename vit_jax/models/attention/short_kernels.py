"""Two TPU kernels for attention among short sequences, which stay in on-chip memory.

A Vision Transformer attends among a few hundred tokens. XLA writes the probabilities of
every head to memory and reads them back, forward and backward: nearly half of a B/16
step for a twentieth of its arithmetic. Here a grid step loads one image, or some of its
heads, into the chip's vector memory (VMEM) and writes only the result. Probabilities
are never written; the backward kernel recomputes them from query and key.

The kernels were compiled for v4, v5e, v5p and v6e, but have not yet run on a TPU. By
the compiler's estimates for v5e, with these kernels and with XLA's attention
(docs/performance.md):

    step                           GiB          GB of traffic   ms, optimistic
    B/16 at 224, 128 images        5.44, 8.85   30.4, 67.5       90.9, 156.3
    H/14 at 224, 32 images, FSDP   8.21, 14.5   64.2, 147.7     202.3, 350.8

Layout. Query, key and value have the projections' layout, [b, n, heads · k], so they
need neither transposition nor padding in memory. Registers are 128 lanes wide, heads
have 32 to 128 channels: a head is read with all the registers that it touches (its
window), and the channels of its neighbours are zeroed in one factor of each product,
which adds nothing to the sum. In the output, a select discards the results for a
neighbour's channels. The matrix unit works on 128 × 128 blocks, so none of this costs
it time.

Order. The forward kernel has the queries in rows: the softmax reduces over lanes and
its divisor is applied to the output, [n, k], rather than the probabilities, [n, n]. The
backward kernel has the keys in rows, so that three of its five products need no
transposition and the sums are over rows. In both kernels, the products that start a
head are issued before the softmax of the previous head, so that the matrix and vector
units work at the same time.

Precision. Products of bfloat16 accumulate in float32, as elsewhere; the softmax and its
gradient are in float32. Float32 operands are multiplied in float32.

Length. Scores take [n, n] in float32. Beyond `_ROWS` queries they are computed in
pieces of rows, and the gradients of key and value are summed over the pieces. Heads
that end within a register are processed all at once. If they do not fit into VMEM, each
gets a whole register, padded with zeros, and they are processed one by one.

On platforms other than the TPU, XLA computes the same function.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LANES = 128  # of a vector register
_FEWEST = 32  # channels of a head; fewer would leave most of the matrix unit idle
# Maximum number of queries at a time, and maximum bytes of a piece of scores.
_ROWS, _SCORES = 320, 700_000
# Bytes of VMEM that a grid step may take: by our estimate, which leaves out what the
# compiler needs for itself, and in fact. v4 has only the first pair. Other chips, found
# by how their device kind begins, take more where that is too little.
_SMALLEST = 12 * 2**20, 16 * 2**20
VMEM = {
    "TPU v5 lite": (54 * 2**20, 98 * 2**20),  # of 128 MiB
    "TPU v5": (28 * 2**20, 56 * 2**20),  # v5p: of a core's 64 MiB
    "TPU v6 lite": (54 * 2**20, 98 * 2**20),  # of 128 MiB
}

Tokens = Float[Array, "b n d"]


def short_attention(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    num_heads: int,
    interpret: bool = False,
    device_kind: str = "",
) -> Tokens:
    """Computes softmax(query keyᵀ / √k) value per head (arXiv:1706.03762, eq. 1).

    Args:
      query: queries; each head's k = d / num_heads channels are adjacent.
      key: keys of the same tokens.
      value: values of the same tokens.
      num_heads: number of heads; divides d.
      interpret: run the kernels as ordinary JAX, on any platform; for tests.
      device_kind: JAX's name for the kind of device: some have more memory for a
        kernel.

    Raises:
      ValueError: the kernels do not take these sizes, see `fits`.
    """
    b, n, d = query.shape
    channels = d // num_heads
    lanes = lanes_a_head(n, d, num_heads, query.dtype, device_kind)
    if not lanes:
        raise ValueError(
            f"{n} tokens of {num_heads} heads × {channels} channels in {query.dtype} "
            "do not fit the kernels of short_attention; see `fits`"
        )
    how = (num_heads, 1 / math.sqrt(channels), interpret, device_kind)
    if lanes == channels:
        return _attention(query, key, value, *how)

    def spread(x):
        heads = x.reshape(b, n, num_heads, channels)
        wider = jnp.pad(heads, ((0, 0), (0, 0), (0, 0), (0, lanes - channels)))
        return wider.reshape(b, n, num_heads * lanes)

    mixed: Any = _attention(spread(query), spread(key), spread(value), *how)
    return mixed.reshape(b, n, num_heads, lanes)[..., :channels].reshape(b, n, d)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _attention(query, key, value, num_heads, scale, interpret, device_kind):
    return _forward(query, key, value, num_heads, scale, interpret, device_kind)[0]


def _forward(query, key, value, num_heads, scale, interpret, device_kind):
    sizes = {"num_heads": num_heads, "scale": scale}
    how = {**sizes, "interpret": interpret, "device_kind": device_kind}
    kernel = functools.partial(_call, _forward_kernel, outputs=1, **how)
    out = _on_tpu(
        lambda *operands: kernel(operands)[0],
        functools.partial(_by_xla, **sizes),
        interpret,
    )(query, key, value)
    return out, (query, key, value)


def _backward(num_heads, scale, interpret, device_kind, operands, gradient):
    sizes = {"num_heads": num_heads, "scale": scale}
    how = {**sizes, "interpret": interpret, "device_kind": device_kind}
    kernel = functools.partial(_call, _backward_kernel, outputs=3, **how)

    def by_xla(*arrays):
        function = functools.partial(_by_xla, **sizes)
        return jax.vjp(function, *arrays[:3])[1](arrays[3])

    run = _on_tpu(lambda *arrays: tuple(kernel(arrays)), by_xla, interpret)
    return run(*operands, gradient)


_attention.defvjp(_forward, _backward)


def fits(
    tokens: int, width: int, num_heads: int, dtype: Any, device_kind: str = ""
) -> bool:
    """Whether the kernels take sequences of this size; by default, on every chip.

    Chips before v4 do not count: they cannot run the kernels.
    """
    return bool(lanes_a_head(tokens, width, num_heads, dtype, device_kind))


def lanes_a_head(
    tokens: int, width: int, num_heads: int, dtype: Any, device_kind: str
) -> int:
    """Returns the lanes per head: its channels or a whole register; 0 = do not fit.

    A head gets a register of its own if heads side by side do not fit.
    """
    channels, dtype = width // num_heads, jnp.dtype(dtype)
    if not _FEWEST <= channels <= _LANES or dtype not in (jnp.bfloat16, jnp.float32):
        return 0
    for lanes in (channels, _LANES):
        sizes = tokens, num_heads * lanes, num_heads, dtype.itemsize
        if heads_a_step(*sizes, 7, device_kind)[0]:
            return lanes
    return 0


def _on_tpu(kernel: Callable, other: Callable, interpret: bool) -> Callable:
    """Chooses by the platform that the program is compiled for, not this process's."""
    if interpret:
        return kernel
    return lambda *operands: lax.platform_dependent(
        *operands, tpu=kernel, default=other
    )


def _by_xla(query, key, value, num_heads, scale):
    heads = (
        x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)
        for x in (query, key, value)
    )
    mixed = jax.nn.dot_product_attention(*heads, scale=scale, implementation="xla")
    return mixed.reshape(query.shape)


def _call(
    kernel,
    operands,
    *,
    outputs: int,
    num_heads: int,
    scale: float,
    interpret: bool,
    device_kind: str,
):
    from jax.experimental import pallas as pl  # not at import time: half a second
    from jax.experimental.pallas import tpu as pltpu

    b, n, d = operands[0].shape
    dtype = operands[0].dtype
    arrays = len(operands) + outputs
    together, limit = heads_a_step(n, d, num_heads, dtype.itemsize, arrays, device_kind)
    block = pl.BlockSpec((1, n, together * d // num_heads), lambda i, j: (i, 0, j))
    return pl.pallas_call(
        functools.partial(kernel, heads=together, scale=scale),
        grid=(b, num_heads // together),
        in_specs=[block] * len(operands),
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct((b, n, d), dtype)] * outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=limit
        ),
        interpret=interpret,
        # For vit_jax.plan: shapes in the compiled program do not show the heads.
        metadata={"heads": str(num_heads)},
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
    )(*operands)


def heads_a_step(
    n: int, d: int, num_heads: int, itemsize: int, arrays: int, device_kind: str = ""
) -> tuple[int, int]:
    """Counts the heads that fit into VMEM and fill whole registers; 0 = none.

    Args:
      n: number of tokens.
      d: channels of all heads.
      num_heads: number of heads; a grid step takes some of them.
      itemsize: bytes per number.
      arrays: operands and results: 4 for the forward kernel, 7 for the backward kernel.
      device_kind: JAX's name for the kind of device; "" = the smallest.

    Returns:
      The number of heads, and the bytes that the grid step may take.
    """
    # In the backward kernel, six pieces of scores live at once, and the float32 results
    # in the registers of two heads.
    working = 4 * (6 * _pieces(n)[0].stop * n + 3 * 2 * n * _LANES)
    rows = [kind for kind in VMEM if device_kind.startswith(kind)]
    # "TPU v5 lite" begins like "TPU v5" as well.
    largest = VMEM[max(rows, key=len)] if rows else _SMALLEST
    for budget, limit in (_SMALLEST, largest):
        for heads in range(num_heads, 0, -1):
            width = heads * d // num_heads
            whole = heads == num_heads or width % _LANES == 0
            # Twice each block: the next grid step's is copied while this one runs.
            blocks = 2 * arrays * n * width * itemsize
            enough = blocks + working <= budget
            if num_heads % heads == 0 and whole and enough:
                return heads, limit
    return 0, 0


def _forward_kernel(query, key, value, out, *, heads, scale):
    """Processes one image; references are [1, n, heads · k]."""
    n, width = query.shape[1:]
    channels = width // heads
    to_exponent = math.log2(math.e) * scale
    results = _Registers(channels, out)

    def scores(head, rows):
        at = _window(head, channels, width)
        return _dot(_only(query[0, rows, at], head, channels), key[0, :, at], (1, 1))

    for head, rows, found in _one_ahead(scores, heads, _pieces(n)):
        largest = found.max(axis=1, keepdims=True)
        exponentials = jnp.exp2((found - largest) * to_exponent)
        divisor = exponentials.sum(axis=1, keepdims=True)
        at = _window(head, channels, width)
        product = _dot(exponentials.astype(value.dtype), value[0, :, at], (1, 0))
        results.put(product * (1 / divisor), head, rows)


def _backward_kernel(
    query, key, value, gradient, d_query, d_key, d_value, *, heads, scale
):
    """Processes one image; references are [1, n, heads · k]."""
    n, width = query.shape[1:]
    channels = width // heads
    to_exponent = math.log2(math.e) * scale
    pieces, everything = _pieces(n), slice(0, n)
    of_query, of_key, of_value = (
        _Registers(channels, reference) for reference in (d_query, d_key, d_value)
    )
    sums: Any = ()  # of the head's key and value, over the pieces

    def products(head, rows):
        """Computes the scores and the weights' gradients, [keys, queries]."""
        at = _window(head, channels, width)
        pairs = (key, query), (value, gradient)
        return [
            _dot(one[0, :, at], _only(other[0, rows, at], head, channels), (1, 1))
            for one, other in pairs
        ]

    for head, rows, (found, d_weights) in _one_ahead(products, heads, pieces):
        largest = found.max(axis=0, keepdims=True)
        exponentials = jnp.exp2((found - largest) * to_exponent)
        weights = exponentials * (1 / exponentials.sum(axis=0, keepdims=True))
        mean = (weights * d_weights).sum(axis=0, keepdims=True)
        d_scores = (weights * (d_weights - mean)).astype(query.dtype)
        at = _window(head, channels, width)
        of_query.put(_dot(d_scores, key[0, :, at], (0, 0)) * scale, head, rows)
        parts = (
            _dot(d_scores, query[0, rows, at], (1, 0)) * scale,
            _dot(weights.astype(value.dtype), gradient[0, rows, at], (1, 0)),
        )
        before = sums if rows.start else (0.0, 0.0)
        sums = [part + total for part, total in zip(parts, before, strict=True)]
        if rows.stop == n:
            of_key.put(sums[0], head, everything)
            of_value.put(sums[1], head, everything)


def _pieces(n: int) -> list[slice]:
    """Splits rows into the fewest even pieces of whole registers (bfloat16: 16)."""
    count = -(-n // max(min(_ROWS, _SCORES // (4 * n)), 16))
    rows = -(-n // count // 16) * 16
    return [slice(at, min(at + rows, n)) for at in range(0, n, rows)]


def _one_ahead(
    start: Callable[[int, slice], Any], heads: int, pieces: list[slice]
) -> Iterator[tuple[int, slice, Any]]:
    """Yields each head and piece with `start`'s result, after starting the next one."""
    order = [(head, rows) for head in range(heads) for rows in pieces]
    ahead = start(*order[0])
    for number, (head, rows) in enumerate(order, 1):
        found = ahead
        if number < len(order):
            ahead = start(*order[number])
        yield head, rows, found


def _window(head: int, channels: int, width: int) -> slice:
    """Returns the lanes of all registers that a head's channels touch."""
    first, last = head * channels, (head + 1) * channels
    return slice(first // _LANES * _LANES, min(-(-last // _LANES) * _LANES, width))


def _own(shape: tuple[int, ...], first_lane: int, head: int, channels: int) -> Array:
    """Marks the lanes that are the head's, in registers from `first_lane` on."""
    lane = lax.broadcasted_iota(jnp.int32, shape, 1) + first_lane
    return (lane >= head * channels) & (lane < (head + 1) * channels)


def _only(window: Array, head: int, channels: int) -> Array:
    """Zeroes the neighbours' channels in a head's window."""
    if window.shape[1] == channels:
        return window
    first = head * channels // _LANES * _LANES
    own = _own(window.shape, first, head, channels)
    return jnp.where(own, window, jnp.zeros_like(window))


def _dot(a: Array, b: Array, contracting: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = ((contracting[0],), (contracting[1],)), ((), ())
    return lax.dot_general(
        a, b, axes, precision=precision, preferred_element_type=jnp.float32
    )


class _Registers:
    """A collector of the heads' results, which writes registers once they are complete.

    Heads share registers: each sets its own lanes and leaves the others alone.
    """

    def __init__(self, channels: int, reference: Any):
        self._channels, self._reference = channels, reference
        self._begun: dict[tuple[int, int], Array] = {}

    def put(self, product: Array, head: int, rows: slice) -> None:
        """Sets the head's lanes of these rows; heads come in order.

        Args:
          product: float32 [rows, window]; other heads' lanes may hold anything.
          head: index of the head.
          rows: rows of the reference.
        """
        width = self._reference.shape[2]
        at = _window(head, self._channels, width)
        for lane in range(at.start, at.stop, _LANES):
            new = product[:, lane - at.start : lane - at.start + _LANES]
            before = self._begun.pop((lane, rows.start), None)
            if before is not None:
                own = _own(new.shape, lane, head, self._channels)
                new = jnp.where(own, new, before)
            end = lane + new.shape[1]
            if (head + 1) * self._channels >= end:
                self._reference[0, rows, lane:end] = new.astype(self._reference.dtype)
            else:
                self._begun[lane, rows.start] = new
