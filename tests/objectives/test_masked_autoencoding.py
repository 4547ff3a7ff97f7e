"""Masked autoencoding: the published losses and gradients, and their parts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.models.decoder import make_masking, num_kept
from vit_jax.models.pixels import normalized_patches, patch_values
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mae.npz"
CONFIG = {
    "objective": "masked_autoencoding",
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 24,
    "model.num_heads": 2,
    "model.channels": 3,
    "model.variant": "Ti/4",
    "model.posemb": "sincos2d",
    "model.sincos_denominator": "mae",
    "model.gelu": "exact",
    "image_size": (16,),
    "eval_every": 0,
    "augment.train": "resize(18)|random_crop",
}
DECODER = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}


@pytest.fixture
def objective_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**CONFIG, **dict(values)})
        config.objective_options = ConfigDict({**DECODER, **options})
        return set_up(config).objective

    return make


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["pixels", "normalized"])
def test_losses_and_gradients_are_those_of_hugging_face(
    objective_of, golden, kind, tree
):
    objective = objective_of(normalize_pixels=kind == "normalized")
    batch = {
        "image": golden["images"],
        "noise": golden["noise"],
        "mask": np.ones(3, np.float32),
    }

    batch = jax.tree.map(jnp.asarray, batch)

    def loss(params):
        context = Context((), (), jnp.int32(0), None)
        total, weight = objective.loss(params, batch, jax.random.key(0), context)[0][
            "loss"
        ]
        return total / weight

    value, grads = jax.jit(jax.value_and_grad(loss))(tree(golden, "params/"))
    np.testing.assert_allclose(value, golden[f"{kind}/loss"], rtol=1e-6)
    expected = tree(golden, f"{kind}/grads/")
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for found, theirs in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)


def test_patches_of_the_smallest_noise_are_kept_in_its_order():
    noise = jnp.array([[0.7, 0.1, 0.9, 0.3, 0.5, 0.2, 0.8, 0.4]])
    masking = make_masking(noise, num_kept(8, 0.75))
    assert masking.kept.tolist() == [[1, 5]]
    assert masking.restore.tolist() == [[5, 0, 7, 2, 4, 1, 6, 3]]
    assert masking.masked.astype(int).tolist() == [[1, 0, 1, 1, 1, 0, 1, 1]]


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(196, 0.75, 49), (256, 0.75, 64), (100, 0.9, 9)]
)
def test_the_number_of_visible_patches_is_the_published_one(patches, ratio, kept):
    assert num_kept(patches, ratio) == kept


def test_values_of_patches_are_in_the_published_order():
    # The value of a pixel is its row, column and channel.
    row, column, channel = np.indices((4, 6, 3))
    images = jnp.asarray(100.0 * row + 10 * column + channel)[None]
    values = patch_values(images, (2, 3))
    assert values.shape == (1, 4, 18)
    assert values[0, 0, :9].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert values[0, 3, 9:12].tolist() == [330, 331, 332]


def test_patches_are_normalised_by_the_unbiased_variance():
    found = normalized_patches(jnp.array([[[0.0, 1.0, 2.0, 5.0]]]))
    expected = [[[-0.92582, -0.46291, 0, 1.38873]]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_depends_on_neither_devices_nor_microbatches(objective_of):
    batch = {"mask": jnp.ones(8)}
    found = [
        objective_of(values).prepare(jax.random.key(3), batch, None)[0]["noise"]
        for values in ({"mesh.data": 1}, {"accum_steps": 2})
    ]
    assert np.array_equal(*found)
    assert len(np.unique(found[0])) == found[0].size == 8 * 16


def test_initial_parameters_have_the_published_distributions(objective_of):
    params = jax.jit(objective_of({"model.width": 64}).init)(jax.random.key(0))
    block = params["blocks_00"]
    inner = 64 * 3 * 16  # the kernel of the patches is a matrix [48, 64]

    def assert_uniform(x, limit):
        assert 0.9 * limit < np.abs(x).max() <= limit
        np.testing.assert_allclose(np.std(x), limit / np.sqrt(3), rtol=0.1)

    assert_uniform(block["attention"]["query"]["kernel"], np.sqrt(6 / (64 + 3 * 64)))
    assert_uniform(block["attention"]["out"]["kernel"], np.sqrt(6 / (64 + 64)))
    assert_uniform(block["mlp"]["fc1"]["kernel"], np.sqrt(6 / (64 + 24)))
    assert_uniform(params["patch_embed"]["kernel"], np.sqrt(6 / (48 + 64)))
    assert_uniform(params["patch_embed"]["bias"], 1 / np.sqrt(48))
    assert_uniform(params["decoder"]["embed"]["kernel"], np.sqrt(6 / (64 + 12)))
    assert params["patch_embed"]["kernel"].size == inner
    for biased in (block["mlp"]["fc1"], params["decoder"]["pred"]):
        assert not np.any(biased["bias"])
    assert np.all(block["norm1"]["scale"] == 1)
    for token in (params["cls"], params["decoder"]["mask_token"]):
        assert 0.01 < np.std(token) < 0.03
    query, key = (block["attention"][name]["kernel"] for name in ("query", "key"))
    assert not np.array_equal(query, key)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"mask_ratio": 0.99}, "mask_ratio=0.99: of 16 patches"),
        ({}, {"mask_ratio": 0.0}, "mask_ratio=0.0: of 16 patches"),
        ({}, {"mask_ratio": 1.0}, "mask_ratio=1.0: of 16 patches"),
        ({}, {"decoder_heads": 5}, "objective_options.decoder_.*12.*5"),
        ({}, {"decoder_width": 10, "decoder_heads": 1}, "sincos2d needs a width"),
        ({}, {"decoder_remat": "some"}, "decoder_remat='some': choose from none"),
        ({}, {"ratio": 0.5}, "ratio"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_compiled(
    objective_of, values, options, message
):
    with pytest.raises(UserError, match=message):
        objective_of(values, **options)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_largest_mask_ratio_that_is_named_is_accepted(objective_of, patch):
    values = {"image_size": (16, 40), "augment.train": "resize"}
    values |= {"model.variant": f"Ti/{patch}"}
    with pytest.raises(UserError, match=r"at most [\d.]+$") as error:
        objective_of(values, mask_ratio=1.0)
    objective_of(values, mask_ratio=float(str(error.value).rsplit(" ", 1)[1]))


def test_an_image_of_a_single_patch_cannot_be_masked(objective_of):
    with pytest.raises(UserError, match=r"of 1 patches.*use smaller patches"):
        objective_of({"model.variant": "Ti/16", "image_size": (16, 16)})


def test_a_mixer_cannot_leave_out_patches(tiny_config):
    config = tiny_config(
        **{"objective": "masked_autoencoding", "model.variant": "Mixer-S/4"},
        **{"model.num_heads": 0, "eval_every": 0},
    )
    with pytest.raises(UserError, match="needs a Vision Transformer"):
        _ = set_up(config).objective


def test_devices_and_microbatches_do_not_change_the_gradients(tiny_config):
    # With a learning rate of 1 the parameters' difference is the gradient.
    plain = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "grad_clip_norm": 0.0,
        "schedule": "constant",
        "learning_rate": 1.0,
    }
    ways = (
        {"mesh.data": 1},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2},
    )
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    counts = np.ones(16, np.float32)
    batch = {"image": images, "mask": counts, "bad": np.zeros(16, np.int32)}
    found, losses = [], []
    for way in ways:
        config = tiny_config(**{**CONFIG, **plain, **way})
        options = {**DECODER, "decoder_width": 16, "decoder_heads": 2}
        config.objective_options = ConfigDict(options)
        setup = set_up(config)
        abstract = setup.abstract_state()
        rng = np.random.default_rng(7)
        params = jax.tree.map(
            lambda x, rng=rng: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
            abstract.params,
        )
        where = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.device_put(setup.new_state(params), where)
        step = setup.lower().compile()
        state, metrics = step(state, sharding.place(batch, setup.mesh))
        after = jax.device_get(state.params)
        found.append(jax.tree.map(np.subtract, params, after))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(found[0]))
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-6 * largest)
