import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.train.programs import build, build_predict
from vit_jax.train.setup import set_up


@pytest.fixture
def config(tiny_config):
    return tiny_config(batch_size=8, eval_batch_size=10, **{"model.depth": 1})


def test_programs_take_the_arguments_that_come_with_them(config):
    mesh = sharding.make_mesh(2, 4, 1)
    for function, rows in ((build, 8), (build_predict, 16)):
        step, (state, batch) = function(config, mesh)
        assert {x.shape[0] for x in jax.tree.leaves(batch)} == {rows}
        compiled = step.lower(state, batch).compile()
        assert compiled.memory_analysis() is not None


def test_prediction_returns_the_models_logits_for_uint8_images(config):
    mesh = sharding.make_mesh(4, 2, 1)
    step, (shapes, image) = build_predict(config, mesh)
    setup = set_up(config, mesh=mesh)
    # All random, because the head of a new model is zero.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    images = rng.integers(0, 256, image.shape, np.uint8)
    logits = step(
        jax.device_put(params, jax.tree.map(lambda x: x.sharding, shapes)),
        jax.device_put(images, image.sharding),
    )
    inputs = setup.preprocessing.normalize(jnp.asarray(images))
    plain = setup.model.apply({"params": params}, inputs)
    assert logits.shape == (16, setup.info.num_classes)
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)
