"""Tests of sweeps over patches, image sizes and variants, and of their files."""

import csv
import functools
import json
import re
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from vit_jax.errors import UserError
from vit_jax.models import abstract_params, architecture_from_variant, build
from vit_jax.models.flops import count
from vit_jax.plan import __main__ as command
from vit_jax.plan import model_sweeps, report, sweep_files
from vit_jax.plan.forward import measure_forward
from vit_jax.plan.topologies import topology
from vit_jax.train.setup import set_up


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the command and returns what it printed."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plan", *map(str, arguments)])
        command._main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def shallow(monkeypatch):
    """Variants of one block, which are traced quickly."""
    make = model_sweeps.architecture_from_variant
    monkeypatch.setattr(
        model_sweeps, "architecture_from_variant", functools.partial(make, depth=1)
    )


def by_value(text):
    [key] = json.loads(text)["sweep"][0]["set"]
    return {row["set"][key]: row for row in json.loads(text)["sweep"]}


def test_golden_numbers_by_size(run, monkeypatch):
    monkeypatch.setattr(model_sweeps, "SIZES", (224, 225, 384))
    rows = by_value(run("--sweep=size", "--json"))
    assert list(rows) == ["224", "384"]
    b16 = rows["224"]
    assert (b16["params"], b16["tokens"]) == (86_567_656, 197)
    assert b16["flops_per_image"] == 35_127_656_448
    assert b16["attention_bytes"] == 12 * 197 * 197 * 4
    assert rows["384"]["tokens"] == 577
    assert rows["384"]["flops_per_image"] / 1e9 == pytest.approx(111.0, abs=0.05)
    for name in ("forward_seconds", "forward_peak", "peak", "hyb_seconds", "fits"):
        assert b16[name] is None


def test_patches_that_do_not_divide_are_named_and_left_out(run, shallow):
    found = run("--sweep=patch", "--variant=Ti/16", "--image_size=160,224", "--json")
    assert list(by_value(found)) == ["8", "16", "32"]
    assert [row["tokens"] for row in by_value(found).values()] == [561, 141, 36]
    assert json.loads(found)["left_out"] == {"14": "not a divisor of 160×224"}
    # The variant's own patch need not divide the image.
    assert list(by_value(run("--sweep=patch", "--image_size=42", "--json"))) == ["14"]


def test_sizes_that_do_not_divide_are_named_and_left_out(run, shallow):
    text = run("--sweep=size", "--variant=S/14")
    assert re.findall(r"^(\d+) +([\d,]+) ", text, re.M) == [
        ("224", "257"),
        ("448", "1,025"),
    ]
    reason = "Left out: 160, 192, 256, 288, 320, 384, 512 (not a multiple of 14×14)."
    assert reason in text


def test_variants_of_each_kind(run, shallow):
    found = by_value(run("--sweep=variant", "--json", "--image_size=64"))
    assert list(found) == [f"{n}/16" for n in ("Ti", "S", "B", "L", "H", "g", "G")]
    for name in ("S/16", "G/16"):
        row = found[name]
        a = architecture_from_variant(
            name, image_size=(64, 64), num_classes=1000, depth=1
        )
        leaves = jax.tree.leaves(abstract_params(a))
        assert row["params"] == sum(leaf.size for leaf in leaves)
        assert row["flops_per_image"] == count(a).total
    mixers = by_value(
        run("--sweep=variant", "--variant=Mixer-S/32", "--json", "--image_size=64")
    )
    assert list(mixers) == [f"Mixer-{n}/32" for n in "SBLH"]
    assert all(row["attention_bytes"] == 0 for row in mixers.values())


def test_table_fits_80_columns(capsys):
    row = {
        "set": {"image_size": "1,024x2,048"},
        "tokens": 10_241,
        "params": 1_844_640_360,
        "flops_per_image": 7_380_000_000_000,
        "attention_bytes": 2_000_000_000,
        "forward_seconds": 12.3456,
        "forward_peak": 20 * 2**30,
        "peak": None,
        "hyb_seconds": None,
        "extrapolated": False,
    }
    report.show_model_sweep("G/16, by size", [row], {"5": "odd"}, 16, "")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "G/16, by size"
    header = "image_size tokens parameters FLOPs scores ms memory"
    assert " ".join(lines[1].split()) == header
    expected = "10,241 1,844,640,360 7.4 T 1,907.35 MiB 12,345.6 20.00 GiB"
    assert expected in " ".join(lines[2].split())
    assert "Left out: 5 (odd)." in lines
    assert "a forward pass of 16 images, measured on this machine" in lines[-1]


