"""big_vision's `.npz` files: all generations, both directions, against NumPy."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture
from vit_jax.models.positions import resize
from vit_jax.weights.formats.big_vision import FORMAT
from vit_jax.weights.formats.layout import Hints

OLDER = "Transformer/pos_embedding"
OLDEST = "Transformer/posembed_input/pos_embedding"
GAP = {"pooling": "gap", "class_token": False, "class_token_position": False}
MAP = GAP | {"pooling": "map"}
CLS = {"pooling": "cls", "class_token": True, "class_token_position": False}
CLS_WITH_POSITION = CLS | {"class_token_position": True}

# (options of the file, fields of the architecture, whether our writer gives this file)
FILES = {
    "average": ({}, GAP, True),
    "attention": ({"map_head": "MAPHead_0/"}, MAP, True),
    "class token": ({"class_token": True}, CLS, True),
    "class token with a position": (
        {"class_token": True, "class_token_position": True, "place": OLDEST},
        CLS_WITH_POSITION,
        True,
    ),
    "pre_logits": ({"pre_logits": 7}, GAP | {"pre_logits": 7}, True),
    "no head": (
        {"num_classes": 0, "map_head": "MAPHead_0/"},
        MAP | {"num_classes": 0},
        True,
    ),
    "fixed positions": ({"place": None}, GAP | {"posemb": "sincos2d"}, True),
    "fixed positions, class token": (
        {"place": None, "class_token": True, "num_heads": 4},
        CLS | {"posemb": "sincos2d", "num_heads": 4},
        True,
    ),
    "grey images, patches not square": (
        {"kernel": (4, 2), "channels": 1},
        GAP | {"patch_size": (4, 2), "image_size": (8, 4), "channels": 1},
        True,
    ),
    "older place": ({"place": OLDER}, GAP, False),
    "older place, class token": ({"place": OLDER, "class_token": True}, CLS, False),
    "older place, class token with a position": (
        {"class_token": True, "class_token_position": True, "place": OLDER},
        CLS_WITH_POSITION,
        False,
    ),
    "newest place, class token with a position": (
        {"class_token": True, "class_token_position": True},
        CLS_WITH_POSITION,
        False,
    ),
    "oldest place": ({"place": OLDEST}, GAP, False),
    "oldest place, class token": ({"place": OLDEST, "class_token": True}, CLS, False),
    "early attention": ({"map_head": "", "place": OLDER}, MAP, False),
    "early numbers": (
        {"linen": False, "place": OLDER, "map_head": "MAPHead_0/"},
        MAP,
        False,
    ),
    "stacked": ({"stacked": True}, GAP, False),
    "stacked, attention": ({"stacked": True, "map_head": "MAPHead_0/"}, MAP, False),
}


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8)}
    return Architecture(**{**sizes, **inputs, "num_classes": 5, **GAP, **changes})


@pytest.mark.parametrize("name", FILES)
def test_logits_and_round_trip(
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
    options, fields, canonical = FILES[name]
    arrays = random_arrays(published.big_vision(**options))
    hints = {} if options.get("place", "learned") else {"image_size": (8, 8)}
    found, params = read(FORMAT, arrays, **hints)
    assert found.architecture == tiny(**fields)
    assert found.assumed == ()
    images = random_images(found.architecture)
    expected = reference.logits(arrays, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        model_logits(found.architecture, params, images), expected, atol=1e-5, rtol=0
    )
    written = write(FORMAT, found.architecture, params)
    if canonical:
        assert_same(written, arrays)
    else:
        again, same_params = read(FORMAT, written)
        assert again == found
        assert_same(same_params, params)


def test_bfloat16_stored_as_void(published, random_arrays, read, assert_same):
    arrays = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in random_arrays(published.big_vision()).items()
    }
    found, params = read(FORMAT, {n: a.astype(np.float32) for n, a in arrays.items()})
    # NumPy writes bfloat16 as void; a file with both dtypes is read too.
    void = {name: array.view("V2") for name, array in arrays.items()}
    void["head/bias"] = arrays["head/bias"].astype(np.float32)
    again, same_params = read(FORMAT, void)
    assert again == found
    assert_same(same_params, params)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("prefix", ["params/", "params/img/", "opt/target/"])
def test_an_outer_prefix_is_removed_and_other_names_are_left_out(
    prefix, stacked, published, random_arrays, read, assert_same
):
    arrays = random_arrays(
        published.big_vision(stacked=stacked, map_head="MAPHead_0/", place=OLDER)
    )
    found, params = read(FORMAT, arrays)
    inside = {f"{prefix}{name}": array for name, array in arrays.items()}
    beside = {
        "opt/0/mu/head/kernel": arrays["head/kernel"],
        "params_ema/head/kernel": arrays["head/kernel"],
        "params/txt/pos_embedding": np.ones((1, 4, 8)),
        "params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": np.ones(3),
        "params/t": np.ones(1),
    }
    if prefix == "params/":
        beside = {n: a for n, a in beside.items() if not n.startswith("params/")}
    again, same_params = read(FORMAT, beside | inside)
    assert again == found
    assert_same(same_params, params)


def test_a_stack_holds_the_blocks_in_order(published, random_arrays, read):
    arrays = random_arrays(published.big_vision(stacked=True, depth=3))
    found, params = read(FORMAT, arrays)
    assert found.architecture.depth == 3
    name = "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
    for i in range(3):
        path = f"blocks_{i:02d}/mlp/fc1/kernel"
        np.testing.assert_array_equal(params[path], arrays[name][i])


def test_values_that_are_not_finite_are_found_in_a_stack(
    published, random_arrays, read
):
    arrays = random_arrays(published.big_vision(stacked=True))
    name = "Transformer/encoderblock/LayerNorm_1/bias"
    arrays[name][1, 3] = np.nan
    with pytest.raises(UserError, match=f"{name} has 1 of 32 values"):
        read(FORMAT, arrays)


def test_logits_after_the_positions_are_resized(
    published, random_arrays, random_images, read, reference, model_logits
):
    arrays = random_arrays(published.big_vision(grid=(4, 4), map_head="MAPHead_0/"))
    found, params = read(FORMAT, arrays)
    architecture = dataclasses.replace(found.architecture, image_size=(20, 8))
    resized = resize(params["pos_embed"], (5, 2), found.posemb_resize)
    positions = arrays["pos_embedding"]
    arrays["pos_embedding"] = reference.resized_positions(positions, (5, 2))
    images = random_images(architecture)
    logits = model_logits(architecture, params | {"pos_embed": resized}, images)
    np.testing.assert_allclose(
        logits, reference.logits(arrays, images), atol=1e-5, rtol=0
    )


def test_both_layouts_of_the_class_tokens_position_give_the_same_logits(
    published, random_arrays, random_images, read, model_logits
):
    # The position may be added to the token, which big_vision's own loader does.
    apart = random_arrays(
        published.big_vision(class_token=True, class_token_position=True, place=OLDEST)
    )
    positions = apart[OLDEST]
    merged = {name: array for name, array in apart.items() if name != OLDEST}
    merged["pos_embedding"] = positions[:, 1:]
    merged["cls"] = apart["cls"] + positions[:, :1]
    logits = []
    for arrays in apart, merged:
        found, params = read(FORMAT, arrays)
        images = random_images(found.architecture)
        logits.append(model_logits(found.architecture, params, images))
    np.testing.assert_allclose(*logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", [False, True])
def test_rectangular_grids_need_the_image_size(
    position, published, random_arrays, read, write, assert_same
):
    place = OLDEST if position else "pos_embedding"
    arrays = random_arrays(
        published.big_vision(
            grid=(2, 3), class_token=True, class_token_position=position, place=place
        )
    )
    with pytest.raises(UserError, match=r"6 positions .* image size"):
        read(FORMAT, arrays)
    found, params = read(FORMAT, arrays, image_size=(8, 12))
    fields = CLS_WITH_POSITION if position else CLS
    assert found.architecture == tiny(image_size=(8, 12), **fields)
    assert_same(write(FORMAT, found.architecture, params), arrays)


def test_without_a_class_token_five_positions_mean_five_patches(
    published, random_arrays, read, write, assert_same
):
    arrays = random_arrays(published.big_vision(grid=(1, 5)))
    found, params = read(FORMAT, arrays, image_size=(4, 20))
    assert found.architecture == tiny(image_size=(4, 20))
    assert_same(write(FORMAT, found.architecture, params), arrays)


def test_preprocessing(published):
    found = FORMAT.read(published.big_vision(grid=(56, 56)), Hints())
    assert found.preprocessing == Preprocessing(
        (224, 224), eval_transform="resize_small(256)|central_crop"
    )
    assert found.posemb_resize == "google"
    transforms = {
        (96, 96): "resize_small(448)|central_crop",
        (56, 28): "resize_small((256, 128))|central_crop",
    }
    for grid, transform in transforms.items():
        size = (4 * grid[0], 4 * grid[1])
        found = FORMAT.read(published.big_vision(grid=grid), Hints(image_size=size))
        assert found.preprocessing.eval_transform == transform


@pytest.mark.parametrize(
    ("architecture", "phrase"),
    [
        (tiny(trunk=()), "a ResNet trunk"),
        (tiny(registers=2), "register tokens"),
        (tiny(**CLS, distillation_token=True), "a distillation token"),
        (tiny(layer_scale=True), "LayerScale"),
        (tiny(norm="after_pool"), "the norm after pooling"),
        (tiny(class_token=True), "a class token with pooling that ignores it"),
        (
            tiny(posemb="sincos2d", sincos_denominator="mae"),
            "sin-cos positions with MAE's denominator",
        ),
        (
            tiny(posemb="sincos2d", **CLS_WITH_POSITION),
            "a position of the class token in addition to sin-cos ones",
        ),
        # A reader would take one of five positions for the class token's, and all four
        # positions for those of a square grid.
        (
            tiny(**CLS, image_size=(4, 20)),
            "5 positions of a class token and 1×5 patches, which look like those of a "
            "square grid",
        ),
        (
            tiny(**CLS_WITH_POSITION, image_size=(12, 4)),
            "4 positions of a class token and 3×1 patches, which look like those of a "
            "square grid",
        ),
        (
            tiny(image_size=(4, 16)),
            "a grid of 1×4 patches, which looks like a square one",
        ),
        (
            MixerArchitecture(16, 2, 6, 24, (4, 4), (8, 8), 5),
            "MLP-Mixer (for which big_vision reads Google's format)",
        ),
    ],
)
def test_inexpressible_features_are_named(architecture, phrase):
    assert FORMAT.inexpressible(architecture) == [phrase]
    for fields in GAP, MAP, CLS, CLS_WITH_POSITION, {"posemb": "sincos2d"}:
        assert not FORMAT.inexpressible(tiny(**fields))
    fixed = tiny(posemb="sincos2d", image_size=(4, 16))  # no positions to count
    assert not FORMAT.inexpressible(fixed)


def test_lost_facts_are_named():
    architecture = tiny(gelu="exact", posemb="sincos2d", image_size=(8, 12))
    lost = FORMAT.lost(architecture, Preprocessing((8, 12), mean=(0.1,)))
    assert len(lost) == 5
    for words in (
        "GELU tanh, where this model has exact",
        "mean",
        "'resize'",
        "2×3",
        "does not record the image size",
    ):
        assert sum(words in sentence for sentence in lost) == 1
    expected = Preprocessing((8, 8), eval_transform="resize_small(9)|central_crop")
    assert not FORMAT.lost(tiny(), expected)


def test_random_models_round_trip(random_params, read, write, assert_same):
    rng = np.random.default_rng(4)

    def draw(*choices):
        return choices[rng.integers(len(choices))]

    for seed in range(12):
        num_heads, side, posemb = (
            draw(1, 2, 4),
            draw(1, 2, 3),
            draw("learned", "sincos2d"),
        )
        fields = draw(GAP, MAP, CLS, CLS_WITH_POSITION)
        if posemb == "sincos2d":
            fields = fields | {"class_token_position": False}
        patch = (draw(2, 3), draw(1, 4))
        architecture = Architecture(
            width=num_heads * draw(8, 12),
            depth=draw(1, 2, 11),
            mlp_dim=draw(1, 8, 20),
            num_heads=num_heads,
            patch_size=patch,
            image_size=(side * patch[0], side * patch[1]),
            num_classes=draw(0, 1, 7),
            channels=draw(1, 3, 4),
            posemb=posemb,
            pre_logits=draw(0, 5),
            **fields,
        )
        params = random_params(architecture, seed)
        arrays = write(FORMAT, architecture, params)
        hints = {"image_size": architecture.image_size} if posemb != "learned" else {}
        found, same_params = read(FORMAT, arrays, **hints)
        assert found.architecture == architecture
        assert_same(same_params, params)
