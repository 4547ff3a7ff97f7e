import dataclasses
import json

import jaxtyping
import pytest

from vit_jax.models import (
    Architecture,
    MixerArchitecture,
    architecture_from_dict,
    architecture_from_variant,
)


def test_tokens_and_grid():
    def tokens(name, size, **fields):
        return Architecture.from_variant(
            name, image_size=(size, size), num_classes=10, **fields
        ).num_tokens

    assert tokens("B/16", 224) == 197
    assert tokens("B/16", 384) == 577
    assert tokens("B/16", 512) == 1025
    assert tokens("H/14", 224) == 257
    assert tokens("H/14", 518) == 1370
    assert tokens("B/32", 384) == 145
    assert tokens("B/32", 384, pooling="gap") == 144
    assert tokens("B/32", 384, registers=4) == 149


def test_rectangles_have_rectangular_grids(tiny):
    assert tiny(image_size=(8, 6)).grid == (2, 3)
    assert tiny(image_size=(4, 20)).grid == (1, 10)
    assert tiny(registers=3).num_prefix_tokens == 4


def test_from_variant_fills_what_pooling_and_positions_imply():
    def fields(**given):
        made = Architecture.from_variant(
            "S/16", image_size=(32, 48), num_classes=3, **given
        )
        return made.class_token, made.class_token_position

    assert fields() == (True, True)
    assert fields(pooling="gap") == (False, False)
    assert fields(pooling="map") == (False, False)
    assert fields(pooling="cls_gap") == (True, True)
    assert fields(posemb="sincos2d") == (True, False)
    assert fields(pooling="gap", class_token=True) == (True, True)
    assert fields(class_token_position=False) == (True, False)


def test_json_round_trip(tiny):
    architecture = tiny(pooling="map", layernorm_epsilon=1e-12, gelu="exact")
    text = json.dumps(architecture.to_dict())
    assert Architecture.from_dict(json.loads(text)) == architecture
    assert json.loads(text) == architecture.to_dict()
    assert hash(Architecture.from_dict(json.loads(text))) == hash(architecture)


def test_from_dict_refuses_missing_and_unknown_names(tiny):
    fields = tiny().to_dict()
    del fields["num_heads"], fields["depth"]
    fields["colour"] = "red"
    with pytest.raises(ValueError, match=r"missing depth, num_heads; unknown colour$"):
        Architecture.from_dict(fields)


def test_from_dict_reads_files_from_before_a_field_existed(tiny):
    fields = tiny(gelu="exact").to_dict()
    for name in ("distillation_token", "trunk", "trunk_numerics", "qkv_bias"):
        del fields[name]
    assert Architecture.from_dict(fields) == tiny(gelu="exact")
    del fields["gelu"]
    assert Architecture.from_dict(fields) == tiny()


def test_either_kind_is_read_back(tiny, tiny_mixer):
    hybrid = tiny(trunk=(), patch_size=(4, 8), image_size=(8, 16))
    for architecture in (tiny(), hybrid, tiny_mixer()):
        fields = json.loads(json.dumps(architecture.to_dict()))
        assert architecture_from_dict(fields) == architecture
        assert hash(architecture_from_dict(fields)) == hash(architecture)
    with pytest.raises(ValueError, match=r"architecture: unknown registers$"):
        architecture_from_dict(tiny_mixer().to_dict() | {"registers": 2})


def test_the_patch_embedding_of_a_hybrid(tiny):
    def embedding(trunk, patch):
        side = patch * 2
        a = tiny(trunk=trunk, patch_size=(patch, patch), image_size=(side, side))
        return a.trunk_stride, a.embed_kernel, a.embed_channels

    assert embedding(None, 16) == (1, (16, 16), 3)
    assert embedding((), 32) == (4, (8, 8), 64)
    assert embedding((1,), 4) == (4, (1, 1), 256)
    assert embedding((3, 4, 9), 16) == (16, (1, 1), 1024)
    assert embedding((3, 4, 6, 3), 64) == (32, (2, 2), 2048)
    assert tiny(channels=1).embed_channels == 1


def test_tokens_before_the_patches(tiny):
    def prefix(**fields):
        architecture = tiny(**fields)
        return architecture.num_prefix_tokens, architecture.num_position_prefix

    assert prefix() == (1, 1)
    assert prefix(class_token_position=False) == (1, 0)
    assert prefix(distillation_token=True) == (2, 2)
    assert prefix(distillation_token=True, class_token_position=False) == (2, 0)
    assert prefix(distillation_token=True, registers=3) == (5, 2)
    assert prefix(registers=3, register_positions=True) == (4, 4)
    none = {"pooling": "gap", "class_token": False, "class_token_position": False}
    assert prefix(registers=3, register_positions=True, **none) == (3, 3)
    assert prefix(**none) == (0, 0)


def test_a_mixer_has_only_patch_tokens(tiny_mixer):
    mixer = tiny_mixer()
    assert (mixer.grid, mixer.num_tokens, mixer.num_prefix_tokens) == ((2, 3), 6, 0)
    assert (mixer.embed_kernel, mixer.embed_channels) == ((4, 2), 3)
    with pytest.raises(ValueError, match="image width 7 is not a multiple"):
        tiny_mixer(image_size=(8, 7))
    with pytest.raises(ValueError, match="tokens_mlp_dim is 0, expected a whole"):
        tiny_mixer(tokens_mlp_dim=0)


