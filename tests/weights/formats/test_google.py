"""Google's `.npz` files: all families, both directions, against a NumPy reference."""

import dataclasses
import re

import numpy as np
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture
from vit_jax.models.positions import resize
from vit_jax.weights.formats import big_vision
from vit_jax.weights.formats.google import FORMAT
from vit_jax.weights.formats.layout import Hints

# (options of the file, fields of the architecture that differ from `tiny`)
VITS = {
    "class token": ({}, {}),
    "many heads": ({"num_heads": 8}, {"num_heads": 8}),
    "pre_logits": ({"pre_logits": 7}, {"pre_logits": 7}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "average of SAM": (
        {"class_token": False},
        {"pooling": "gap", "class_token": False, "class_token_position": False},
    ),
    "Linen's numbers with a trunk": (
        {"linen": True, "trunk": ()},
        {"trunk": (), "patch_size": (16, 16), "image_size": (32, 32)},
    ),
    "root alone": (
        {"trunk": (), "kernel": (2, 2)},
        {"trunk": (), "patch_size": (8, 8), "image_size": (16, 16)},
    ),
    "trunk of two stages": (
        {"trunk": (2, 1), "kernel": (1, 1)},
        {"trunk": (2, 1), "patch_size": (8, 8), "image_size": (16, 16)},
    ),
    "grey images, patches not square": (
        {"kernel": (4, 2), "channels": 1},
        {"patch_size": (4, 2), "image_size": (8, 4), "channels": 1},
    ),
}


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8)}
    return Architecture(**{**sizes, **inputs, "num_classes": 5, **changes})


@pytest.mark.parametrize("name", VITS)
def test_vit_logits_and_round_trip(
    name,
    published,
    random_arrays,
    random_images,
    read,
    write,
    reference,
    model_logits,
    assert_same,
):
    options, fields = VITS[name]
    arrays = random_arrays(published.google(**options))
    found, params = read(FORMAT, arrays)
    assert found.architecture == tiny(**fields)
    images = random_images(found.architecture)
    expected = reference.logits(arrays, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        model_logits(found.architecture, params, images), expected, atol=1e-5, rtol=0
    )
    if not options.get("linen"):
        assert_same(write(FORMAT, found.architecture, params), arrays)


def test_mixer_logits_and_round_trip(
    published,
    random_arrays,
    random_images,
    read,
    write,
    reference,
    model_logits,
    assert_same,
):
    arrays = random_arrays(published.mixer())
    found, params = read(FORMAT, arrays)
    assert found.architecture == MixerArchitecture(
        width=16,
        depth=2,
        tokens_mlp_dim=6,
        mlp_dim=24,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=5,
    )
    images = random_images(found.architecture)
    expected = reference.logits(arrays, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        model_logits(found.architecture, params, images), expected, atol=1e-5, rtol=0
    )
    assert_same(write(FORMAT, found.architecture, params), arrays)


def test_both_mixer_layouts_and_numberings_hold_the_same(
    published, random_arrays, random_images, read, reference, assert_same
):
    arrays = random_arrays(published.mixer())
    found, params = read(FORMAT, arrays)
    old = {
        name: arrays[newer].reshape(shape)
        for name, (shape, newer) in published.old_mixer().items()
    }
    renumbered = {
        re.sub("(MixerBlock_.)/LayerNorm_1", r"\1/LayerNorm_2", name): array
        for name, array in arrays.items()
    }
    assert renumbered.keys() != arrays.keys()
    for variant in old, renumbered:
        again, same_params = read(FORMAT, variant)
        assert again == found
        assert_same(same_params, params)
    # The reference reads the old layout, too.
    images = random_images(found.architecture)
    np.testing.assert_array_equal(
        reference.logits(old, images), reference.logits(arrays, images)
    )


