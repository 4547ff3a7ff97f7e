"""The model, compared with the paper's equations in NumPy and float64."""

import jax
import numpy as np
import pytest
from scipy.special import erf

from vit_jax.models import VisionTransformer
from vit_jax.models.layers import GELU


def reference_logits(a, params, images):
    """Computes logits of the Vision Transformer `a`, one image at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return np.stack([logits_of_image(a, params, image) for image in images])


def logits_of_image(a, params, image):
    (gh, gw), (ph, pw) = a.grid, a.patch_size
    image = np.asarray(image, np.float64)
    patches = image.reshape(gh, ph, gw, pw, a.channels).transpose(0, 2, 1, 3, 4)
    patches = patches.reshape(gh * gw, ph * pw * a.channels)
    embed = params["patch_embed"]
    x = patches @ embed["kernel"].reshape(-1, a.width) + embed["bias"]
    x = x + positions(a, params)
    prefix = []
    rows = list(params.get("pos_embed_prefix", [[]])[0])
    for name, positioned in (
        ("cls", a.class_token_position),
        ("distillation", a.class_token_position),
        ("registers", a.register_positions),
    ):
        for token in params[name][0] if name in params else []:
            prefix.append(token + rows.pop(0) if positioned else token)
    assert not rows
    x = np.stack([*prefix, *x])
    for i in range(a.depth):
        block = params[f"blocks_{i:02d}"]
        y = layer_norm(a, block["norm1"], x)
        y = attention(a, block["attention"], y, y)
        x = x + y * (block["layer_scale1"] if a.layer_scale else 1.0)
        y = mlp(a, block["mlp"], layer_norm(a, block["norm2"], x))
        x = x + y * (block["layer_scale2"] if a.layer_scale else 1.0)
    if a.norm == "before_pool":
        x = layer_norm(a, params["norm"], x)
    if a.distillation_token and a.distillation_head:
        return (
            dense(params["head"], x[0]) + dense(params["head_distillation"], x[1])
        ) / 2
    x = pooled(a, params, x)
    if a.norm == "after_pool":
        x = layer_norm(a, params["norm"], x)
    if a.pre_logits:
        x = np.tanh(dense(params["pre_logits"], x))
    return dense(params["head"], x)


def positions(a, params):
    if a.posemb == "learned":
        return params["pos_embed"].reshape(-1, a.width)
    quarter = a.width // 4
    last = quarter - 1 if a.sincos_denominator == "big_vision" else quarter
    rows = []
    for y in range(a.grid[0]):
        for x in range(a.grid[1]):
            omega = [10000 ** (-j / last) for j in range(quarter)]
            rows.append(
                [np.sin(x * w) for w in omega]
                + [np.cos(x * w) for w in omega]
                + [np.sin(y * w) for w in omega]
                + [np.cos(y * w) for w in omega]
            )
    return np.array(rows)


def pooled(a, params, x):
    patches = x[a.class_token + a.registers :]
    if a.pooling == "cls":
        return x[0]
    if a.pooling == "gap":
        return patches.mean(axis=0)
    if a.pooling == "cls_gap":
        return np.concatenate([x[0], patches.mean(axis=0)])
    head = params["map_head"]
    x = attention(a, head["attention"], head["probe"][0], patches)
    return (x + mlp(a, head["mlp"], layer_norm(a, head["norm"], x)))[0]


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(a, params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + a.layernorm_epsilon)
    return normed * params["scale"] + params["bias"]


def attention(a, params, x, source):
    query, key, value = (
        dense(params[name], tokens)
        for name, tokens in (("query", x), ("key", source), ("value", source))
    )
    k = a.width // a.num_heads
    heads = []
    for h in range(a.num_heads):
        channels = slice(h * k, (h + 1) * k)
        scores = np.exp(query[:, channels] @ key[:, channels].T / np.sqrt(k))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        heads.append(weights @ value[:, channels])
    return dense(params["out"], np.concatenate(heads, axis=-1))


def mlp(a, params, x):
    x = dense(params["fc1"], x)
    if a.gelu == "exact":
        x = x * (1 + erf(x / np.sqrt(2))) / 2
    else:
        x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return dense(params["fc2"], x)


ARCHITECTURES = {
    "paper": {},
    "exact gelu": {"gelu": "exact"},
    "large epsilon": {"layernorm_epsilon": 0.1},
    "pre_logits": {"pre_logits": 10},
    "average": {"pooling": "gap", "class_token": False, "class_token_position": False},
    "average beside a class token and registers": {"pooling": "gap", "registers": 2},
    "class token and average": {"pooling": "cls_gap", "registers": 2},
    "class token and average, pre_logits": {"pooling": "cls_gap", "pre_logits": 10},
    "average, norm after": {"pooling": "gap", "norm": "after_pool"},
    "attention pooling": {"pooling": "map", "gelu": "exact", "pre_logits": 7},
    "registers": {"registers": 3, "num_heads": 4},
    "registers with positions": {"registers": 3, "register_positions": True},
    "registers alone with positions": {
        "registers": 2,
        "register_positions": True,
        "class_token_position": False,
    },
    "distilled": {"distillation_token": True},
    "distilled, read by the class token alone": {
        "distillation_token": True,
        "distillation_head": False,
        "pre_logits": 7,
    },
    "distilled, no position for its tokens": {
        "distillation_token": True,
        "class_token_position": False,
        "registers": 2,
    },
    "big_vision positions": {"posemb": "sincos2d", "class_token_position": False},
    "mae positions": {"posemb": "sincos2d", "sincos_denominator": "mae"},
    "deit3": {"layer_scale": True, "class_token_position": False, "gelu": "exact"},
    "one channel, wide": {"channels": 1, "image_size": (4, 22), "patch_size": (2, 2)},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_the_equations(name, tiny, random_params, random_images):
    architecture = tiny(**ARCHITECTURES[name])
    params, images = random_params(architecture), random_images(architecture)
    logits = jax.jit(VisionTransformer(architecture).apply)({"params": params}, images)
    expected = reference_logits(architecture, params, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_every_architecture_above_computes_something_else(
    tiny, random_params, random_images
):
    # Only then do the comparisons above show that each field has its effect.
    images = random_images(tiny())
    results = []
    for name, changes in ARCHITECTURES.items():
        if name != "one channel, wide":
            architecture = tiny(**changes)
            results.append(
                reference_logits(architecture, random_params(architecture), images)
            )
    for i, one in enumerate(results):
        for other in results[:i]:
            assert np.abs(one - other).max() > 1e-4


def test_gelu_golden_values():
    x = np.float32([-1, 0.5, 1, 2])
    tanh = [-0.158808, 0.345714, 0.841192, 1.954598]
    exact = [-0.158655, 0.345731, 0.841345, 1.954500]
    np.testing.assert_allclose(GELU["tanh"](x), tanh, atol=1e-6)
    np.testing.assert_allclose(GELU["exact"](x), exact, atol=1e-6)
