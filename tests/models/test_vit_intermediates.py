import jax
import numpy as np
import pytest

from vit_jax.models import VisionTransformer, blocks
from vit_jax.models.attention import formulations
from vit_jax.models.vit import INTERMEDIATES


@pytest.fixture
def apply(random_params, random_images):
    """Applies the model of an architecture to two images."""

    def apply(architecture, *names, images=None, **fields):
        model = VisionTransformer(architecture, **fields)
        variables = {"params": random_params(architecture)}
        if images is None:
            images = random_images(architecture)
        return model.apply(variables, images, intermediates=names)

    return apply


@pytest.mark.parametrize("scan", [False, True])
def test_shapes_by_name(scan, tiny, apply):
    architecture = tiny(registers=2, pre_logits=7)
    logits, found = apply(architecture, *INTERMEDIATES, scan=scan)
    assert logits.shape == (2, 5)
    assert {name: array.shape for name, array in found.items()} == {
        "embedding": (2, 9, 16),
        **dict.fromkeys(("norm1", "queries", "keys", "values"), (2, 2, 9, 16)),
        "tokens": (2, 2, 9, 16),
        "attention": (2, 2, 2, 9, 9),
        "normed": (2, 9, 16),
        "pooled": (2, 16),
        "pre_logits": (2, 7),
    }
    np.testing.assert_allclose(found["attention"].sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(found["pooled"], found["normed"][:, 0])


def test_two_tokens_for_two_heads(tiny, apply):
    architecture = tiny(distillation_token=True, registers=2, num_classes=0)
    names = ("tokens", "normed", "pooled", "pre_logits")
    output, found = apply(architecture, *names)
    assert found["tokens"].shape == (2, 2, 1 + 1 + 2 + 6, 16)
    mean = (found["normed"][:, 0] + found["normed"][:, 1]) / 2
    for vector in (found["pooled"], found["pre_logits"], output):
        np.testing.assert_allclose(vector, mean, atol=1e-6)


@pytest.mark.parametrize("formulation", ["auto", "xla", "explicit"])
def test_requesting_intermediates_does_not_change_the_logits(formulation, tiny, apply):
    plain = apply(tiny(), attention=formulation)
    logits, found = apply(tiny(), "attention", "tokens", attention=formulation)
    np.testing.assert_allclose(logits, plain, atol=2e-6)
    assert set(found) == {"attention", "tokens"}


def test_tokens_of_a_shallower_model_are_its_first(tiny, apply, random_params):
    architecture = tiny(depth=2)
    _, found = apply(architecture, "tokens", "embedding")
    params = random_params(architecture)
    del params["blocks_01"]
    shallow = VisionTransformer(tiny(depth=1))
    images = np.random.default_rng(7).uniform(-1, 1, size=(2, 8, 6, 3))
    _, first = shallow.apply(
        {"params": params},
        images.astype(np.float32),
        intermediates=("tokens", "embedding"),
    )
    np.testing.assert_allclose(found["tokens"][:, 0], first["tokens"][:, 0], atol=1e-6)
    np.testing.assert_array_equal(found["embedding"], first["embedding"])
    assert np.abs(found["tokens"][:, 1] - found["tokens"][:, 0]).max() > 0.1


def test_pooled_is_the_mean_of_the_patches_alone(tiny, apply):
    _, found = apply(tiny(pooling="gap", registers=2), "pooled", "normed", "pre_logits")
    mean = found["normed"][:, 3:].mean(axis=1)
    np.testing.assert_allclose(found["pooled"], mean, atol=1e-6)
    np.testing.assert_array_equal(found["pooled"], found["pre_logits"])


def test_pooled_comes_before_a_norm_that_follows_it(tiny, apply):
    architecture = tiny(pooling="gap", norm="after_pool")
    _, found = apply(architecture, "pooled", "tokens", "pre_logits")
    mean = found["tokens"][:, -1, 1:].mean(axis=1)
    np.testing.assert_allclose(found["pooled"], mean, atol=1e-6)
    assert np.abs(found["pre_logits"] - found["pooled"]).max() > 0.1


def test_without_classes_the_output_is_the_heads_input(tiny, apply):
    architecture = tiny(num_classes=0, pre_logits=7)
    features, found = apply(architecture, "pre_logits")
    assert features.shape == (2, 7)
    np.testing.assert_array_equal(features, found["pre_logits"])


def test_names_of_intermediates(tiny, apply):
    with pytest.raises(
        ValueError, match=r"no intermediates 'logits', 'x'; choose from embedding, "
    ):
        apply(tiny(), "logits", "tokens", "x")
    with pytest.raises(ValueError, match=r"no intermediates 'normed'") as error:
        apply(tiny(norm="after_pool"), "normed")
    assert "normed" not in str(error.value).split("choose from")[1]


@pytest.mark.parametrize("scan", [False, True])
def test_unrequested_intermediates_are_not_computed(
    scan, tiny, random_params, random_images
):
    architecture = tiny(registers=2)
    params, images = random_params(architecture), random_images(architecture)
    model = VisionTransformer(architecture, scan=scan)

    def jaxpr(*names):
        return jax.make_jaxpr(
            lambda params: model.apply({"params": params}, images, intermediates=names)
        )(params)

    tokens, weights = "f32[2,2,9,16]", "f32[2,2,2,9,9]"
    assert tokens in str(jaxpr("tokens"))
    assert weights in str(jaxpr("attention"))
    assert tokens not in str(jaxpr("attention"))
    assert weights not in str(jaxpr("tokens"))
    plain = jaxpr()
    assert tokens not in str(plain)
    assert weights not in str(plain)
    assert [output.aval.shape for output in plain.jaxpr.outvars] == [(2, 5)]


def test_only_requesting_weights_disables_fused_attention(tiny, apply, monkeypatch):
    asked = []

    def attend(*arguments, return_weights, **options):
        asked.append(return_weights)
        return formulations.attend(*arguments, return_weights=return_weights, **options)

    monkeypatch.setattr(blocks, "attend", attend)
    apply(tiny(), "tokens")
    assert not any(asked)
    apply(tiny(), "attention")
    assert asked.count(True) == 2