@pytest.mark.parametrize(
    ("prefix", "model"),
    [
        ("opt/target/", "google"),
        ("params/", "google"),
        ("params/img/", "google"),
        ("opt/target/params/", "hybrid"),
        ("opt/target/", "mixer"),
    ],
)
def test_an_outer_prefix_is_removed_and_other_names_are_left_out(
    prefix, model, published, random_arrays, read, assert_same
):
    shapes = (
        published.google(trunk=()) if model == "hybrid" else getattr(published, model)()
    )
    arrays = random_arrays(shapes)
    found, params = read(FORMAT, arrays)
    beside = {
        "opt/state/step": np.int32(3),
        "opt/state/param_states/head/kernel/momentum": arrays["head/kernel"],
        "params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": np.ones(3),
        "params/t": np.ones(1),
    }
    inside = {f"{prefix}{name}": array for name, array in arrays.items()}
    if prefix == "params/":
        beside = {n: a for n, a in beside.items() if not n.startswith("params/")}
    again, same_params = read(FORMAT, beside | inside)
    assert again == found
    assert_same(same_params, params)


def test_linen_numbers_and_group_norms_of_one_dimension(
    published, random_arrays, read, assert_same
):
    arrays = random_arrays(published.google(trunk=(1,), kernel=(1, 1)))
    found, params = read(FORMAT, arrays)
    renames = {
        "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
        "LayerNorm_2": "LayerNorm_1",
        "MlpBlock_3": "MlpBlock_0",
    }
    linen = {}
    for name, array in arrays.items():
        for before, after in renames.items():
            name = name.replace(before, after)
        linen[name] = array.reshape(-1) if "gn" in name else array
    assert linen.keys() != arrays.keys()
    again, same_params = read(FORMAT, linen)
    assert again == found
    assert_same(same_params, params)

    # Without a trunk they look like big_vision's, but can be read as Google's.
    plain = random_arrays(published.google(linen=True))
    assert big_vision.FORMAT.recognises(plain)
    found, _ = read(FORMAT, plain, recognised=False)
    assert found.architecture == tiny()


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("grid", [(3, 3), (5, 2)])
def test_logits_after_the_positions_are_resized(
    class_token,
    grid,
    published,
    random_arrays,
    random_images,
    read,
    reference,
    model_logits,
):
    arrays = random_arrays(published.google(grid=(4, 4), class_token=class_token))
    found, params = read(FORMAT, arrays)
    size = {"image_size": (4 * grid[0], 4 * grid[1])}
    architecture = dataclasses.replace(found.architecture, **size)
    resized = resize(params["pos_embed"], grid, found.posemb_resize)
    name = "Transformer/posembed_input/pos_embedding"
    arrays[name] = reference.resized_positions(arrays[name], grid)
    images = random_images(architecture)
    logits = model_logits(architecture, params | {"pos_embed": resized}, images)
    np.testing.assert_allclose(
        logits, reference.logits(arrays, images), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("class_token", [True, False])
def test_rectangular_grids_need_the_image_size(
    class_token, published, random_arrays, read, write, assert_same
):
    arrays = random_arrays(published.google(grid=(2, 3), class_token=class_token))
    with pytest.raises(UserError, match=r"6 positions .* image size"):
        read(FORMAT, arrays)
    found, params = read(FORMAT, arrays, image_size=(8, 12))
    assert found.architecture.image_size == (8, 12)
    assert found.preprocessing.image_size == (8, 12)
    assert params["pos_embed"].shape == (1, 2, 3, 16)
    assert_same(write(FORMAT, found.architecture, params), arrays)


def test_the_image_size_is_used_if_the_grid_is_not_square(published):
    """For a square it may be the size to which the positions will be resized."""

    def grid(stored, size):
        shapes = published.google(grid=stored)
        return FORMAT.read(shapes, Hints(image_size=size)).architecture.grid

    assert grid((2, 6), (8, 24)) == (2, 6)
    assert grid((2, 6), (12, 16)) == (3, 4)
    assert grid((4, 4), (8, 32)) == grid((4, 4), None) == (4, 4)


def test_mixers_of_rectangular_images(published, random_arrays, read):
    arrays = random_arrays(published.mixer(tokens=6))
    with pytest.raises(UserError, match=r"6 positions .* image size"):
        read(FORMAT, arrays)
    found, _ = read(FORMAT, arrays, image_size=(12, 8))
    assert found.architecture.grid == (3, 2)


def test_preprocessing_and_loss(published):
    found = FORMAT.read(published.google(), Hints())
    assert found.preprocessing == Preprocessing((8, 8), eval_transform="resize")
    assert found.posemb_resize == "google"
    assert found.outputs == "exclusive"
    assert found.assumed == ()
    # The row of a published model takes precedence.
    known = Preprocessing((224, 224), eval_transform="resize_small(9)|central_crop")
    found = FORMAT.read(published.google(), Hints(preprocessing=known))
    assert found.preprocessing == dataclasses.replace(known, image_size=(8, 8))


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"pooling": "map"}, "a MAP head"),
        ({"registers": 2}, "register tokens"),
        ({"distillation_token": True}, "a distillation token"),
        ({"layer_scale": True}, "LayerScale"),
        ({"qkv_bias": False}, "queries, keys and values without bias"),
        ({"class_token_position": False}, "a class token without a position"),
        ({"norm": "after_pool"}, "the norm after pooling"),
        ({"pooling": "gap"}, "a class token with pooling that ignores it"),
        ({"posemb": "sincos2d"}, "fixed sin-cos positions"),
        (
            {"image_size": (8, 32)},
            "a grid of 2×8 patches, which looks like a square one",
        ),
    ],
)
def test_inexpressible_features_are_named(fields, phrase):
    assert phrase in FORMAT.inexpressible(tiny(**fields))
    assert not FORMAT.inexpressible(tiny())


