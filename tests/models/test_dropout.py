import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax.models import VisionTransformer, blocks, dropout, vit


def test_stochastic_depth_rises_linearly():
    rates = dropout.stochastic_depth_rates(0.1, 12)
    expected = [0, 0.009091, 0.045455, 0.1]
    np.testing.assert_allclose(rates[[0, 1, 5, 11]], expected, atol=1e-6)
    assert len(rates) == 12


def test_constant_stochastic_depth_is_the_same_in_all_blocks():
    rates = dropout.DEPTH_FORMS["constant"](0.2, 12)
    np.testing.assert_array_equal(rates, np.full(12, 0.2, np.float32))
    assert dropout.DEPTH_FORMS["linear"] is dropout.stochastic_depth_rates


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropped_elements_are_zero_and_the_rest_scaled(dtype):
    dropped = dropout.drop(jnp.ones((100, 20, 50), dtype), 0.2, jax.random.key(0))
    assert dropped.dtype == dtype
    kept = float(jnp.asarray(1 / np.float32(0.8), dtype))
    assert set(np.unique(dropped.astype(jnp.float32))) == {0.0, kept}
    # Three standard deviations of the mean of 100,000 draws.
    mean = dropped.astype(jnp.float32).mean()
    np.testing.assert_allclose(mean, 1, atol=3 * (0.2 / 0.8 / 100_000) ** 0.5)


def test_drops_are_independent_in_rows_channels_and_layers():
    def drops(seed):
        kept = dropout.drop(jnp.ones((8, 64, 512)), 0.1, jax.random.key(seed)) > 0
        return (np.asarray(~kept).reshape(512, 512) - 0.1) / 0.3

    first = drops(0)
    # Sums of independent variables of variance one, in standard deviations.
    sums = {
        "all": first.sum() / 512,
        "rows": ((first.sum(0) ** 2 / 512).sum() - 512) / 32,
        "channels": ((first.sum(1) ** 2 / 512).sum() - 512) / 32,
        "neighbouring rows": (first[1:] * first[:-1]).sum() / 512,
        "neighbouring channels": (first[:, 1:] * first[:, :-1]).sum() / 512,
        "rectangles": np.prod(
            [first[a::2, b::2] for a in (0, 1) for b in (0, 1)], axis=0
        ).sum()
        / 256,
        "layers": (first * drops(1)).sum() / 512,
    }
    assert {name: z for name, z in sums.items() if abs(z) > 3} == {}


def test_gradients_are_dropped_alike_without_stored_masks():
    x, key = jnp.ones((4, 7, 96)), jax.random.key(3)
    dropped, pull = jax.vjp(lambda x: dropout.drop(x, 0.5, key), x)
    np.testing.assert_array_equal(pull(x)[0], dropped)
    assert {leaf.size for leaf in jax.tree.leaves(pull)} <= {1, 2}


def test_the_mesh_does_not_change_what_is_dropped():
    def drop(x):
        return dropout.drop(x, 0.3, jax.random.key(0))

    x = jnp.ones((8, 5, 16))
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", None, "b")))
    compiled = jax.jit(drop).lower(spread).compile()
    np.testing.assert_array_equal(compiled(spread), drop(x))
    assert "all-" not in compiled.as_text()


def test_whole_examples_are_dropped_together_at_a_traced_rate():
    @jax.jit
    def skip(rate):
        x = jnp.ones((20_000, 2, 3))
        return dropout.drop(x, rate, jax.random.key(0), whole_examples=True)

    dropped = skip(jnp.float32(0.3))
    assert (dropped == dropped[:, :1, :1]).all()
    np.testing.assert_allclose(dropped.mean(), 1, atol=3 * (0.3 / 0.7 / 20_000) ** 0.5)
    assert (skip(jnp.float32(0)) == 1).all()


def test_without_key_or_rate_nothing_is_dropped():
    x = jnp.ones((2, 3, 4))
    assert dropout.drop(x, 0.5, None) is x
    assert dropout.drop(x, 0.0, jax.random.key(0)) is x
    assert dropout.drop(x, None, jax.random.key(0)) is x


