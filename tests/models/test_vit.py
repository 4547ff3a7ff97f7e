import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from vit_jax.models import VisionTransformer, abstract_params

FULL = {
    "layer_scale": True,
    "registers": 3,
    "pooling": "map",
    "pre_logits": 7,
    "num_classes": 5,
}


def shapes_of(architecture):
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(abstract_params(architecture))
    }


def test_the_parameter_tree(tiny):
    block = {f"norm{n}/{name}": (16,) for n in (1, 2) for name in ("scale", "bias")} | {
        "layer_scale1": (16,),
        "layer_scale2": (16,),
    }
    mlp = {
        "mlp/fc1/kernel": (16, 24),
        "mlp/fc1/bias": (24,),
        "mlp/fc2/kernel": (24, 16),
        "mlp/fc2/bias": (16,),
    }
    attention = {
        f"attention/{name}/{leaf}": shape
        for name in ("query", "key", "value", "out")
        for leaf, shape in (("kernel", (16, 16)), ("bias", (16,)))
    }
    expected = {
        "patch_embed/kernel": (4, 2, 3, 16),
        "patch_embed/bias": (16,),
        "cls": (1, 1, 16),
        "registers": (1, 3, 16),
        "pos_embed": (1, 2, 3, 16),
        "pos_embed_prefix": (1, 1, 16),
        "norm/scale": (16,),
        "norm/bias": (16,),
        "map_head/probe": (1, 1, 16),
        "map_head/norm/scale": (16,),
        "map_head/norm/bias": (16,),
        "pre_logits/kernel": (16, 7),
        "pre_logits/bias": (7,),
        "head/kernel": (7, 5),
        "head/bias": (5,),
    }
    for name, shape in (mlp | attention).items():
        expected[f"map_head/{name}"] = shape
    for name, shape in (block | mlp | attention).items():
        expected |= {f"blocks_00/{name}": shape, f"blocks_01/{name}": shape}
    assert shapes_of(tiny(**FULL)) == expected


def test_parameters_of_a_distilled_model_and_of_registers_with_positions(tiny):
    distilled = shapes_of(tiny(distillation_token=True))
    assert distilled["distillation"] == (1, 1, 16)
    assert distilled["pos_embed_prefix"] == (1, 2, 16)
    assert distilled["head_distillation/kernel"] == (16, 5)
    assert distilled["head_distillation/bias"] == (5,)
    one_head = shapes_of(tiny(distillation_token=True, distillation_head=False))
    assert distilled.keys() - one_head.keys() == {
        "head_distillation/kernel",
        "head_distillation/bias",
    }
    registers = shapes_of(tiny(registers=3, register_positions=True))
    assert registers["pos_embed_prefix"] == (1, 4, 16)
    assert "distillation" not in registers


def test_options_left_out_leave_no_parameters(tiny):
    plain = shapes_of(
        tiny(
            pooling="gap",
            class_token=False,
            class_token_position=False,
            posemb="sincos2d",
            num_classes=0,
            depth=1,
        )
    )
    assert {name.split("/")[0] for name in plain} == {
        "patch_embed",
        "blocks_00",
        "norm",
    }
    assert not any("layer_scale" in name for name in plain)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_random_head_is_normal_around_zero(tiny, distilled):
    architecture = tiny(width=128, num_classes=200, distillation_token=distilled)
    model = VisionTransformer(architecture, head_std=0.02, head_bias=-3.0)
    key = jax.random.key(0, impl="unsafe_rbg")
    init = jax.jit(lambda: model.init(key, jnp.zeros((1, 8, 6, 3)))["params"])
    params = jax.device_get(init())
    for name in ["head", "head_distillation"][: 1 + distilled]:
        kernel = params[name]["kernel"]
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.02)
        np.testing.assert_allclose(kernel.mean(), 0, atol=4 * 0.02 / 160)
        assert 3 < np.abs(kernel).max() / 0.02 < 6
        assert (params[name]["bias"] == -3).all()


def test_initial_values(tiny):
    # Wide enough for precise statistics of a single matrix.
    architecture = tiny(width=128, mlp_dim=384, **FULL)
    model = VisionTransformer(architecture, head_bias=-10.0, layer_scale_init=1e-5)
    images = jnp.zeros((1, 8, 6, 3))
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster than the default
    params = jax.device_get(jax.jit(model.init)(key, images)["params"])
    assert (params["head"]["kernel"] == 0).all()
    assert (params["head"]["bias"] == -10).all()
    assert (params["cls"] == 0).all()
    np.testing.assert_allclose(params["pos_embed"].std(), 0.02, rtol=0.1)
    assert params["registers"].std() > 0.01
    conv = params["patch_embed"]["kernel"]
    np.testing.assert_allclose(conv.std(), (4 * 2 * 3) ** -0.5, rtol=0.05)
    block = params["blocks_01"]
    np.testing.assert_allclose(block["layer_scale2"], 1e-5)
    for kernel in (
        block["attention"]["query"]["kernel"],
        block["attention"]["out"]["kernel"],
        block["mlp"]["fc1"]["kernel"],
        block["mlp"]["fc2"]["kernel"],
    ):
        limit = (6 / sum(kernel.shape)) ** 0.5  # Glorot and Bengio's uniform
        assert limit * 0.99 < np.abs(kernel).max() <= limit
    assert (block["attention"]["value"]["bias"] == 0).all()
    np.testing.assert_allclose(block["mlp"]["fc1"]["bias"].std(), 1e-6, rtol=0.2)
    other = params["blocks_00"]["mlp"]["fc1"]["kernel"]
    assert np.abs(block["mlp"]["fc1"]["kernel"] - other).max() > 0.01
    logits = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_array_equal(logits, np.full((1, 5), -10.0))


