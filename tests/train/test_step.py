import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.train.setup import set_up
from vit_jax.train.step import build, build_eval, build_predict


def _config():
    config = default_config()
    config.model.variant = "Ti/16"
    config.image_size = (16,)
    config.batch_size, config.eval_batch_size = 8, 10
    config.total_steps, config.warmup_steps = 10, 0
    return config


def _real(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(
            rng.integers(0, 2, x.shape).astype(x.dtype), x.sharding
        ),
        shapes,
    )


def test_programs_take_the_arguments_that_come_with_them():
    mesh = sharding.make_mesh(2, 4, 1)
    for function, rows in ((build, 8), (build_eval, 16), (build_predict, 16)):
        step, (state, batch) = function(_config(), mesh)
        assert {x.shape[0] for x in jax.tree.leaves(batch)} == {rows}
        compiled = step.lower(state, batch).compile()
        assert compiled.memory_analysis() is not None


def test_prediction_gives_the_logits_of_the_model_on_uint8_images():
    mesh = sharding.make_mesh(4, 2, 1)
    step, (shapes, images) = build_predict(_config(), mesh)
    setup = set_up(_config(), mesh=mesh)
    params = jax.jit(
        setup.init_params, out_shardings=jax.tree.map(lambda x: x.sharding, shapes)
    )()
    images = _real(images)
    logits = step(params, images)
    inputs = setup.preprocessing.normalize(jnp.asarray(np.asarray(images)))
    plain = setup.model.apply({"params": jax.device_get(params)}, inputs)
    assert logits.shape == (16, setup.info.num_classes)
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)