def test_a_block_under_stochastic_depth_is_unbiased(tiny, random_params):
    architecture = tiny()
    block = blocks.Block(architecture.block)
    params = random_params(architecture)["blocks_00"]
    # With the MLP's branch constant, the block is linear in what is dropped.
    params["mlp"]["fc2"]["kernel"] = jnp.zeros((24, 16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 16)), jnp.float32)
    expected = block.apply({"params": params}, x)
    many = jnp.broadcast_to(x, (16_384, 6, 16))
    key, rate = jax.random.key(0), jnp.float32(0.5)
    found = jax.jit(block.apply)({"params": params}, many, key, rate)
    # A branch b becomes 0 or 2b: a standard deviation of |b| for each of the two.
    noise = 4 * 2**0.5 * jnp.abs(expected - x).max() / 16_384**0.5
    assert jnp.abs(expected - x).max() > 10 * noise
    np.testing.assert_allclose(found.mean(axis=0), expected[0], atol=noise)
    # Both branches, one, or none.
    assert len(np.unique(np.round(found[:, 0, 0], 4))) == 4


@pytest.fixture
def drops(monkeypatch, tiny, random_params, random_images):
    """Returns a function that records the arguments of `drop` in a training step."""

    def drops(**fields):
        architecture = tiny(pooling="map")
        variables = {"params": random_params(architecture)}
        calls, drop = [], dropout.drop

        def record(x, rate, key, whole_examples=False):
            numbers = key if key is None else tuple(jax.random.key_data(key).tolist())
            calls.append((x.shape, rate, whole_examples, numbers))
            return drop(x, rate, key, whole_examples)

        for module in (vit, blocks):
            monkeypatch.setattr(module, "drop", record)
        VisionTransformer(architecture, **fields).apply(
            variables,
            random_images(architecture),
            train=True,
            rngs={"dropout": jax.random.key(0, impl="unsafe_rbg")},
        )
        # A batch of one is Linen's check of the parameters' shapes.
        return [call for call in calls if call[0][0] > 1]

    return drops


def test_dropout_sites_match_the_paper(drops):
    calls = drops(dropout_rate=0.1, stochastic_depth=0.4)
    tokens, hidden = (2, 7, 16), (2, 7, 24)
    per_block = [
        (tokens, 0.1, False),  # after attention
        (tokens, "ramp", True),
        (hidden, 0.1, False),  # after the first layer of the MLP
        (tokens, 0.1, False),  # after the second
        (tokens, "ramp", True),
    ]
    expected = [(tokens, 0.1, False)]  # after the positions
    for ramp in (np.float32(0), np.float32(0.4)):
        expected += [(s, ramp if r == "ramp" else r, w) for s, r, w in per_block]
    *encoder, hidden_in_head, last_in_head = calls
    assert [call[:3] for call in encoder] == expected
    keys = [call[3] for call in encoder]
    assert len(set(keys)) == len(keys) == 11
    # The pooling head has an MLP too, which drops nothing.
    assert hidden_in_head == ((2, 1, 24), 0.0, False, None)
    assert last_in_head == ((2, 1, 16), 0.0, False, None)


def test_every_block_is_skipped_with_the_constant_rate(drops):
    calls = drops(stochastic_depth=0.4, stochastic_depth_form="constant")
    rates = [rate for _, rate, whole, _ in calls if whole]
    assert rates == [np.float32(0.4)] * 4


def test_evaluation_drops_nothing_and_training_needs_a_key(
    tiny, random_params, random_images
):
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    images = random_images(architecture)
    model = VisionTransformer(architecture, dropout_rate=0.5, stochastic_depth=0.5)
    plain = VisionTransformer(architecture).apply(variables, images)
    np.testing.assert_array_equal(model.apply(variables, images), plain)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        model.apply(variables, images, train=True)
    rngs = {"dropout": jax.random.key(0)}
    dropped = model.apply(variables, images, train=True, rngs=rngs)
    assert jnp.abs(dropped - plain).max() > 0.1