def test_patch_convolution_is_reshape_and_matrix_product(
    tiny, random_params, random_images
):
    architecture = tiny(pooling="gap", class_token=False, class_token_position=False)
    params, images = random_params(architecture), random_images(architecture)
    params["pos_embed"] = jnp.zeros_like(params["pos_embed"])
    _, found = VisionTransformer(architecture).apply(
        {"params": params}, images, intermediates=("embedding",)
    )
    patches = np.asarray(images).reshape(2, 2, 4, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = np.asarray(params["patch_embed"]["kernel"]).reshape(24, 16)
    expected = patches.reshape(2, 6, 24) @ kernel + np.asarray(
        params["patch_embed"]["bias"]
    )
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)


def test_without_positions_the_encoder_is_permutation_equivariant(
    tiny, random_params, random_images
):
    architecture = tiny(image_size=(8, 8))
    params, images = random_params(architecture), random_images(architecture)
    order = np.random.default_rng(0).permutation(8)

    def outputs(params, images):
        model = VisionTransformer(architecture)
        logits, found = model.apply(
            {"params": params}, images, intermediates=("tokens",)
        )
        return logits, found["tokens"]

    patches = images.reshape(2, 2, 4, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    shuffled = patches.reshape(2, 8, 4, 2, 3)[:, order].reshape(2, 2, 4, 4, 2, 3)
    shuffled = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 3)
    assert not (shuffled == images).all()

    with_positions, _ = outputs(params, images)
    shuffled_with_positions, _ = outputs(params, shuffled)
    assert jnp.abs(with_positions - shuffled_with_positions).max() > 0.01

    params["pos_embed"] = jnp.zeros_like(params["pos_embed"])
    logits, tokens = outputs(params, images)
    logits_of_shuffled, tokens_of_shuffled = outputs(params, shuffled)
    np.testing.assert_allclose(logits_of_shuffled, logits, atol=2e-6)
    moved = np.concatenate([[0], 1 + order])  # the class token stays first
    np.testing.assert_allclose(tokens_of_shuffled, tokens[:, :, moved], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        FULL,
        {"pooling": "gap", "registers": 2, "layer_scale": True},
        {"norm": "after_pool", "pre_logits": 4},
        {"distillation_token": True, "registers": 2, "register_positions": True},
    ],
    ids=["map", "gap", "cls", "distilled"],
)
def test_every_parameter_gets_a_gradient(changes, tiny, random_params, random_images):
    architecture = tiny(**changes)
    params, images = random_params(architecture), random_images(architecture)
    model = VisionTransformer(architecture)

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images)))

    for path, gradient in jax.tree.leaves_with_path(gradients(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        largest = jnp.abs(gradient).max()
        if name.endswith("attention/key/bias"):
            # Adds the same to all scores of a query, which the softmax ignores.
            assert largest < 1e-5, name
        else:
            assert largest > 1e-4, name


@pytest.mark.parametrize("image_size", [(4, 2), (4, 20), (16, 6)])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_rectangles_and_any_number_of_channels(tiny, image_size, channels):
    architecture = tiny(image_size=image_size, channels=channels)
    model = VisionTransformer(architecture)
    images = jax.ShapeDtypeStruct((2, *image_size, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, found = jax.eval_shape(
        lambda params, images: model.apply(params, images, intermediates=("tokens",)),
        params,
        images,
    )
    assert logits.shape == (2, 5)
    tokens = 1 + image_size[0] * image_size[1] // 8
    assert found["tokens"].shape == (2, 2, tokens, 16)


def test_images_of_another_shape_are_refused(tiny, random_params):
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    model = VisionTransformer(architecture)
    for shape in ((2, 6, 8, 3), (2, 8, 6, 1)):
        with pytest.raises(ValueError, match=r"shape \(2, .*\(8, 6, 3\) after the"):
            model.apply(variables, jnp.zeros(shape))


def test_images_without_batch_or_as_bytes_are_refused(tiny, random_params, monkeypatch):
    # As for a user: no type checker before the model's own check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    model = VisionTransformer(architecture)
    with pytest.raises(ValueError, match=r"images have shape \(8, 6, 3\), expected"):
        model.apply(variables, jnp.zeros((8, 6, 3)))
    with pytest.raises(ValueError, match="are uint8, expected floating point"):
        model.apply(variables, jnp.zeros((2, 8, 6, 3), jnp.uint8))


def test_unknown_execution_choices_are_refused(tiny, random_params, random_images):
    architecture = tiny()
    variables = {"params": random_params(architecture)}
    images = random_images(architecture)
    with pytest.raises(ValueError, match="remat is 'half', expected none, attention"):
        VisionTransformer(architecture, remat="half").apply(variables, images)
    with pytest.raises(ValueError, match="attention is 'flash', expected one of"):
        VisionTransformer(architecture, attention="flash").apply(variables, images)
