"""The trunk of the hybrids, compared with convolutions in NumPy and float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import VisionTransformer, abstract_params
from vit_jax.models.resnet import NUMERICS, StdConv, Trunk


def reference_features(params, images, stages, numerics):
    """Computes the trunk's features directly from the description in the papers."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(images, np.float64)

    def conv(params, name, x, stride=1):
        return convolution(x, params[f"conv{name}"]["kernel"], stride, numerics)

    def norm(params, name, x):
        return group_norm(x, params[f"gn{name}"], numerics)

    x = np.maximum(norm(params, "_root", conv(params, "_root", x, 2)), 0)
    x = windows(x, 3, 2, fill=-np.inf).max(axis=(3, 4))
    for i, units in enumerate(stages, start=1):
        for j in range(1, units + 1):
            unit = params[f"block{i}"][f"unit{j}"]
            stride = 2 if i > 1 and j == 1 else 1
            y = np.maximum(norm(unit, "1", conv(unit, "1", x)), 0)
            y = np.maximum(norm(unit, "2", conv(unit, "2", y, stride)), 0)
            y = norm(unit, "3", conv(unit, "3", y))
            if j == 1:
                x = norm(unit, "_proj", conv(unit, "_proj", x, stride))
            x = np.maximum(x + y, 0)
    return x


def windows(x, size, stride, fill):
    """Cuts windows [b, new_h, new_w, size, size, c] by TensorFlow's rule for SAME.

    Where padding cannot be even, it is one more at the bottom and on the right.
    """
    pads = []
    for length in x.shape[1:3]:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    cut = [[x[:, r : r + size, c : c + size] for c in columns] for r in rows]
    return np.stack([np.stack(row, axis=1) for row in cut], axis=1)


def convolution(x, kernel, stride, numerics):
    matrix = kernel.reshape(-1, kernel.shape[-1])
    centred = matrix - matrix.mean(axis=0)
    if numerics == "google":
        matrix = centred / (matrix.std(axis=0) + 1e-5)
    else:
        matrix = centred / np.sqrt(matrix.var(axis=0) + 1e-8)
    cut = windows(x, kernel.shape[0], stride, fill=0.0)
    return cut.reshape(*cut.shape[:3], -1) @ matrix


def group_norm(x, params, numerics):
    b, h, w, c = x.shape
    groups = x.reshape(b, h * w, 32, c // 32)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    variance = (centred**2).mean(axis=(1, 3), keepdims=True)
    epsilon = {"google": 1e-6, "timm": 1e-5}[numerics]
    normed = (centred / np.sqrt(variance + epsilon)).reshape(x.shape)
    return normed * params["scale"] + params["bias"]


@pytest.fixture
def hybrid(tiny):
    """Returns a function of the stages: the smallest hybrid, with a grid of 2 × 3."""

    def architecture(stages, **changes):
        patch = 4 * 2 ** max(len(stages) - 1, 0)
        fields = {"patch_size": (patch, patch), "image_size": (2 * patch, 3 * patch)}
        return tiny(**(fields | {"trunk": stages} | changes))

    return architecture


@pytest.fixture
def trunk_of(random_params, random_images):
    """Returns a trunk's parameters and images, so small that the epsilons matter."""

    def make(architecture):
        params = random_params(architecture)["trunk"]
        return (
            jax.tree.map_with_path(
                lambda path, x: x * 1e-3 if path[-1].key == "kernel" else x, params
            ),
            random_images(architecture) * 1e-3,
        )

    return make


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("stages", [(), (2, 1)])
def test_features_equal_the_description(stages, numerics, hybrid, trunk_of):
    params, images = trunk_of(hybrid(stages))
    # Also an odd size, which is padded differently.
    images = images[:, 1:]
    trunk = Trunk(stages, numerics)
    features = jax.jit(trunk.apply)({"params": params}, images)
    expected = reference_features(params, images, stages, numerics)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())
    (other,) = NUMERICS.keys() - {numerics}
    changed = reference_features(params, images, stages, other)
    assert np.abs(changed - expected).max() > 1e-3 * np.abs(expected).max()


