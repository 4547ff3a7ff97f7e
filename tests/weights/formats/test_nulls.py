"""null means absent, in every field of every companion file."""

import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.formats.companion import without_nulls
from vit_jax.weights.formats.layout import Hints

MODULES = {"timm": timm, "huggingface": huggingface}
MODEL = Architecture(
    width=16,
    depth=1,
    mlp_dim=32,
    num_heads=4,
    patch_size=(4, 4),
    image_size=(16, 16),
    num_classes=3,
    gelu="exact",
)
# Fields that libraries write and our own files lack.
MORE = {
    ("timm", "config.json"): {"num_heads": 4, "global_pool": "token"},
    ("huggingface", "config.json"): {
        "problem_type": "multi_label_classification",
        "pooler_act": "tanh",
    },
    ("huggingface", "preprocessor_config.json"): {
        "feature_extractor_type": "ViTFeatureExtractor",
        "do_center_crop": True,
    },
}


def companions(format):
    images = Preprocessing((16, 16), 3, "resize(20)|central_crop")
    found = MODULES[format].companions(MODEL, images, ("a", "b", "c"))
    return {
        file: content | MORE.get((format, file), {}) for file, content in found.items()
    }


def fields(table, path=()):
    """Lists the paths of all fields of nested objects."""
    for name, value in table.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from fields(value, (*path, name))


def changed(table, path, null):
    """Copies nested objects with one field null or left out."""
    first, *rest = path
    copy = dict(table)
    if rest:
        copy[first] = changed(table[first], rest, null)
    elif null:
        copy[first] = None
    else:
        del copy[first]
    return copy


CASES = [
    (format, file, path)
    for format in MODULES
    for file, content in companions(format).items()
    for path in fields(content)
]


def described(format, shapes, files):
    hints = Hints(
        config=files["config.json"],
        preprocessor=files.get("preprocessor_config.json", {}),
        num_heads=4,
    )
    try:
        return MODULES[format].FORMAT.read(shapes, hints)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("format", "file", "path"), CASES, ids=[".".join(case[2]) for case in CASES]
)
def test_null_is_read_like_an_absent_field(format, file, path, shapes_in_file):
    shapes = shapes_in_file(MODULES[format].FORMAT, MODEL)
    files = companions(format)
    null, absent = (
        described(format, shapes, files | {file: changed(files[file], path, null)})
        for null in (True, False)
    )
    assert null == absent


def test_a_crop_that_is_null_is_none(shapes_in_file):
    """The fault that was found: crop_size: null cropped."""
    shapes = shapes_in_file(huggingface.FORMAT, MODEL)
    told = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 20, "width": 20},
        "crop_size": None,
        "do_center_crop": None,
    }
    found = huggingface.FORMAT.read(shapes, Hints(preprocessor=told, num_heads=4))
    # As without the field: 20 × 20 is not what the model takes, which is said.
    assert "central_crop" not in found.preprocessing.eval_transform
    assert any("images of 20×20, but the model takes 16×16" in s for s in found.assumed)


def test_nested_objects():
    table = {"a": None, "b": {"c": None, "d": [None, 1]}, "e": 0, "f": ""}
    assert without_nulls(table) == {"b": {"d": [None, 1]}, "e": 0, "f": ""}
