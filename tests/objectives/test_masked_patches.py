"""Masked patch prediction: what is corrupted, what is predicted, and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.objectives.masked_patches import color_codes, cut, joined
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up

CONFIG = {
    "objective": "masked_patches",
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 24,
    "model.num_heads": 2,
    "model.channels": 3,
    "model.variant": "Ti/4",
    "image_size": (16,),
    "eval_every": 0,
    "augment.train": "resize(18)|random_crop",
}
CONTEXT = Context((), (), jnp.int32(0), None)


@pytest.fixture
def setup_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**CONFIG, **dict(values)})
        config.objective_options = ConfigDict(options)
        return set_up(config)

    return make


def random_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
        "mask": np.ones(size, np.float32),
        "bad": np.zeros(size, np.int32),
    }


def prepared(objective, batch, seed=3):
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.device_get(objective.prepare(jax.random.key(seed), batch, None)[0])


def random_params(objective, seed=7):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes
    )


def loss_of(objective, params, batch):
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    loss = jax.jit(lambda *given: objective.loss(*given, CONTEXT)[0])
    sums = loss(params, batch, jax.random.key(0))
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


def patches_of(images):
    """Returns the patches [b, n, 4, 4, c] of images of 16 × 16, by slicing."""
    places = [(y, x) for y in range(0, 16, 4) for x in range(0, 16, 4)]
    return np.stack([images[:, y : y + 4, x : x + 4] for y, x in places], 1)


def test_colors_are_quantised_means():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2, 3, 4, 4, 3))
    mean = patches.mean(axis=(2, 3))
    red, green, blue = np.moveaxis(np.floor(mean * 8 / 256).astype(int), -1, 0)
    found = color_codes(jnp.asarray(patches, jnp.uint8))
    assert found[..., 0].tolist() == (64 * red + 8 * green + blue).tolist()
    red, green, blue = np.moveaxis(np.rint(mean / 255 * 7).astype(int), -1, 0)
    found = color_codes(jnp.asarray(patches, jnp.uint8), quantization="round")
    assert found[..., 0].tolist() == (64 * red + 8 * green + blue).tolist()


def test_the_bounds_of_colors_belong_to_the_upper_one():
    # Mean 32 is the first of the second of eight levels, 255 in the last.
    for value, level in ((0, 0), (31, 0), (32, 1), (255, 7)):
        patch = jnp.full((1, 1, 4, 4, 1), value, jnp.uint8)
        assert color_codes(patch).item() == level
    nearly = jnp.full((1, 1, 4, 4, 1), 32, jnp.uint8).at[0, 0, 0, 0].set(31)
    assert color_codes(nearly).item() == 0
    assert color_codes(jnp.full((1, 1, 16, 16, 3), 255, jnp.uint8)).item() == 511


def test_a_downsized_patch_has_a_color_for_each_cell():
    # Each cell of 2 × 1 pixels has its own colour, with little noise.
    levels = np.arange(4).reshape(2, 2)
    patch = np.kron(levels, np.ones((2, 1)))[None, None, ..., None] * 64 + 5
    found = color_codes(jnp.asarray(patch, jnp.uint8), bits=2, cells=2)
    assert found.tolist() == [[[0, 1, 2, 3]]]


def test_images_are_cut_into_patches_and_put_together():
    images = random_batch()["image"]
    patches = cut(jnp.asarray(images), (4, 4))
    assert np.array_equal(patches, patches_of(images))
    assert np.array_equal(joined(patches, (4, 4)), images)
    wide = jnp.asarray(images)[:, :8]
    assert np.array_equal(joined(cut(wide, (2, 4)), (4, 4)), wide)


def test_half_of_the_patches_are_corrupted_in_the_published_ways(setup_of):
    batch = random_batch(400)
    found = prepared(setup_of().objective, batch)
    before, after = patches_of(batch["image"]), patches_of(found["image"])
    swapped = (before != after).any(axis=(2, 3, 4))
    corrupted = np.zeros((400, 16), bool)
    np.put_along_axis(corrupted, found["corrupted"], True, axis=1)
    assert (corrupted.sum(axis=1) == 8).all()
    assert not (swapped | found["masked"])[~corrupted].any()
    assert not (swapped & found["masked"]).any()
    # 3,200 draws: four standard deviations.
    assert abs(found["masked"].sum() / 3200 - 0.8) < 0.03
    assert abs(swapped.sum() / 3200 - 0.1) < 0.022
    # All places are equally likely.
    assert abs(corrupted.mean(axis=0) - 0.5).max() < 0.1
    # A swapped patch is another one of its image.
    for image, patch in np.argwhere(swapped):
        same = (before[image] == after[image, patch]).all(axis=(1, 2, 3))
        assert same.sum() == 1 and not same[patch]


def test_a_swapped_patch_is_never_itself(setup_of):
    batch = random_batch(100)
    found = prepared(setup_of(masked=0.0, swapped=1.0).objective, batch)
    before, after = patches_of(batch["image"]), patches_of(found["image"])
    assert ((before != after).any(axis=(2, 3, 4)).sum(axis=1) == 8).all()


def test_patches_may_come_from_the_previous_image(setup_of):
    batch = random_batch(8)
    objective = setup_of(masked=0.0, swapped=1.0, swap_from="batch").objective
    found = prepared(objective, batch)
    before, after = patches_of(batch["image"]), patches_of(found["image"])
    for image, patches in enumerate(found["corrupted"]):
        for patch in patches:
            same = before[image - 1] == after[image, patch]
            assert same.all(axis=(1, 2, 3)).any()


def test_the_loss_is_the_cross_entropy_of_corrupted_patches(setup_of):
    setup = setup_of(cells=2, bits=2)
    objective = setup.objective
    params, batch = random_params(objective), random_batch()
    found = prepared(objective, batch)
    # The same by hand: embeddings, [mask], positions, class token, encoder.
    own, model = params["masked_patches"], setup.model
    values = (found["image"] / 255 - 0.5) / 0.5
    x = patches_of(values).reshape(8, 16, -1).astype(np.float32)
    kernel = params["patch_embed"]["kernel"].reshape(-1, 16)
    x = x @ kernel + params["patch_embed"]["bias"]
    x[found["masked"]] = own["mask_token"][0, 0]
    x += params["pos_embed"].reshape(1, 16, 16)
    variables = {"params": params}
    x = model.apply(variables, jnp.asarray(x), method="add_prefix")
    assert x.shape[1] == 17
    x = np.asarray(model.apply(variables, x, method="encode"), np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    logits = x[:, 1:] @ own["head"]["kernel"] + own["head"]["bias"]
    logits = logits.reshape(8, 16, 4, 64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    cells = patches_of(batch["image"]).reshape(8, 16, 2, 2, 2, 2, 3)
    codes = (cells.mean(axis=(3, 5)) // 64).astype(int).reshape(8, 16, 4, 3)
    codes = codes @ [16, 4, 1]
    losses = -np.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    right = logits.argmax(axis=-1) == codes
    losses, right = (
        np.take_along_axis(each, found["corrupted"][..., None], axis=1)
        for each in (losses, right)
    )
    numbers = loss_of(objective, params, found)
    assert numbers["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert numbers["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    # Patches that are not corrupted have no loss, images of weight 0 neither.
    found["mask"] = (np.arange(8) != 3).astype(np.float32)
    rest = np.delete(losses, 3, axis=0).mean()
    assert loss_of(objective, params, found)["loss"] == pytest.approx(rest, rel=1e-5)


def test_pixels_are_a_target_too(setup_of):
    objective = setup_of(target="pixels").objective
    params, batch = random_params(objective), random_batch()
    params["masked_patches"]["head"] = {
        "kernel": np.zeros((16, 48), np.float32),
        "bias": np.linspace(-1, 1, 48, dtype=np.float32),
    }
    found = prepared(objective, batch)
    values = patches_of(batch["image"] / 127.5 - 1).reshape(8, 16, 48)
    errors = ((values - np.linspace(-1, 1, 48)) ** 2).mean(axis=-1)
    expected = np.take_along_axis(errors, found["corrupted"], axis=1).mean()
    numbers = loss_of(objective, params, found)
    assert numbers == {"loss": pytest.approx(expected, rel=1e-5)}


def test_the_first_loss_is_that_of_equally_likely_colors(setup_of):
    objective = setup_of({"model.depth": 1}).objective
    params = jax.jit(objective.init)(jax.random.key(0))
    own = params["masked_patches"]
    assert own["head"]["kernel"].shape == (16, 512)
    assert 0.01 < np.std(own["mask_token"]) < 0.04
    found = loss_of(objective, params, prepared(objective, random_batch()))
    assert found["loss"] == pytest.approx(np.log(512), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"corrupted": 0.0}, "corrupted=0.0: nothing would be predicted"),
        ({}, {"corrupted": 1.5}, "corrupted=1.5: expected a share from 0 to 1"),
        ({}, {"masked": -0.1}, "masked=-0.1: expected a share"),
        ({}, {"masked": 0.8, "swapped": 0.3}, "masked=0.8 and swapped=0.3 .* at most"),
        ({}, {"target": "colours"}, "target='colours': choose from colors.*mean 'col"),
        ({}, {"quantization": "up"}, "quantization='up': choose from floor, round"),
        ({}, {"swap_from": "set"}, "swap_from='set': choose from image, batch"),
        ({}, {"bits": 9}, "bits=9: expected a whole number from 1 to 8"),
        ({}, {"bits": 8}, "bits=8, cells=1: with 3 channels.* 16,777,216 outputs"),
        ({}, {"cells": 3}, "cells=3: must divide the sides of a patch, 4 × 4"),
        ({}, {"target": "pixels", "cells": 2}, "cells=2 has no effect with target="),
        ({"image_size": (4,)}, {}, "the image is a single patch"),
        ({}, {"ratio": 0.5}, "does not take ratio"),
        ({"loss_options": {"gamma": 1.0}}, {}, "loss_options.gamma has no effect"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_compiled(
    setup_of, values, options, message
):
    with pytest.raises(UserError, match=message):
        setup_of(values, **options)


def test_all_problems_are_listed_at_once(setup_of):
    with pytest.raises(UserError) as error:
        setup_of(corrupted=2.0, target="edges", bits=0, cells=3)
    for name in ("corrupted=2.0", "target='edges'", "bits=0"):
        assert name in str(error.value)


def test_only_a_vision_transformer_has_a_token_for_each_patch(tiny_config):
    for variant, values in (
        ("Mixer-S/4", {"model.num_heads": 0}),
        ("R50+B/16", {"image_size": (32,), "model.num_heads": 2}),
    ):
        config = tiny_config(
            **{"objective": "masked_patches", "eval_every": 0},
            **{"model.variant": variant, **values},
        )
        with pytest.raises(
            UserError, match=r"needs a Vision|use a variant without R50"
        ):
            _ = set_up(config).objective


def run_steps(setup, batches):
    """Returns losses and gradients' norms, and the parameters after the first step."""
    abstract = setup.abstract_state()
    where = jax.tree.map(lambda x: x.sharding, abstract)
    state = setup.new_state(random_params(setup.objective))
    state = jax.device_put(state, where)
    step, losses, norms, first = setup.lower().compile(), [], [], None
    for batch in batches:
        state, metrics = step(state, sharding.place(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        first = first or jax.device_get(state.params)
    return losses, norms, first


def test_devices_and_microbatches_change_neither_gradients_nor_training(setup_of):
    plain = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "grad_clip_norm": 0.0,
        "schedule": "constant",
        "learning_rate": 0.1,
    }
    spread = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2}
    batches = [random_batch(16, seed) for seed in range(30)]
    for batch in batches:
        batch["mask"][5] = 0.0
    setups = [
        setup_of({**plain, **way}, swap_from="batch")
        for way in ({"mesh.data": 1}, spread)
    ]
    start = random_params(setups[0].objective)
    one, eight = [run_steps(setup, batches) for setup in setups]
    for losses in zip(one[:2], eight[:2], strict=True):
        np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-6)
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    grads = [jax.tree.map(np.subtract, start, x[2]) for x in (one, eight)]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(grads[0]))
    for expected, found in zip(*map(jax.tree.leaves, grads), strict=True):
        # The difference of parameters near 0.5 is known to 3e-8.
        tolerance = 1e-6 * largest + 3e-8
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert one[0][-1] < one[0][0]