def test_a_variant_of_either_kind():
    def make(name, **fields):
        return architecture_from_variant(
            name, image_size=(64, 64), num_classes=2, **fields
        )

    assert make("B/16") == Architecture.from_variant(
        "B/16", image_size=(64, 64), num_classes=2
    )
    hybrid = make("R50+L/32", pooling="gap", width=32)
    assert (hybrid.trunk, hybrid.width, hybrid.depth) == ((3, 4, 6, 3), 32, 24)
    assert not hybrid.class_token
    assert make("Mixer-S/16") == MixerArchitecture(
        512, 8, 256, 2048, (16, 16), (64, 64), 2
    )
    with pytest.raises(ValueError, match="Mixer-S/16 cannot be made with pooling: the"):
        make("Mixer-S/16", pooling="gap")
    with pytest.raises(ValueError, match="Mixer-S/16 cannot be made with tokens_mlp"):
        Architecture.from_variant("Mixer-S/16", image_size=(64, 64), num_classes=2)


def test_all_wrong_values_are_listed_at_once(tiny):
    with pytest.raises(ValueError) as error:
        tiny(
            depth=0,
            num_classes=-1,
            patch_size=(4, 0),
            pooling="mean",
            posemb="rope",
            sincos_denominator="moco",
            gelu="relu",
            norm="nowhere",
            layernorm_epsilon=0.0,
            trunk=(1, 0),
            trunk_numerics="flax",
        )
    message = str(error.value)
    for part in (
        "depth is 0, expected a whole number of 1 or more",
        "num_classes is -1, expected a whole number of 0 or more",
        "patch_size is (4, 0), expected a pair (height, width) of pixels",
        "pooling is 'mean', expected one of cls, gap, map",
        "posemb is 'rope', expected one of learned, sincos2d",
        "sincos_denominator is 'moco', expected one of big_vision, mae",
        "gelu is 'relu', expected one of tanh, exact",
        "norm is 'nowhere', expected one of before_pool, after_pool",
        "layernorm_epsilon is 0.0, expected a number between 0 and 1",
        "trunk is (1, 0), expected None or residual units per stage, such as (3, 4, 9)",
        "trunk_numerics is 'flax', expected one of google, timm",
    ):
        assert part in message


def test_values_of_the_wrong_type_are_refused(tiny, monkeypatch):
    # As for a user: no type checker before the architecture's own check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    fields = dataclasses.asdict(tiny())
    wrong = {
        name: {"pooling": 3, "layer_scale": 1, "image_size": 8}.get(name, "7")
        for name in fields
    }
    with pytest.raises(ValueError) as error:
        Architecture.from_dict(wrong)
    message = str(error.value)
    for field in dataclasses.fields(Architecture):
        assert f"{field.name} is {wrong[field.name]!r}, expected " in message


def test_all_impossible_combinations_are_listed_at_once(tiny):
    with pytest.raises(ValueError) as error:
        tiny(
            width=18,
            num_heads=4,
            posemb="sincos2d",
            class_token=False,
            image_size=(225, 3),
            patch_size=(16, 7),
            register_positions=True,
            trunk=(2, 2),
        )
    message = str(error.value)
    for part in (
        "width 18 is not a multiple of num_heads 4",
        "sincos2d needs a width of 8, 12, …, got 18",
        "pooling cls needs class_token",
        "class_token_position needs class_token",
        "register_positions needs registers",
        "patch_size (16, 7) is not a multiple of 8, the stride of the trunk (2, 2)",
        "image height 225 is not a multiple of the patch height 16 "
        "(nearest: 224 and 240)",
        "image width 3 is not a multiple of the patch width 7 (nearest: 7)",
    ):
        assert part in message


def test_a_head_on_class_token_and_patches_needs_both(tiny):
    assert tiny(pooling="cls_gap").pooled_width == 32
    assert tiny(pooling="gap").pooled_width == tiny().pooled_width == 16
    none = {"class_token": False, "class_token_position": False}
    with pytest.raises(ValueError, match="pooling cls_gap needs class_token; without"):
        tiny(pooling="cls_gap", **none)
    with pytest.raises(ValueError, match="pooling cls_gap needs norm before_pool"):
        tiny(pooling="cls_gap", norm="after_pool")
    with pytest.raises(ValueError, match="distillation_token needs pooling cls"):
        tiny(pooling="cls_gap", distillation_token=True)


def test_two_tokens_determine_what_the_heads_read(tiny):
    with pytest.raises(ValueError, match="distillation_token needs pooling cls"):
        tiny(distillation_token=True, pooling="gap")
    with pytest.raises(ValueError, match="and pre_logits exclude each other"):
        tiny(distillation_token=True, pre_logits=3)
    assert tiny(distillation_token=True).num_pooled == 2
    with pytest.raises(ValueError, match="distillation_head False needs distillation_"):
        tiny(distillation_head=False)
    one_head = tiny(distillation_token=True, distillation_head=False, pre_logits=3)
    assert (one_head.num_pooled, one_head.num_prefix_tokens) == (1, 2)