def test_a_hybrid_is_a_vision_transformer_on_features(
    hybrid, random_params, random_images
):
    architecture = hybrid((), patch_size=(8, 8), image_size=(16, 24))
    params, images = random_params(architecture), random_images(architecture)
    logits = jax.jit(VisionTransformer(architecture).apply)({"params": params}, images)
    trunk = {"params": params.pop("trunk")}
    features = jax.jit(Trunk(()).apply)(trunk, images)
    rest = dataclasses.replace(
        architecture,
        trunk=None,
        channels=64,
        patch_size=architecture.embed_kernel,
        image_size=features.shape[1:3],
    )
    assert (rest.patch_size, rest.image_size) == ((2, 2), (4, 6))
    expected = jax.jit(VisionTransformer(rest).apply)({"params": params}, features)
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_parameter_tree(hybrid):
    params = abstract_params(hybrid((2, 1)))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params["trunk"])

    def norm(name, channels):
        return {f"gn{name}": {"scale": (channels,), "bias": (channels,)}}

    def unit(channels, features, project):
        kernels = {
            "1": (1, 1, channels, features),
            "2": (3, 3, features, features),
            "3": (1, 1, features, 4 * features),
        }
        kernels |= {"_proj": (1, 1, channels, 4 * features)} if project else {}
        expected = {}
        for name, shape in kernels.items():
            expected |= {f"conv{name}": {"kernel": shape}} | norm(name, shape[-1])
        return expected

    assert shapes == {
        "conv_root": {"kernel": (7, 7, 3, 64)},
        **norm("_root", 64),
        "block1": {"unit1": unit(64, 64, True), "unit2": unit(256, 64, False)},
        "block2": {"unit1": unit(256, 128, True)},
    }
    assert params["patch_embed"]["kernel"].shape == (1, 1, 512, 16)


def test_every_parameter_gets_a_gradient(hybrid, random_params, random_images):
    architecture = hybrid((1,))
    params, images = random_params(architecture)["trunk"], random_images(architecture)

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.sum(jnp.sin(Trunk((1,)).apply({"params": params}, images)))

    for path, gradient in jax.tree.leaves_with_path(gradients(params)):
        assert jnp.abs(gradient).max() > 1e-4, jax.tree_util.keystr(path)


def test_remat_recomputes_units_of_the_same_tree(hybrid, equations):
    architecture = hybrid((2,))
    params = abstract_params(architecture)
    images = jnp.zeros((1, *architecture.image_size, 3))

    def recomputed(remat):
        model = VisionTransformer(architecture, remat=remat)
        initial = jax.eval_shape(model.init, jax.random.key(0), images)
        assert initial == {"params": params}
        jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, images))(params)
        names = [equation.primitive.name for equation in equations(jaxpr.jaxpr)]
        return names.count("remat2")

    assert recomputed("none") == 0
    assert recomputed("full") == 2 + architecture.depth


@pytest.mark.parametrize("numerics", NUMERICS)
def test_weights_without_spread_have_a_gradient(numerics):
    conv = StdConv(2, 1, numerics=numerics)
    images = jnp.ones((1, 2, 2, 4)).at[..., 0].set(2.0)

    @jax.jit
    @jax.grad
    def gradient(kernel):
        return conv.apply({"params": {"kernel": kernel}}, images).sum()

    assert jnp.isfinite(gradient(jnp.ones((1, 1, 4, 2)))).all()


def test_further_initial_units_change_nothing():
    images = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    key = jax.random.key(1, impl="unsafe_rbg")
    params = jax.jit(Trunk((2,)).init)(key, images)["params"]
    for unit in params["block1"].values():
        assert (unit["gn3"]["scale"] == 0).all()
        assert (unit["gn1"]["scale"] == 1).all()
        assert jnp.abs(unit["conv2"]["kernel"]).max() > 0
    features = reference_features(params, images, (2,), "google")
    fewer = reference_features(params, images, (1,), "google")
    np.testing.assert_array_equal(features, fewer)


def test_bfloat16_reaches_every_convolution_and_spares_the_statistics(
    hybrid, random_params, equations
):
    trunk = Trunk((1,), dtype=jnp.bfloat16)
    params = {"params": random_params(hybrid((1,)))["trunk"]}
    images = jnp.ones((1, 8, 8, 3), jnp.bfloat16)
    assert jax.eval_shape(trunk.apply, params, images).dtype == jnp.bfloat16
    initial = jax.eval_shape(trunk.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    dtypes = {"conv_general_dilated": [], "sqrt": [], "rsqrt": []}
    for equation in equations(jax.make_jaxpr(trunk.apply)(params, images).jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name].append(equation.invars[0].aval.dtype)
    assert dtypes["conv_general_dilated"] == [jnp.bfloat16] * 5
    assert dtypes["sqrt"] == dtypes["rsqrt"] == [jnp.float32] * 5
