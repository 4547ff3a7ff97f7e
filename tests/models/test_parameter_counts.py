import functools
import math

import jax
import pytest

from vit_jax.models import (
    HYBRIDS,
    MIXERS,
    VARIANTS,
    abstract_params,
    architecture_from_variant,
    build,
)

# Variant: class token at 224, average pooling at 224, class token at 384 pixels, with
# 1,000 classes. The first is asserted by google-research/vision_transformer for the
# models it has; 384 is not a multiple of 14.
COUNTS = {
    "Ti/16": (5_717_416, 5_717_032, 5_790_376),
    "S/32": (22_878_952, 22_878_184, 22_915_432),
    "S/16": (22_050_664, 22_049_896, 22_196_584),
    "S/8": (22_055_272, 22_054_504, 22_638_952),
    "M/16": (38_837_736, 38_836_712, 39_032_296),
    "B/32": (88_224_232, 88_222_696, 88_297_192),
    "B/16": (86_567_656, 86_566_120, 86_859_496),
    "B/14": (86_475_496, 86_473_960, None),
    "B/8": (86_576_872, 86_575_336, 87_744_232),
    "L/32": (306_535_400, 306_533_352, 306_632_680),
    "L/16": (304_326_632, 304_324_584, 304_715_752),
    "L/14": (304_203_752, 304_201_704, None),
    "So400m/14": (413_597_656, 413_595_352, None),
    "H/14": (632_045_800, 632_043_240, None),
    "H/16": (632_199_400, 632_196_840, 632_685_800),
    "g/14": (1_012_611_432, 1_012_608_616, None),
    "G/14": (1_844_440_680, 1_844_437_352, None),
    "e/14": (3_807_214_312, 3_807_210_728, None),
}
MAP = {"pooling": "map"}
BIG_VISION_BASELINE = {"pooling": "gap", "posemb": "sincos2d"}  # arXiv:2205.01580
DEIT3 = {"layer_scale": True, "class_token_position": False}  # arXiv:2204.07118
DISTILLED = {"distillation_token": True}  # arXiv:2012.12877
OTHERS = [
    ("S/16", MAP, 1000, 23_823_976),
    ("B/16", MAP, 1000, 93_653_224),
    ("L/16", MAP, 1000, 316_919_784),
    ("g/14", MAP, 1000, 1_037_857_384),
    ("G/14", MAP, 1000, 1_882_797_416),
    ("S/16", BIG_VISION_BASELINE | {"pre_logits": 384}, 1000, 22_122_472),
    ("B/16", BIG_VISION_BASELINE | {"pre_logits": 768}, 1000, 87_006_184),
    ("S/16", DEIT3, 1000, 22_059_496),
    ("M/16", DEIT3, 1000, 38_849_512),
    ("B/16", DEIT3, 1000, 86_585_320),
    ("L/16", DEIT3, 1000, 304_374_760),
    ("H/14", DEIT3, 1000, 632_126_440),
    ("Ti/16", DISTILLED, 1000, 5_910_800),
    ("S/16", DISTILLED, 1000, 22_436_432),
    ("B/16", DISTILLED, 1000, 87_338_192),
    ("R+Ti/16", {}, 1000, 6_337_704),
    ("R26+S/32", {}, 1000, 36_431_912),
    ("R26+B/32", {}, 1000, 101_383_976),
    ("R50+B/16", {}, 1000, 98_659_112),
    ("R50+L/32", {}, 1000, 328_994_856),
    ("Mixer-S/16", {}, 1000, 18_528_264),
    ("Mixer-B/16", {}, 1000, 59_880_472),
    ("Mixer-B/32", {}, 1000, 60_293_428),
    ("Mixer-L/16", {}, 1000, 208_196_168),
    ("Mixer-H/14", {}, 1000, 432_350_952),
    ("S/16", {}, 21_843, 30_075_219),
    ("B/16", {}, 21_843, 102_595_923),
    ("L/16", {}, 21_843, 325_690_707),
    ("B/16", {"pre_logits": 768}, 21_843, 103_186_515),
    # Without a head the model returns the head's input: D·K + K fewer.
    ("Ti/16", {}, 0, 5_717_416 - 192_000 - 1_000),
    # Four registers add four tokens without positions.
    ("Ti/16", {"registers": 4}, 1000, 5_717_416 + 4 * 192),
    ("Ti/16", {"registers": 4, "register_positions": True}, 1000, 5_717_416 + 8 * 192),
]


@functools.cache
def count(name, image_size=224, num_classes=1000, **fields):
    """Counts the parameters of a variant without allocating them."""
    size = (image_size, image_size)
    architecture = architecture_from_variant(
        name, image_size=size, num_classes=num_classes, **fields
    )
    params = abstract_params(architecture)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_every_variant(name):
    with_token, averaged, at_384 = COUNTS[name]
    assert count(name) == with_token
    assert count(name, pooling="gap") == averaged
    if at_384 is None:
        with pytest.raises(ValueError, match="nearest: 378 and 392"):
            count(name, image_size=384)
    else:
        assert count(name, image_size=384) == at_384


@pytest.mark.parametrize(("name", "fields", "num_classes", "expected"), OTHERS)
def test_parameters_of_other_families(name, fields, num_classes, expected):
    assert count(name, num_classes=num_classes, **fields) == expected


def test_every_variant_is_counted_above():
    assert {name.split("/")[0] for name in COUNTS} == set(VARIANTS)
    others = {name for name, *_ in OTHERS}
    assert others >= set(HYBRIDS)
    assert {name.split("/")[0] for name in others} >= set(MIXERS)


@pytest.mark.parametrize("changes", [{}, {"trunk": (1,), "patch_size": (4, 4)}])
def test_abstract_parameters_are_those_of_init(changes, tiny):
    architecture = tiny(depth=3, image_size=(8, 8), **changes)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    model = build(architecture)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variables == {"params": abstract_params(architecture)}