def test_a_mixers_grid_must_not_look_square():
    sizes = {"width": 16, "depth": 1, "tokens_mlp_dim": 6, "mlp_dim": 24}
    patch = {"patch_size": (4, 4), "num_classes": 5}
    for size, phrases in ((16, 4), 1), ((8, 8), 0), ((8, 12), 0):
        architecture = MixerArchitecture(image_size=size, **patch, **sizes)
        assert len(FORMAT.inexpressible(architecture)) == phrases


def test_all_inexpressible_features_are_named_at_once():
    architecture = tiny(pooling="map", registers=1, layer_scale=True)
    assert len(FORMAT.inexpressible(architecture)) == 4


@pytest.mark.parametrize(
    ("fields", "preprocessing", "words"),
    [
        ({"gelu": "exact"}, {}, "GELU tanh, where this model has exact"),
        ({"layernorm_epsilon": 1e-12}, {}, "epsilon, where this model has 1e-12"),
        ({}, {"mean": (0.4, 0.5, 0.5)}, r"model has \(0.4, 0.5, 0.5\) and \(0.5"),
        ({}, {"std": (0.2,)}, r"model has \(0.5.* and \(0.2, 0.2, 0.2\)"),
        ({}, {"eval_transform": "central_crop"}, "'central_crop'"),
        ({"image_size": (8, 4)}, {}, "2×1 patches"),
        (
            {"trunk": (), "trunk_numerics": "timm"},
            {},
            "Google's epsilons in the trunk, where this model has timm's",
        ),
    ],
)
def test_lost_facts_are_named(fields, preprocessing, words):
    architecture = tiny(**fields)
    inputs = Preprocessing(architecture.image_size, **preprocessing)
    (sentence,) = FORMAT.lost(architecture, inputs)
    assert re.search(words, sentence)
    assert not FORMAT.lost(tiny(), Preprocessing((8, 8)))


def test_random_models_round_trip(random_params, read, write, assert_same):
    rng = np.random.default_rng(3)

    def draw(*choices):
        return choices[rng.integers(len(choices))]

    for seed in range(12):
        class_token, side, patch = draw(True, False), draw(1, 2, 3), draw(2, 3)
        trunk = draw(None, None, (), (1,))
        stride = 1 if trunk is None else 4
        num_heads = draw(1, 2, 4)
        architecture = Architecture(
            width=num_heads * draw(4, 8),
            depth=draw(1, 2, 11),
            mlp_dim=draw(1, 8, 20),
            num_heads=num_heads,
            patch_size=(stride * patch, stride),
            image_size=(side * stride * patch, side * stride),
            num_classes=draw(0, 1, 7),
            channels=draw(1, 3, 4),
            pooling="cls" if class_token else "gap",
            class_token=class_token,
            class_token_position=class_token,
            pre_logits=draw(0, 5),
            trunk=trunk,
        )
        params = random_params(architecture, seed)
        arrays = write(FORMAT, architecture, params)
        found, same_params = read(FORMAT, arrays)
        assert found.architecture == architecture
        assert_same(same_params, params)