def test_what_is_extrapolated_is_marked(capsys):
    row = {
        "set": {"patch_size": "16"},
        "tokens": 197,
        "params": 1,
        "flops_per_image": 1,
        "attention_bytes": 1,
        "hyb_seconds": 0.25,
        "peak": 2**30,
        "extrapolated": True,
    }
    report.show_model_sweep("B, by patch", [row], {}, 0, "v5e:2x2")
    text = capsys.readouterr().out
    assert "250.0  ≈ 1.00 GiB" in text
    assert "a training step, per device of v5e:2x2." in text
    assert "≈ extrapolated linearly" in text


@pytest.mark.parametrize(
    "fields",
    [{}, {"registers": 2}, {"prompts": 3}, {"prompts": 3, "prompts_deep": True}],
    ids=str,
)
def test_scores_have_the_size_of_the_attention_weights(fields):
    a = architecture_from_variant(
        "Ti/16", image_size=(32, 48), num_classes=2, depth=1, **fields
    )
    names = ("attention", "prompt_attention")[: 1 + bool(a.prompts)]
    images = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)

    def weights(params, images):
        model = build(a)
        return model.apply({"params": params}, images, intermediates=names)[1]

    found = jax.eval_shape(weights, abstract_params(a), images)
    size = sum(x.size for x in found.values())
    if a.prompts and not a.prompts_deep:
        size += a.num_heads * a.prompts * a.num_tokens  # rows that are not returned
    assert model_sweeps.score_bytes(a) == 4 * size


def test_forward_passes_are_measured():
    a = architecture_from_variant("Ti/16", image_size=(32, 32), num_classes=2, depth=1)
    found = measure_forward(a, 3)
    params = sum(4 * leaf.size for leaf in jax.tree.leaves(abstract_params(a)))
    images = 3 * 32 * 32 * 3 * 4
    assert params + images < found.peak_bytes < params + images + 10_000_000
    assert found.seconds is not None and 0 < found.seconds < 60


def test_a_model_that_does_not_fit_is_not_run(monkeypatch):
    a = architecture_from_variant("Ti/16", image_size=(32, 32), num_classes=2, depth=1)
    here = topology()
    small = here.chip._replace(usable_bytes=1000)
    monkeypatch.setattr(
        "vit_jax.plan.forward.topology",
        lambda: here.__class__(here.name, here.devices, small),
    )
    assert measure_forward(a, 1).seconds is None


@pytest.fixture
def argv(tmp_path, tiny_recipe):
    recipe = tiny_recipe(tmp_path, **{"model.depth": 1, "augment.train": None})
    return [f"--config={recipe}"]


def test_sweep_of_a_recipe_has_its_own_numbers(run, argv, tmp_path, monkeypatch):
    monkeypatch.setattr(model_sweeps, "PATCHES", (2, 3, 4, 8))
    arguments = [*argv, "--sweep=patch", "--json"]
    answer = run(*arguments)
    rows = by_value(answer)
    assert json.loads(answer)["left_out"] == {"3": "not a divisor of 8×8"}
    tokens = {value: row["tokens"] for value, row in rows.items()}
    assert tokens == {"2": 17, "4": 5, "8": 2}
    # Without --topology nothing is compiled.
    assert all(row["peak"] is None for row in rows.values())
    monkeypatch.setattr(model_sweeps, "PATCHES", (4,))
    [row] = by_value(run(*arguments, "--topology=cpu")).values()
    plan = json.loads(run(*argv, "--json", "--topology=cpu"))
    same = ("params", "tokens", "flops_per_image", "fits")
    assert {n: row[n] for n in same} == {n: plan[n] for n in same}
    assert row["peak"] == plan["bytes"]["peak"]
    assert row["extrapolated"] is False


