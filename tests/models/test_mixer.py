"""The MLP-Mixer, compared with the paper's equations in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vit_jax.models import MlpMixer, abstract_params, blocks, mixer
from vit_jax.models.layers import make_layers
from vit_jax.models.mixer import INTERMEDIATES, MixerBlock


def reference_logits(a, params, images):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    (gh, gw), (ph, pw) = a.grid, a.patch_size
    images = np.asarray(images, np.float64)
    patches = images.reshape(-1, gh, ph, gw, pw, a.channels).transpose(0, 1, 3, 2, 4, 5)
    x = patches.reshape(len(images), gh * gw, -1)
    embed = params["patch_embed"]
    x = x @ embed["kernel"].reshape(-1, a.width) + embed["bias"]
    for i in range(a.depth):
        block = params[f"blocks_{i:02d}"]
        y = layer_norm(a, block["norm1"], x).transpose(0, 2, 1)
        x = x + mlp(a, block["tokens_mlp"], y).transpose(0, 2, 1)
        x = x + mlp(a, block["mlp"], layer_norm(a, block["norm2"], x))
    return dense(params["head"], layer_norm(a, params["norm"], x).mean(axis=1))


def layer_norm(a, params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + a.layernorm_epsilon)
    return normed * params["scale"] + params["bias"]


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def mlp(a, params, x):
    x = dense(params["fc1"], x)
    if a.gelu == "exact":
        x = x * (1 + erf(x / np.sqrt(2))) / 2
    else:
        x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return dense(params["fc2"], x)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "exact", "layernorm_epsilon": 0.1},
        {"channels": 1, "image_size": (4, 22), "patch_size": (2, 2)},
    ],
    ids=["paper", "numerics", "one channel, wide"],
)
def test_logits_equal_the_equations(changes, tiny_mixer, random_params, random_images):
    architecture = tiny_mixer(**changes)
    params, images = random_params(architecture), random_images(architecture)
    logits = jax.jit(MlpMixer(architecture).apply)({"params": params}, images)
    expected = reference_logits(architecture, params, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_parameter_tree(tiny_mixer):
    params = abstract_params(tiny_mixer())
    shapes = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    block = {
        "norm1/scale": (16,),
        "norm1/bias": (16,),
        "tokens_mlp/fc1/kernel": (6, 10),
        "tokens_mlp/fc1/bias": (10,),
        "tokens_mlp/fc2/kernel": (10, 6),
        "tokens_mlp/fc2/bias": (6,),
        "norm2/scale": (16,),
        "norm2/bias": (16,),
        "mlp/fc1/kernel": (16, 24),
        "mlp/fc1/bias": (24,),
        "mlp/fc2/kernel": (24, 16),
        "mlp/fc2/bias": (16,),
    }
    assert shapes == {
        "patch_embed/kernel": (4, 2, 3, 16),
        "patch_embed/bias": (16,),
        **{f"blocks_{i:02d}/{k}": v for i in (0, 1) for k, v in block.items()},
        "norm/scale": (16,),
        "norm/bias": (16,),
        "head/kernel": (16, 5),
        "head/bias": (5,),
    }


def test_initial_values(tiny_mixer):
    model = MlpMixer(tiny_mixer(width=128, mlp_dim=384), head_bias=-10.0)
    key = jax.random.key(0, impl="unsafe_rbg")
    params = jax.jit(model.init)(key, jnp.zeros((1, 8, 6, 3)))["params"]
    block = params["blocks_01"]
    kernel = block["mlp"]["fc1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 128**-0.5, rtol=0.05)
    np.testing.assert_allclose(block["tokens_mlp"]["fc1"]["kernel"].std(), 6**-0.5, 0.3)
    assert (block["mlp"]["fc1"]["bias"] == 0).all()
    assert (params["head"]["kernel"] == 0).all()
    assert (params["head"]["bias"] == -10).all()


def test_intermediates(tiny_mixer, random_params, random_images):
    architecture = tiny_mixer()
    variables = {"params": random_params(architecture)}
    images = random_images(architecture)
    model, headless = MlpMixer(architecture), MlpMixer(tiny_mixer(num_classes=0))

    @jax.jit
    def run(variables):
        logits, found = model.apply(variables, images, intermediates=INTERMEDIATES)
        return logits, found, headless.apply(variables, images)

    logits, found, vector = run(variables)
    assert {name: array.shape for name, array in found.items()} == {
        "embedding": (2, 6, 16),
        "tokens": (2, 2, 6, 16),
        "normed": (2, 6, 16),
        "pooled": (2, 16),
        "pre_logits": (2, 16),
    }
    np.testing.assert_allclose(found["pooled"], found["normed"].mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found["pooled"], found["pre_logits"])
    np.testing.assert_array_equal(found["pooled"], vector)
    head = jax.device_get(variables["params"]["head"])
    expected = dense(head, np.asarray(found["pooled"]))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_attention_and_other_images_are_refused(tiny_mixer, random_params):
    architecture = tiny_mixer()
    variables = {"params": random_params(architecture)}
    model = MlpMixer(architecture)
    with pytest.raises(ValueError, match=r"has no intermediates 'attention'; choose"):
        model.apply(variables, jnp.zeros((1, 8, 6, 3)), intermediates=("attention",))
    with pytest.raises(ValueError, match=r"expected .* with \(8, 6, 3\) after the"):
        model.apply(variables, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="remat is 'half'"):
        MlpMixer(architecture, remat="half").apply(variables, jnp.zeros((1, 8, 6, 3)))


def test_every_parameter_gets_a_gradient(tiny_mixer, random_params, random_images):
    architecture = tiny_mixer()
    params, images = random_params(architecture), random_images(architecture)
    model = MlpMixer(architecture, scan=True, remat="full")

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images)))

    for path, gradient in jax.tree.leaves_with_path(gradients(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        largest = jnp.abs(gradient).max()
        if name.endswith("tokens_mlp/fc2/bias"):
            # Adds the same to all channels of a token, which every later norm removes.
            assert largest < 1e-5, name
        else:
            assert largest > 1e-4, name


def test_loop_and_scan_are_the_same_tree(tiny_mixer, equations):
    architecture = tiny_mixer(depth=3)
    params = abstract_params(architecture)
    images = jnp.zeros((1, 8, 6, 3))

    def primitives(**fields):
        model = MlpMixer(architecture, **fields)
        initial = jax.eval_shape(model.init, jax.random.key(0), images)
        assert initial == {"params": params}
        jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, images))(params)
        return [equation.primitive.name for equation in equations(jaxpr.jaxpr)]

    loop, scan = primitives(), primitives(scan=True, remat="full")
    assert (loop.count("tanh"), scan.count("tanh")) == (6, 2)
    assert (loop.count("remat2"), scan.count("remat2")) == (0, 1)


def test_dropout_needs_training_and_depends_on_the_key(
    tiny_mixer, random_params, random_images
):
    architecture = tiny_mixer()
    params, images = random_params(architecture), random_images(architecture)
    model = MlpMixer(architecture, dropout_rate=0.2, stochastic_depth=0.4)

    @jax.jit
    def run(key):
        variables = {"params": params}
        trained = model.apply(variables, images, train=True, rngs={"dropout": key})
        return trained, model.apply(variables, images)

    (first, plain), (second, _) = (
        run(jax.random.key(seed, impl="unsafe_rbg")) for seed in (0, 1)
    )
    expected = reference_logits(architecture, params, images)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    assert jnp.abs(first - plain).max() > 0.01
    assert jnp.abs(first - second).max() > 0.01


def test_dropout_sites_of_a_mixer(tiny_mixer, random_params, monkeypatch):
    sites, keys, drop = [], [], mixer.drop

    def record(x, rate, key, whole_examples=False):
        sites.append((x.shape, rate, whole_examples))
        keys.append(jax.random.key_data(key))
        return drop(x, rate, key, whole_examples)

    architecture = tiny_mixer()
    params = {"params": random_params(architecture)["blocks_00"]}
    for module in (mixer, blocks):
        monkeypatch.setattr(module, "drop", record)
    block = MixerBlock(architecture, dropout_rate=0.1)

    @jax.jit
    def drawn_with(key):
        block.apply(params, jnp.ones((2, 6, 16)), key, np.float32(0.4))
        return keys

    drawn = drawn_with(jax.random.key(0, impl="unsafe_rbg"))
    whole = ((2, 6, 16), np.float32(0.4), True)
    assert sites == [
        ((2, 16, 10), 0.1, False),
        ((2, 16, 6), 0.1, False),
        whole,
        ((2, 6, 24), 0.1, False),
        ((2, 6, 16), 0.1, False),
        whole,
    ]
    assert len({tuple(key.tolist()) for key in drawn}) == len(sites)


def test_bfloat16_reaches_every_product_but_the_heads(
    tiny_mixer, random_params, equations
):
    architecture = tiny_mixer()
    model = MlpMixer(architecture, jnp.bfloat16)
    params = {"params": random_params(architecture)}
    images = jnp.zeros((2, 8, 6, 3))
    logits, found = jax.eval_shape(
        lambda params: model.apply(params, images, intermediates=("tokens", "pooled")),
        params,
    )
    assert logits.dtype == jnp.float32
    assert {array.dtype for array in found.values()} == {jnp.dtype("bfloat16")}
    initial = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(lambda params: model.apply(params, images))(params).jaxpr
    dtypes = {"conv_general_dilated": [], "dot_general": [], "rsqrt": []}
    for equation in equations(jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].append(equation.invars[0].aval.dtype)
    assert dtypes["conv_general_dilated"] == [jnp.bfloat16]
    assert dtypes["dot_general"] == [jnp.bfloat16] * 8 + [jnp.float32]
    assert dtypes["rsqrt"] == [jnp.float32] * 5


def test_a_block_in_bfloat16(tiny_mixer):
    block = MixerBlock(tiny_mixer(), make_layers(jnp.bfloat16))
    tokens = jnp.ones((2, 6, 16), jnp.bfloat16)
    params = jax.eval_shape(block.init, jax.random.key(0), tokens)
    output = jax.eval_shape(block.apply, params, tokens)
    assert output.dtype == jnp.bfloat16
