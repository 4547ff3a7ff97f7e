"""Tests of `vit_jax.explain`: what it takes, its table, its page and its drawing."""

import re
import xml.etree.ElementTree

import pytest

import vit_jax
from vit_jax.errors import UserError
from vit_jax.models import architecture_from_variant
from vit_jax.walkthrough import Walkthrough
from vit_jax.walkthrough.texts import with_unit


def test_golden_numbers():
    found = vit_jax.explain("B/16", image_size=224)
    assert found.parameters == 86_567_656
    assert with_unit(found.flops) == "35.1 GFLOPs"
    assert found.stages[0].output == (196, 768)
    assert found.stages[3].output == (197, 768)
    assert vit_jax.explain("B/16", image_size=384, depth=1).stages[3].output[0] == 577


def test_whatever_describes_a_model(make_teacher, make_workdir, tmp_path):
    expected = {"width": 16, "depth": 1, "patch_size": (4, 4), "image_size": (8, 8)}
    workdir = make_workdir(tmp_path / "run", depth=1)
    file = make_teacher()
    model = vit_jax.load(file)
    stages = []
    for source in (file, workdir, str(workdir), model, model.architecture):
        found = vit_jax.explain(source)
        a = found.architecture
        assert expected == {name: getattr(a, name) for name in expected}
        stages.append(found.stages)
    assert all(each == stages[0] for each in stages)


def test_size_classes_and_fields_can_be_changed():
    plain = architecture_from_variant("Ti/16", image_size=(32, 32), num_classes=5)
    for found in (
        vit_jax.explain("Ti/16", image_size=(48, 32), num_classes=7, depth=1),
        vit_jax.explain(plain, image_size=(48, 32), num_classes=7, depth=1),
    ):
        assert found.architecture.grid == (3, 2)
        assert found.stages[-1].output == (7,)
    wider = vit_jax.explain(plain, patch_size=8, depth=1, registers=2)
    assert wider.stages[3].output == (1 + 2 + 16, 192)


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (("B/16",), {"image_size": 225}, "225 is not a multiple of the patch"),
        (("B/16",), {"image_size": "large"}, "image_size='large': expected a number"),
        (("B/16",), {"register": 2}, "cannot be made with register"),
        (("C/16",), {}, "did you mean"),
        (("no_such_file.npz",), {}, "no_such_file.npz"),
        ((7,), {}, "model=7: expected the name of a variant"),
    ],
)
def test_mistakes_are_explained(arguments, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        vit_jax.explain(*arguments, **fields)


def test_unknown_fields_of_an_architecture_are_explained():
    plain = architecture_from_variant("Ti/16", image_size=(32, 32), num_classes=5)
    with pytest.raises(UserError, match="register: Architecture has no such field"):
        vit_jax.explain(plain, register=2)
    with pytest.raises(UserError, match="pooling is 'mean'"):
        vit_jax.explain(plain, pooling="mean")


def test_table():
    text = str(vit_jax.explain("S/16", num_classes=10, depth=2))
    lines = text.splitlines()
    assert lines[:4] == [
        "S/16, image 224×224×3: 3,924,874 parameters, 1.6 GFLOPs",
        "stage                in         out        parameters    FLOPs",
        "cut into patches     224×224×3  196×768",
        "patch embedding      196×768    196×384       295,296  115.6 M",
    ]
    assert "in each of 2 blocks, counted together:" in lines
    assert "  attention weights  197×384    6×197×197               59.6 M" in lines
    assert lines[-1] == "in all" + " " * 38 + "3,924,874    1.6 G"


def test_table_fits_80_columns():
    large = {"image_size": (1036, 2044), "patch_size": (14, 14), "num_classes": 21843}
    found = vit_jax.explain("G/14", pooling="map", registers=4, depth=2, **large)
    assert max(map(len, str(found).splitlines())) <= 80
    assert repr(found) == str(found)


@pytest.fixture(scope="module")
def harmful():
    plain = vit_jax.explain("Ti/32", depth=2, pooling="map", image_size=(64, 96))
    name = "<script>alert(1)</script>&"
    return Walkthrough(name, plain.architecture, plain.stages)


def test_drawing_is_an_svg_file_of_all_stages(harmful):
    root = xml.etree.ElementTree.fromstring(harmful.drawing())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = [element.tag.partition("}")[2] for element in root.iter()]
    assert "script" not in tags
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("}text")]
    assert texts[0].startswith("<script>alert(1)</script>&, image 64×96×3")
    for stage in harmful.stages:
        assert stage.name in texts
    assert "2×3 patches" in texts and "× 2" in texts and "1000" in texts
    # A sum at the end of each residual branch of a block.
    assert tags.count("circle") == 2
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        if {"x", "y"} <= element.attrib.keys():
            assert 0 <= float(element.attrib["x"]) <= width
            assert 0 <= float(element.attrib["y"]) <= height


def test_bars_have_the_shares_of_the_totals(harmful):
    root = xml.etree.ElementTree.fromstring(harmful.drawing())
    bars = {"parameters": 0.0, "flops": 0.0}
    for element in root.iter():
        kind = element.attrib.get("class")
        if kind in bars and element.attrib["height"] == "12":
            bars[kind] += float(element.attrib["width"])
    # Half a pixel at least for each.
    assert bars["parameters"] == pytest.approx(220, abs=6)
    assert bars["flops"] == pytest.approx(220, abs=6)


def test_page_of_a_notebook_escapes_text(harmful):
    page = harmful._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("<tr>") == len(harmful.stages) + 2
    assert harmful.stages[-1].sentence in page and "<svg" in page
