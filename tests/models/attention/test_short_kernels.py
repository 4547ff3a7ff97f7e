"""The TPU kernels, interpreted: compared with float64 in all shapes; where they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.attention import short_kernels as kernels
from vit_jax.models.attention.formulations import attend
from vit_jax.models.attention.short_kernels import fits, short_attention


def random_arrays(count, tokens, heads, channels, dtype, images=2):
    rng = np.random.default_rng(tokens * heads)
    shape = (images, tokens, heads * channels)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(count)]


def reference(query, key, value, gradient, heads):
    """Computes the output and the three gradients in float64."""

    def split(x):
        x = np.asarray(x, np.float64)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    q, k, v, g = map(split, (query, key, value, gradient))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(2, 3) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = g @ v.swapaxes(2, 3)
    mean = (weights * d_weights).sum(axis=-1, keepdims=True)
    d_scores = weights * (d_weights - mean) * scale
    results = (
        weights @ v,
        d_scores @ k,
        d_scores.swapaxes(2, 3) @ q,
        weights.swapaxes(2, 3) @ g,
    )
    return [x.transpose(0, 2, 1, 3).reshape(query.shape) for x in results]


def check(tokens, heads, channels, dtype):
    query, key, value, gradient = random_arrays(4, tokens, heads, channels, dtype)
    # Scores of up to 10, where the softmax has something to do.
    query = query * 3
    out, pull = jax.vjp(
        lambda *x: short_attention(*x, heads, interpret=True), query, key, value
    )
    found = (out, *pull(gradient))
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for ours, expected in zip(
        found, reference(query, key, value, gradient, heads), strict=True
    ):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float64) - expected).max()
        assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "channels"),
    # Heads that fill half a register, all of one, and parts of one or two; and four
    # or less that share one.
    [
        *((17, 2, 64), (33, 3, 64), (50, 4, 80), (21, 2, 72), (19, 1, 112)),
        *((18, 2, 128), (20, 8, 32), (17, 3, 32), (19, 5, 40)),
    ],
)
def test_equals_float64_with_all_gradients(tokens, heads, channels, dtype):
    check(tokens, heads, channels, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_shapes_drawn_at_random(seed):
    rng = np.random.default_rng(seed)
    channels = 8 * int(rng.integers(8, 15))
    check(int(rng.integers(17, 90)), int(rng.integers(1, 5)), channels, jnp.float32)


@pytest.mark.parametrize("tokens", [32, 65, 80])
def test_pieces_of_the_queries_give_the_whole_result(tokens, monkeypatch):
    monkeypatch.setattr(kernels, "_ROWS", 32)
    assert len(kernels._pieces(tokens)) == -(-tokens // 32)
    check(tokens, 4, 64, jnp.float32)


def test_small_memories_process_few_heads_at_a_time(monkeypatch):
    monkeypatch.setattr(kernels, "_SMALLEST", (450_000, 600_000))
    assert kernels.heads_a_step(40, 512, 8, 4, 7) == (2, 600_000)
    check(40, 8, 64, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_small_memories_give_heads_whole_registers(dtype, monkeypatch):
    wide = (40, 4 * 80, 4, dtype, "")
    assert kernels.lanes_a_head(*wide) == 80
    monkeypatch.setattr(kernels, "_SMALLEST", (480_000, 600_000))
    assert kernels.lanes_a_head(*wide) == 128
    check(40, 4, 80, dtype)


def test_chips_with_more_memory_take_longer_sequences_of_odd_heads(monkeypatch):
    so400m, giant = (577, 1152, 16, jnp.bfloat16), (1025, 1664, 16, jnp.bfloat16)
    lanes = kernels.lanes_a_head
    for kind in ("TPU v5 lite", "TPU v6 lite"):
        assert lanes(*so400m, kind) == 72 and lanes(*giant, kind) == 104
    assert lanes(*so400m, "TPU v5") == 72
    # The others give each head a register.
    assert lanes(*giant, "TPU v5") == lanes(*giant, "TPU v4") == 128
    assert lanes(*so400m, "TPU v4") == lanes(*so400m, "") == 128
    # Sizes that fit on every chip take as many heads per step as by default.
    sizes = 577, 768, 12, 2, 7
    assert kernels.heads_a_step(*sizes, "TPU v5 lite") == kernels.heads_a_step(*sizes)
    # Nor does v5p use v5e's memory size.
    monkeypatch.setitem(kernels.VMEM, "TPU v5", (1, 1))
    assert lanes(*so400m, "TPU v5 lite") == 72 and lanes(*so400m, "TPU v5") == 128


@pytest.mark.parametrize(
    ("tokens", "width", "heads"),
    [
        (197, 768, 12),  # B/16 at 224
        (197, 512, 16),  # the decoder of masked autoencoders
        (577, 1024, 16),  # L/16 at 384
        (257, 1280, 16),  # H/14
        (257, 1408, 16),  # g/14
        (256, 1152, 16),  # So400m/14
        (257, 1792, 16),  # e/14
        (1025, 768, 12),  # B/16 at 512
        (577, 1152, 16),  # So400m/16 at 384
        (1025, 1664, 16),  # G/14 at 448
        (1100, 1024, 16),
    ],
)
def test_sizes_of_real_models_fit(tokens, width, heads):
    assert fits(tokens, width, heads, jnp.bfloat16)


@pytest.mark.parametrize(
    ("tokens", "width", "heads", "dtype"),
    [(197, 768, 32, "bfloat16"), (9000, 768, 12, "bfloat16"), (197, 768, 12, "half")],
    ids=["narrow heads", "too long", "another dtype"],
)
def test_sizes_that_do_not_fit_are_left_to_xla(tokens, width, heads, dtype):
    assert not fits(tokens, width, heads, dtype)


def text_for(platform, layout_heads=12):
    shape = jax.ShapeDtypeStruct((2, 197, layout_heads, 64), jnp.bfloat16)

    def gradients(*arrays):
        def loss(*arrays):
            mixed, _ = attend(*arrays, implementation="pallas")
            return jnp.sum(mixed.astype(jnp.float32))

        return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    traced = jax.jit(gradients).trace(shape, shape, shape)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_target_platform_decides():
    on_tpu, on_cpu = text_for("tpu"), text_for("cpu")
    # The backward kernel alone: the loss is not used, so it is removed.
    assert on_tpu.count("tpu_custom_call") == 1
    assert "197x197" not in on_tpu
    assert "tpu_custom_call" not in on_cpu
    assert "197x197" in on_cpu


def test_cross_attention_is_left_to_xla():
    query, key = (jax.random.normal(jax.random.key(n), (2, n, 2, 64)) for n in (1, 20))
    found, _ = attend(query, key, key, implementation="pallas")
    expected, _ = attend(query, key, key, implementation="explicit")
    np.testing.assert_allclose(found, expected, atol=1e-6)
