"""Tests of the stages of models: shapes, and sums that are the models' own."""

import math

import jax
import pytest

from vit_jax.models import (
    HYBRIDS,
    MIXERS,
    VARIANTS,
    abstract_params,
    architecture_from_variant,
)
from vit_jax.models.flops import count
from vit_jax.walkthrough.stages import stages_of

LORA = {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ("query", "fc1")}
FLEXIBLE = {
    "flexible_kernel": (40, 40),
    "flexible_grid": (5, 5),
    "flexible_resize": "bilinear",
}


def of(variant, image_size=(64, 96), num_classes=10, **fields):
    return architecture_from_variant(
        variant, image_size=image_size, num_classes=num_classes, **fields
    )


def sums(architecture):
    stages = stages_of(architecture)
    return sum(s.parameters for s in stages), sum(s.flops for s in stages)


def own(architecture):
    """Returns the model's own totals."""
    leaves = jax.tree.leaves(abstract_params(architecture))
    return sum(leaf.size for leaf in leaves), count(architecture).total


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "gap"},
        {"pooling": "map", "registers": 2},
        {"pooling": "cls_gap", "layer_scale": True},
        {"norm": "after_pool", "pre_logits": 7, "qkv_bias": False},
        {"distillation_token": True, "registers": 1, "register_positions": True},
        {"distillation_token": True, "distillation_head": False},
        {"posemb": "sincos2d", "num_classes": 0},
        {"prompts": 3},
        {"prompts": 3, "prompts_deep": True},
        LORA,
        FLEXIBLE,
        {"channels": 1, "patch_size": (16, 32)},
    ],
    ids=str,
)
def test_stages_add_up_to_the_model(fields):
    architecture = of("Ti/32", depth=2, **fields)
    assert sums(architecture) == own(architecture)


@pytest.mark.parametrize(
    "variant",
    [*(f"{n}/32" for n in (*VARIANTS, *MIXERS)), *HYBRIDS],
)
def test_stages_of_every_variant_add_up(variant):
    architecture = of(variant, depth=2)
    assert sums(architecture) == own(architecture)


def shapes(architecture):
    return {
        stage.name: (stage.input, stage.output) for stage in stages_of(architecture)
    }


def test_shapes_from_the_image_to_the_logits():
    assert shapes(of("S/16", (224, 224), 1000, depth=1)) == {
        "cut into patches": ((224, 224, 3), (196, 768)),
        "patch embedding": ((196, 768), (196, 384)),
        "positions": ((196, 384), (196, 384)),
        "class token": ((196, 384), (197, 384)),
        "norm 1": ((197, 384), (197, 384)),
        "queries": ((197, 384), (197, 384)),
        "keys and values": ((197, 384), (2, 197, 384)),
        "attention weights": ((197, 384), (6, 197, 197)),
        "weighted values": ((6, 197, 197), (197, 384)),
        "attention output": ((197, 384), (197, 384)),
        "norm 2": ((197, 384), (197, 384)),
        "MLP, first layer": ((197, 384), (197, 1536)),
        "MLP, last layer": ((197, 1536), (197, 384)),
        "final norm": ((197, 384), (197, 384)),
        "pooling": ((197, 384), (384,)),
        "head": ((384,), (1000,)),
    }


def test_counts_of_each_stage():
    found = {s.name: (s.parameters, s.flops) for s in stages_of(of("S/16", depth=3))}
    n, d, patches = 25, 384, 24
    core = 3 * 2 * n * n * d
    assert found == {
        "cut into patches": (0, 0),
        "patch embedding": (768 * d + d, 2 * patches * 768 * d),
        "positions": (patches * d, 0),
        "class token": (2 * d, 0),
        "norm 1": (3 * 2 * d, 0),
        "queries": (3 * (d * d + d), 3 * 2 * n * d * d),
        "keys and values": (6 * (d * d + d), 6 * 2 * n * d * d),
        "attention weights": (0, core),
        "weighted values": (0, core),
        "attention output": (3 * (d * d + d), 3 * 2 * n * d * d),
        "norm 2": (3 * 2 * d, 0),
        "MLP, first layer": (3 * (4 * d * d + 4 * d), 3 * 8 * n * d * d),
        "MLP, last layer": (3 * (4 * d * d + d), 3 * 8 * n * d * d),
        "final norm": (2 * d, 0),
        "pooling": (0, 0),
        "head": (d * 10 + 10, 2 * d * 10),
    }


