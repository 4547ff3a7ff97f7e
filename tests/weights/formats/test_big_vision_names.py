"""Names and shapes in big_vision's files: recognition, and damaged files."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.formats import google
from vit_jax.weights.formats.big_vision import FORMAT
from vit_jax.weights.formats.layout import Hints

OLDER = "Transformer/pos_embedding"
OLDEST = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize(
    ("options", "format"),
    [
        ({"linen": False, "place": OLDEST, "class_token": True}, google.FORMAT),
        ({"linen": False, "place": OLDEST}, google.FORMAT),
        ({"linen": True, "place": OLDEST}, FORMAT),
        ({"linen": False, "place": OLDER}, FORMAT),
        ({"linen": False, "place": "pos_embedding"}, FORMAT),
        (
            {"linen": False, "place": OLDEST, "map_head": "MAPHead_0/"},
            FORMAT,
        ),
        ({"linen": False, "place": OLDEST, "map_head": ""}, FORMAT),
        ({"linen": True, "place": None}, FORMAT),
        # Positions in Google's files are never fixed, so this is a damaged one.
        ({"linen": False, "place": None}, google.FORMAT),
    ],
)
def test_google_and_big_vision_are_told_apart(options, format, published):
    names = published.big_vision(**options)
    # In the order in which the formats are tried.
    first = next(f for f in (google.FORMAT, FORMAT) if f.recognises(names))
    assert first.name == format.name


@pytest.mark.parametrize(
    "names", [[], ["blocks.0.attn.qkv.weight"], ["head/kernel"], ["pos_embedding"]]
)
def test_other_files_are_not_recognised(names):
    assert not FORMAT.recognises(names)
    assert not google.FORMAT.recognises(names)


def test_parameters_of_the_published_s16(published, shapes_in_file):
    size = {"width": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6}
    shapes = published.big_vision(
        **size, place=None, kernel=(16, 16), num_classes=1000, pre_logits=384
    )
    assert sum(map(np.prod, shapes.values())) == 22_122_472
    found = FORMAT.read(shapes, Hints())
    assert found.assumed == (
        "assumed the image size 224×224: the file has no positions that would "
        "determine it",
    )
    assert found.architecture == Architecture.from_variant(
        "S/16",
        image_size=(224, 224),
        num_classes=1000,
        pooling="gap",
        posemb="sincos2d",
        pre_logits=384,
    )
    assert shapes_in_file(FORMAT, found.architecture) == shapes


def test_parameters_of_the_published_attention_pooling(published, shapes_in_file):
    size = {"width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12}
    shapes = published.big_vision(
        **size,
        grid=(14, 14),
        kernel=(16, 16),
        map_head="MAPHead_0/",
        num_classes=1000,
    )
    assert sum(map(np.prod, shapes.values())) == 93_653_224
    architecture = FORMAT.read(shapes, Hints()).architecture
    assert shapes_in_file(FORMAT, architecture) == shapes


def test_every_difference_is_reported_at_once(published, random_arrays, read):
    arrays = random_arrays(published.big_vision(map_head="MAPHead_0/"))
    query = "MAPHead_0/MultiHeadDotProductAttention_0/query/kernel"
    arrays[query] = arrays[query].reshape(16, 4, 4)
    del arrays["MAPHead_0/probe"], arrays["head/bias"]
    arrays["Transformer/encoderblock_1/extra"] = np.ones(16)
    with pytest.raises(UserError) as error:
        read(FORMAT, arrays)
    message = str(error.value)
    assert "2 missing: MAPHead_0/probe, head/bias" in message
    assert "1 unexpected: Transformer/encoderblock_1/extra" in message
    expected = "expected (16, 2, 8), found (16, 4, 4)"
    assert f"1 of another shape: {query} ({expected})" in message


def test_a_stack_of_absurd_depth_is_not_unpacked(published, read, random_arrays):
    arrays = random_arrays(published.big_vision(stacked=True))
    name = "Transformer/encoderblock/LayerNorm_0/bias"
    arrays[name] = np.zeros((100_000, 1), np.float32)
    with pytest.raises(UserError, match=f"1 unexpected: {name}"):
        read(FORMAT, arrays)
