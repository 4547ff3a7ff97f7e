import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import VisionTransformer, build
from vit_jax.models.taps import OF_BLOCKS, padded

DEEP = {"prompts": 3, "prompts_deep": True}


@pytest.fixture
def make(random_params, random_images):
    """Makes the function that a model computes of two images."""

    def make(architecture, **fields):
        model = build(architecture, **fields)
        variables = {"params": random_params(architecture)}
        images = random_images(architecture)
        return lambda *names, **how: model.apply(
            variables, images, intermediates=names, **how
        )

    return make


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "fields", [{}, {"registers": 2, "pooling": "gap"}, DEEP, {"prompts": 3}]
)
@pytest.mark.parametrize("name", OF_BLOCKS)
def test_gradients_with_respect_to_intermediates(fields, name, scan, tiny, make):
    run = make(tiny(**fields), scan=scan)
    _, found = run(name)
    shape = found[name].shape
    rng = np.random.default_rng(3)

    def logit(added):
        return run(added={name: added})[:, 2].sum()

    gradient = jax.jit(jax.grad(logit))(jnp.zeros(shape))
    assert gradient.shape == shape
    # Each layer's own: a small change of one layer changes the logit by its gradient.
    for layer in range(2):
        change = np.zeros(shape, np.float32)
        change[:, layer] = rng.normal(size=change[:, layer].shape)
        step = 1e-2 / np.abs(change).max()
        both = [float(logit(jnp.asarray(sign * step * change))) for sign in (1, -1)]
        expected = (both[0] - both[1]) / (2 * step)
        product = float((gradient * change).sum())
        np.testing.assert_allclose(product, expected, rtol=2e-2, atol=2e-4)
    # The last block's queries and tokens matter to the pooled token alone.
    assert float(jnp.abs(gradient[:, 0]).max()) > 1e-6


def test_a_layers_gradient_is_not_that_of_another(tiny, make):
    run = make(tiny())
    shape = (2, 2, 2, 7, 7)

    def logit(added, layers):
        return run(added={"attention": added}, layers=layers)[:, 2].sum()

    both = jax.grad(logit)(jnp.zeros(shape), None)
    for layer in range(2):
        alone = jax.grad(logit)(jnp.zeros((2, 1, *shape[2:])), (layer,))
        np.testing.assert_allclose(alone[:, 0], both[:, layer], rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(both[:, 0] - both[:, 1]).max()) > 1e-4


@pytest.mark.parametrize("fields", [{}, DEEP])
def test_some_layers_alone(fields, tiny, make):
    run = make(tiny(depth=3, **fields))
    names = [*OF_BLOCKS, *(["prompt_attention"] if fields else [])]
    logits, found = run(*names)
    same, chosen = run(*names, layers=(0, 2))
    np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-6)
    assert set(chosen) == set(names)
    for name in names:
        expected = found[name][:, [0, 2]]
        np.testing.assert_allclose(chosen[name], expected, rtol=1e-5, atol=1e-6)
    for wrong in ((2, 0), (1, 1), (3,), (-1,)):
        with pytest.raises(ValueError, match="expected ascending ones below 3"):
            run("tokens", layers=wrong)


def test_other_layers_weights_are_not_kept(tiny, random_params, random_images):
    architecture = tiny(depth=3)
    params, images = random_params(architecture), random_images(architecture)
    model = VisionTransformer(architecture, attention="per_head", scan=True)
    text = jax.make_jaxpr(
        lambda params: model.apply(
            {"params": params}, images, intermediates=("attention",), layers=(1,)
        )[1]
    )(params)
    # A block's weights arise once, in the block that was asked for.
    assert str(text).count("f32[2,2,7,7] = exp") == 1
    assert "f32[2,3,2,7,7]" not in str(text)


def test_attention_of_a_map_head(tiny, make):
    run = make(tiny(pooling="map"))
    plain = run()
    logits, found = run("map_attention")
    weights = found["map_attention"]
    assert weights.shape == (2, 2, 6)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(logits, plain, atol=2e-6)

    def logit(added):
        return run(added={"map_attention": added})[:, 1].sum()

    gradient = jax.grad(logit)(jnp.zeros(weights.shape))
    step = jnp.zeros(weights.shape).at[1, 0, 4].set(1e-2)
    expected = float(logit(step) - logit(-step)) / 2e-2
    np.testing.assert_allclose(float(gradient[1, 0, 4]), expected, rtol=1e-2)
    with pytest.raises(ValueError, match="no intermediates 'map_attention'"):
        make(tiny())("map_attention")


def test_a_mixer_has_tokens(tiny_mixer, make):
    run = make(tiny_mixer())
    _, found = run("tokens")
    shape = found["tokens"].shape
    gradient = jax.grad(lambda x: run(added={"tokens": x})[:, 2].sum())(
        jnp.zeros(shape)
    )
    step = jnp.zeros(shape).at[0, 0, 3, 5].set(1e-2)
    both = [float(run(added={"tokens": s * step})[:, 2].sum()) for s in (1, -1)]
    expected = (both[0] - both[1]) / 2e-2
    np.testing.assert_allclose(float(gradient[0, 0, 3, 5]), expected, rtol=2e-2)
    alone = run("tokens", layers=(1,))[1]["tokens"]
    np.testing.assert_allclose(alone, found["tokens"][:, 1:], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no intermediates 'keys'; choose from tokens"):
        run(added={"keys": jnp.zeros(shape)})


def test_names_of_what_is_added(tiny, make):
    run = make(tiny())
    with pytest.raises(ValueError, match="no intermediates 'x'; choose from norm1"):
        run(added={"x": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"has shape \(2, 2, 8, 7\), the array has"):
        run(added={"attention": jnp.zeros((2, 2, 2, 8, 7))})


def test_padding():
    value = jnp.zeros((2, 3), jnp.bfloat16)
    found = padded(jnp.ones((1, 2)), value)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0]])
    assert found.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="has shape"):
        padded(jnp.ones((2,)), value)