def test_stages_of_blocks_repeat():
    repeats = {s.name: (s.repeats, s.in_block) for s in stages_of(of("Ti/32", depth=3))}
    assert repeats["norm 1"] == repeats["MLP, last layer"] == (3, True)
    assert repeats["positions"] == repeats["head"] == (1, False)


def test_tokens_that_join_and_leave():
    found = shapes(of("Ti/32", registers=2, prompts=3, depth=1))
    assert found["tokens in front"] == ((6, 192), (9, 192))
    assert found["prompts join"] == ((9, 192), (12, 192))
    assert found["attention weights"][1] == (3, 12, 12)
    assert found["prompts leave"] == ((12, 192), (9, 192))
    found = shapes(of("Ti/32", prompts=3, prompts_deep=True, depth=1))
    assert found["prompts"] == ((7, 192), (10, 192))
    assert found["attention weights"][1] == (3, 7, 10)
    assert "prompts join" not in found and "prompts leave" not in found


def test_other_ways_to_the_logits():
    pooled = list(shapes(of("Ti/32", norm="after_pool", pre_logits=7, depth=1)).items())
    assert pooled[-4:] == [
        ("pooling", ((7, 192), (192,))),
        ("final norm", ((192,), (192,))),
        ("pre-logits", ((192,), (7,))),
        ("head", ((7,), (10,))),
    ]
    two = shapes(of("Ti/32", distillation_token=True, depth=1))
    assert two["pooling"] == ((8, 192), (2, 192))
    assert two["head"] == ((192,), (10,))
    assert "head" not in shapes(of("Ti/32", num_classes=0, depth=1))
    both = shapes(of("Ti/32", pooling="cls_gap", depth=1))
    assert both["pooling"] == ((7, 192), (384,))


def test_hybrids_and_mixers():
    found = shapes(of("R26+S/32", depth=1))
    assert found["ResNet"] == ((64, 96, 3), (2, 3, 2048))
    assert found["cut into patches"] == ((2, 3, 2048), (6, 2048))
    found = shapes(of("Mixer-S/32", depth=1))
    assert found["MLP 1 over patches"] == ((512, 6), (512, 256))
    assert found["pooling"] == ((6, 512), (512,))
    assert "positions" not in found and "queries" not in found


def test_stored_sizes_of_flexible_models_cost_a_resize():
    flexible, plain = of("Ti/32", depth=1, **FLEXIBLE), of("Ti/32", depth=1)
    by_name = {s.name: s for s in stages_of(flexible)}
    assert by_name["cut into patches"].output == (6, 32 * 32 * 3)
    assert by_name["patch embedding"].parameters == 40 * 40 * 3 * 192 + 192
    resize = {s.name: s.flops for s in stages_of(plain)}
    assert by_name["patch embedding"].flops > resize["patch embedding"]
    assert by_name["positions"].flops > resize["positions"] == 0


def test_residual_branches_end_where_tokens_have_their_first_shape():
    for variant in ("Ti/32", "Mixer-S/32"):
        stages = {s.name: s for s in stages_of(of(variant, depth=1))}
        ends = [s for s in stages.values() if s.adds_input_of]
        assert [s.adds_input_of for s in ends] == ["norm 1", "norm 2"]
        for end in ends:
            start = stages[end.adds_input_of]
            assert math.prod(end.output) == math.prod(start.input)


def test_sentences_have_the_models_numbers():
    stages = stages_of(of("Ti/16", registers=4, depth=1, **LORA))
    text = " ".join(s.sentence for s in stages)
    assert "16×16 pixels, 4×6 of them" in text and "768×192 matrix" in text
    assert "class token and 4 registers; are put" in text
    assert "64 numbers for each of 3 heads" in text and "rank-2 adapters" in text
    assert "{" not in text and "  " not in text
