"""The logit lens on pooled tokens and on patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inspect import logit_lens, patch_lens

KINDS = {
    "class token": {"depth": 3},
    "pre-logits": {"pre_logits": 7},
    "distilled": {"distillation_token": True, "registers": 1},
    "mean": {"pooling": "gap", "registers": 2},
    "normed after pooling": {"pooling": "gap", "norm": "after_pool"},
    "class token normed after": {"norm": "after_pool"},
    "both": {"pooling": "cls_gap"},
    "map": {"pooling": "map"},
    "map normed after": {"pooling": "map", "norm": "after_pool"},
    "prompts": {"prompts": 2},
    "deep prompts": {"prompts": 2, "prompts_deep": True},
    "mixer": {"mixer": True},
}


def normed(x, params):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x * np.asarray(params["scale"]) + np.asarray(params["bias"])


def dense(x, params):
    return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_layers_of_the_lens(fields, make_model, make_images):
    model = make_model(**fields)
    images, depth = make_images(model), model.architecture.depth
    found = logit_lens(model, images)
    assert found.shape == (2, depth, 5)
    np.testing.assert_allclose(found[:, -1], model(images), rtol=1e-6, atol=1e-6)
    # After the first block, the logits of a model that ends there.
    short = model.module.clone(
        architecture=dataclasses.replace(model.architecture, depth=1)
    )
    expected = short.apply({"params": model.params}, images)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found[:, 0] - found[:, -1]).max() > 0.1
    chosen = logit_lens(model, images, (-1, 0))
    np.testing.assert_allclose(chosen, found[:, [-1, 0]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_each_patch_is_pooled_alone(fields, make_model, make_images):
    model = make_model(**fields)
    images, a = make_images(model), model.architecture
    found = patch_lens(model, images, (0, -1))
    assert found.shape == (2, 2, 2, 3, 5)
    p = {name: jax.tree.map(np.asarray, x) for name, x in model.params.items()}
    x = np.asarray(model.features(images, (0, -1)).patches)
    pooling = getattr(a, "pooling", "gap")
    before = getattr(a, "norm", "before_pool") == "before_pool"
    x = normed(x, p["norm"]) if before else x
    if pooling == "map":
        # A lone patch gets all of the head's attention.
        head = p["map_head"]
        x = dense(dense(x, head["attention"]["value"]), head["attention"]["out"])
        y = dense(normed(x, head["norm"]), head["mlp"]["fc1"])
        x = x + dense(np.asarray(jax.nn.gelu(y)), head["mlp"]["fc2"])
    x = x if before else normed(x, p["norm"])
    if pooling == "cls_gap":
        x = np.concatenate([x, x], axis=-1)
    if "pre_logits" in p:
        x = np.tanh(dense(x, p["pre_logits"]))
    heads = [p[name] for name in ("head", "head_distillation") if name in p]
    assert len(heads) == (2 if "distillation_token" in fields else 1)
    expected = np.mean([dense(x, head) for head in heads], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if pooling == "gap" and before:
        mean = np.asarray(found)[:, -1].mean(axis=(1, 2))
        np.testing.assert_allclose(mean, model(images), rtol=1e-5, atol=1e-5)
    last = patch_lens(model, images)
    np.testing.assert_allclose(last, found[:, 1:], rtol=1e-5, atol=1e-5)


def test_wrong_arguments(make_model, make_images):
    model = make_model()
    images = make_images(model)
    for lens in (logit_lens, patch_lens):
        with pytest.raises(UserError, match=r"layers \[2\]: the model has 2 blocks"):
            lens(model, images, (0, 2))
        with pytest.raises(UserError, match=r"images have shape \(4,\), expected"):
            lens(model, jnp.zeros((4,)))
        with pytest.raises(
            UserError, match="this model has no head, so it has no logi"
        ):
            lens(make_model(num_classes=0), images)
