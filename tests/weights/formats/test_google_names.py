"""Names and shapes in Google's files, of published models and damaged ones."""

import re

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture, architecture_from_variant
from vit_jax.weights.formats.google import FORMAT
from vit_jax.weights.formats.layout import Hints


def test_names_and_shapes_of_the_real_b16(shapes_in_file):
    architecture = Architecture.from_variant(
        "B/16", image_size=(224, 224), num_classes=21_843, pre_logits=768
    )
    expected = {
        "cls": (1, 1, 768),
        "embedding/kernel": (16, 16, 3, 768),
        "embedding/bias": (768,),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        "Transformer/encoder_norm/scale": (768,),
        "Transformer/encoder_norm/bias": (768,),
        "pre_logits/kernel": (768, 768),
        "pre_logits/bias": (768,),
        "head/kernel": (768, 21_843),
        "head/bias": (21_843,),
    }
    for i in range(12):
        block = f"Transformer/encoderblock_{i}"
        for name in "query", "key", "value":
            attention = f"{block}/MultiHeadDotProductAttention_1/{name}"
            expected |= {
                f"{attention}/kernel": (768, 12, 64),
                f"{attention}/bias": (12, 64),
            }
        expected |= {
            f"{block}/LayerNorm_0/scale": (768,),
            f"{block}/LayerNorm_0/bias": (768,),
            f"{block}/MultiHeadDotProductAttention_1/out/kernel": (12, 64, 768),
            f"{block}/MultiHeadDotProductAttention_1/out/bias": (768,),
            f"{block}/LayerNorm_2/scale": (768,),
            f"{block}/LayerNorm_2/bias": (768,),
            f"{block}/MlpBlock_3/Dense_0/kernel": (768, 3072),
            f"{block}/MlpBlock_3/Dense_0/bias": (3072,),
            f"{block}/MlpBlock_3/Dense_1/kernel": (3072, 768),
            f"{block}/MlpBlock_3/Dense_1/bias": (768,),
        }
    assert shapes_in_file(FORMAT, architecture) == expected
    found = FORMAT.read(expected, Hints())
    assert found.architecture == architecture
    assert found.outputs == "independent"  # ImageNet-21k has several labels per image


_SIZES = {
    "Ti": {"width": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
    "S": {"width": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16},
}
# (units per stage, kernel, grid, parameters) for 1000 classes at 224 pixels.
HYBRIDS = {
    "R+Ti/16": ((), (8, 8), (7, 7), 6_337_704),
    "R26+S/32": ((2, 2, 2, 2), (1, 1), (7, 7), 36_431_912),
    "R26+B/32": ((2, 2, 2, 2), (1, 1), (7, 7), 101_383_976),
    "R50+B/16": ((3, 4, 9), (1, 1), (14, 14), 98_659_112),
    "R50+L/32": ((3, 4, 6, 3), (1, 1), (7, 7), 328_994_856),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_published_hybrids(name, published, shapes_in_file):
    trunk, kernel, grid, count = HYBRIDS[name]
    size = _SIZES[re.search(r"\+(\w+)/", name)[1]]
    shapes = published.google(
        trunk=trunk, kernel=kernel, grid=grid, num_classes=1000, **size
    )
    assert sum(map(np.prod, shapes.values())) == count
    architecture = FORMAT.read(shapes, Hints()).architecture
    assert architecture == architecture_from_variant(
        name, image_size=(224, 224), num_classes=1000
    )
    assert architecture.trunk_numerics == "google"
    assert shapes_in_file(FORMAT, architecture) == shapes


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [
        ("Mixer-B/16", {"width": 768, "depth": 12, "hidden": 384}, 59_880_472),
        ("Mixer-L/16", {"width": 1024, "depth": 24, "hidden": 512}, 208_196_168),
    ],
)
def test_published_mixers(name, sizes, count, published, shapes_in_file):
    shapes = published.mixer(
        tokens=196, mlp_dim=4 * sizes["width"], num_classes=1000, **sizes
    )
    shapes["stem/kernel"] = (16, 16, 3, sizes["width"])
    assert sum(map(np.prod, shapes.values())) == count
    architecture = FORMAT.read(shapes, Hints()).architecture
    assert architecture == architecture_from_variant(
        name, image_size=(224, 224), num_classes=1000
    )
    assert shapes_in_file(FORMAT, architecture) == shapes


def test_every_difference_is_reported_at_once(published, random_arrays, read):
    arrays = random_arrays(published.google())
    block = "Transformer/encoderblock_1"
    query = f"{block}/MultiHeadDotProductAttention_1/query/kernel"
    arrays[query] = arrays[query].reshape(16, 4, 4)  # another number of heads
    del arrays[f"{block}/LayerNorm_2/scale"], arrays["head/bias"]
    arrays["Transformer/encoderblock_1/LayerScale_0/gamma"] = np.ones(16)
    with pytest.raises(UserError) as error:
        read(FORMAT, arrays)
    message = str(error.value)
    assert f"2 missing: {block}/LayerNorm_2/scale, head/bias" in message
    assert f"1 unexpected: {block}/LayerScale_0/gamma" in message
    expected = "expected (16, 2, 8), found (16, 4, 4)"
    assert f"1 of another shape: {query} ({expected})" in message


def test_names_of_both_numberings_do_not_hide_each_other(
    published, random_arrays, read
):
    arrays = random_arrays(published.google())
    extra = "Transformer/encoderblock_0/LayerNorm_1/scale"
    with pytest.raises(UserError, match=f"1 unexpected: {extra}"):
        read(FORMAT, arrays | {extra: np.ones(16, np.float32)})


def test_missing_tensors_that_determine_the_sizes_are_named(
    published, random_arrays, read
):
    arrays = random_arrays(published.google())
    position = "Transformer/posembed_input/pos_embedding"
    arrays[position] = arrays[position][0]
    del arrays["embedding/kernel"]
    with pytest.raises(UserError) as error:
        read(FORMAT, arrays)
    assert "embedding/kernel is missing" in str(error.value)
    assert f"{position} has shape (5, 16), expected 3 dimensions" in str(error.value)

    # Any block determines the sizes, so this one is reported as missing.
    arrays = random_arrays(published.google())
    gone = "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"
    del arrays[gone]
    with pytest.raises(UserError, match=f"1 missing: {gone}$"):
        read(FORMAT, arrays)