def test_values_that_a_recipe_refuses_are_left_out(monkeypatch, argv):
    here = topology()
    prepare = functools.partial(set_up, devices=here.devices)
    monkeypatch.setattr(model_sweeps, "SIZES", (8, 12, 16))

    def refusing(config):
        if config.image_size == (12,):
            raise UserError("not today\nat all")
        return prepare(config)

    base = model_sweeps.Base("Ti/4", (8, 8), (4, 4), False)
    arguments = ["plan", *argv]
    points, left_out = model_sweeps.points_of_recipe("size", base, arguments, refusing)
    assert [point.value for point in points] == ["8", "16"]
    assert left_out == {"12": "not today"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep=patches"], "or patch, size or variant on its own"),
        (["--sweep=patch", "--sweep=size"], "one of patch, size, variant at a time"),
        (["--sweep=patch", "--sweep=batch_size=8"], "without other sweeps"),
        (["--sweep=patch", "--suggest"], "--suggest does not go with --sweep=patch"),
        (["--sweep=patch", "--topology=cpu"], "pass --config as well"),
        (["--sweep=patch", "--topology=cpu", "--measure=1"], "pass one of them"),
        (["--sweep=patch", "--image_size=x"], "--image_size=x: expected one side"),
        (["--sweep=patch", "--variant=C/16"], "unknown variant 'C/16'"),
        (["--sweep=patch", "--variant=R50+B/16"], "one patch size, which its ResNet"),
        (["--sweep=patch", "--image_size=9"], "8, 14, 16, 32 are not a divisor of 9×9"),
        (["--sweep=variant", "--image_size=9"], "9 is not a multiple of the patch"),
        (["--sweep=patch", "--csv=x.txt"], "expected a file that ends in .csv"),
        (["--sweep=patch", "--plot=x.gif"], "that ends in .svg or .png"),
        (["--sweep=patch", "--plot=no/x.svg"], "there is no folder no"),
        (["--sweep=patch", "surplus"], "unexpected arguments ['surplus']"),
        (["--csv=x.csv"], "--csv belongs to --sweep=patch"),
        (["--measure=1"], "--measure belongs to --sweep=patch"),
        (["--sweep=patch", "--measure=-1"], "--measure=-1"),
    ],
)
def test_mistakes_get_one_line(run, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant=B/16"], "--variant is for a sweep without a recipe"),
        (["--image_size=8"], "pass --config.image_size"),
        (["--config.batch_sice=1"], "batch_sice: no such key"),
    ],
)
def test_mistakes_with_a_recipe(run, argv, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(*argv, "--sweep=size", *arguments)


def test_recipe_without_a_variant(monkeypatch):
    base = model_sweeps.Base("", (8, 8), (4, 4), False)
    with pytest.raises(UserError, match=r"pass --config\.model\.variant"):
        model_sweeps.points_of_recipe("variant", base, [], lambda config: config)


@pytest.fixture
def rows(monkeypatch):
    numbers = {
        "tokens": 5,
        "params": 1_234_567,
        "flops_per_image": 3_000_000_000,
        "attention_bytes": 2**20,
        "forward_seconds": None,
        "forward_peak": None,
        "peak": 2**31,
        "fits": True,
        "hyb_seconds": 0.25,
        "cyc_seconds": 0.5,
        "extrapolated": False,
    }
    return [
        {"set": {"image_size": "160"}} | numbers,
        {"set": {"image_size": "224"}} | numbers | {"peak": None, "params": 2_000_000},
    ]


def test_csv_has_the_numbers(rows, tmp_path):
    path = tmp_path / "found.csv"
    sweep_files.write_csv(rows, path)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["image_size"] == "160" and second["image_size"] == "224"
    assert (first["params"], second["params"]) == ("1234567", "2000000")
    assert (first["peak"], second["peak"]) == (str(2**31), "")
    assert first["hyb_seconds"] == "0.25" and first["forward_seconds"] == ""


def test_plot_has_a_panel_for_each_known_number(rows, tmp_path):
    path = tmp_path / "found.svg"
    sweep_files.write_plot(rows, "B/16 <by size>", path)
    root = xml.etree.ElementTree.parse(path).getroot()
    texts = [e.text.strip() for e in root.iter() if e.tag.endswith("}text") and e.text]
    assert "B/16 <by size>" in texts
    panels = ["tokens", "parameters, millions", "forward GFLOPs per image"]
    panels += ["scores of a block, MiB per image", "training step, ms (hyb)"]
    panels += ["training step, GiB per device"]
    assert [text for text in texts if text in panels] == panels
    assert not any("forward pass" in text for text in texts)
    # Both values of each panel but the last, which has one.
    assert texts.count("1.23") == 1 and texts.count("250") >= 2
    before = path.read_bytes()
    sweep_files.write_plot(rows, "B/16 <by size>", path)
    assert path.read_bytes() == before


def test_plot_as_pixels(rows, tmp_path):
    path = tmp_path / "found.png"
    sweep_files.write_plot(rows, "title", path)
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 900 and pixels.shape[1] > 1200
    blue = np.array([31, 119, 180])
    assert (np.abs(pixels.astype(int) - blue).max(axis=-1) < 30).sum() > 1000


def test_files_are_written_by_the_command(run, shallow, tmp_path):
    table, plot = tmp_path / "a.csv", tmp_path / "a.svg"
    arguments = ["--sweep=patch", "--variant=Ti/16", "--image_size=64"]
    run(*arguments, f"--csv={table}", f"--plot={plot}")
    assert table.read_text().count("\n") == 4
    assert "Ti on 64×64 pixels, by patch" in plot.read_text()
