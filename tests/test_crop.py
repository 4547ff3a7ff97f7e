"""The command that crops images, as its user runs it."""

import json
import re

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import crop
from vit_jax.inspect.boxes import attention_box
from vit_jax.inspect.crop_folder import CropFolder, open_folder, overlay
from vit_jax.inspect.cropping import METHODS, Cropper
from vit_jax.models import MixerArchitecture
from vit_jax.prediction.file_names import safe_name


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("crop")
    rng = np.random.default_rng(0)
    for name, size in (
        ("images/a b.JPG", (20, 30)),
        ("images/b.png", (30, 20)),
        ("images/below/b.PNG", (20, 30)),
        ("one.png", (20, 20)),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path / name, quality=95)
    (path / "images" / "broken.png").write_bytes(b"no image")
    (path / "images" / "notes.txt").write_text("no image")
    (path / "empty").mkdir()
    return path


@pytest.fixture
def model(make_teacher):
    return make_teacher(image_size=(16, 16))


@pytest.fixture
def run(run_command, capsys):
    def run(*arguments, status=0):
        """Runs the command; returns the records on standard output."""
        if status:
            with pytest.raises(SystemExit) as end:
                run_command(crop, *arguments)
            assert end.value.code == status
        else:
            run_command(crop, *arguments)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def _records(folder):
    lines = (folder / "boxes.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _refused(run_command, *arguments):
    with pytest.raises(SystemExit) as end:
        run_command(crop, *arguments)
    return str(end.value.code)


def test_a_folder_with_a_broken_file(shared, model, run, tmp_path, caplog):
    out = tmp_path / "made" / "out"
    small = ["--mass=0.2", "--padding=0"]
    arguments = [f"--checkpoint={model}", shared / "images", f"--out={out}", *small]
    assert run(*arguments, status=3) == []
    assert caplog.text.count("broken.png cannot be decoded: ") == 1
    records = _records(out)
    names = ["a b.JPG", "b.png", "below/b.PNG", "broken.png"]
    images = [str(shared / "images" / name) for name in names]
    assert [record["image"] for record in records] == images

    *good, bad = records
    assert set(bad) == {"image", "error"} and "cannot be decoded" in bad["error"]
    assert [record["crop"] for record in good] == [
        "crops/a_b.jpg",
        "crops/b.png",
        "crops/b-2.png",
    ]
    cropper = Cropper(vit_jax.load(model), mass=0.2, padding=0)
    for record, image in zip(good, images, strict=False):
        pixels = np.asarray(PIL.Image.open(image))
        height, width = pixels.shape[:2]
        assert record["size"] == [width, height]
        assert record["method"] == "attention"
        found = cropper(pixels)
        assert record["box"] == list(found.box)
        assert record["mass"] == pytest.approx(found.score, abs=1e-6)
        left, top, right, bottom = record["box"]
        cut = np.asarray(PIL.Image.open(out / record["crop"]))
        assert cut.shape == (bottom - top, right - left, 3)
        if record["crop"].endswith("png"):
            np.testing.assert_array_equal(cut, pixels[top:bottom, left:right])
        with PIL.Image.open(out / record["overlay"]) as painted:
            assert painted.size == (width, height)
    files = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert len(files) == 7  # nothing temporary is left


def test_without_a_folder_lines_are_printed(shared, model, run):
    images = [shared / "images", shared / "one.png", shared / "one.png"]
    records = run(f"--checkpoint={model}", *images, status=3)
    assert [set(record) for record in records] == [
        *3 * [{"image", "size", "method", "box", "mass"}],
        {"image", "error"},
        *2 * [{"image", "size", "method", "box", "mass"}],
    ]
    assert records[-1] == records[-2]


def test_flags_reach_the_boxes(shared, model, run):
    pixels = np.asarray(PIL.Image.open(shared / "one.png"))
    loaded = vit_jax.load(model)
    for given, keywords in (
        (["--mass=0.2", "--padding=0"], {"mass": 0.2, "padding": 0}),
        (
            ["--mass=0.2", "--padding=0", "--aspect=3:1"],
            {"mass": 0.2, "padding": 0, "aspect": 3},
        ),
        (["--image_size=8", "--padding=0.5"], {"image_size": 8, "padding": 0.5}),
        (["--method=tokencut_centred"], {"method": "tokencut_centred"}),
    ):
        (record,) = run(f"--checkpoint={model}", shared / "one.png", *given)
        found = Cropper(loaded, **keywords)(pixels)
        assert record["box"] == list(found.box), given
    assert record["method"] == "tokencut_centred" and "mass" not in record
    assert record["eigenvalue"] == pytest.approx(found.score, abs=1e-6)
    assert crop.FLAGS["method"].parser.enum_values == list(METHODS)


def test_the_white_of_deep_images_can_be_said(shared, model, run, tmp_path, caplog):
    deep = np.asarray(PIL.Image.open(shared / "one.png"))[..., 0].astype(np.float32)
    path = tmp_path / "deep.tif"
    PIL.Image.fromarray(deep * 16).save(path)
    run(f"--checkpoint={model}", path, status=3)
    assert "set data.white_level" in caplog.text
    (found,) = run(f"--checkpoint={model}", "--data=white_level=4080", path)
    grey = np.repeat(deep.astype(np.uint8)[..., None], 3, axis=2)
    assert found["box"] == list(Cropper(vit_jax.load(model))(grey).box)


def test_all_that_is_wrong_is_said_at_once(shared, model, run_command, tmp_path):
    (tmp_path / "file").touch()
    arguments = [shared / "empty", shared / "one.png", tmp_path / "none"]
    arguments += [f"--out={tmp_path / 'file'}", "--mass=1.5", "--padding=-1"]
    arguments += ["--aspect=4", "--image_size=0", "--data=splits=none", "--ema=0.9"]
    arguments += ["--raw", "--patch_size=x"]
    assert _refused(run_command, *arguments).splitlines() == [
        "error: no model given; pass its work directory, as in --checkpoint=runs/b16",
        "--mass=1.5: expected a share of the attention above 0 and below 1, such as "
        "0.6",
        "--padding=-1.0: expected a number of patches, 0 or more, such as 1",
        "--image_size=0: expected a number of pixels",
        f"--out={tmp_path / 'file'} is a file; pass a folder",
        "--aspect=4: expected WIDTH:HEIGHT, such as 4:3",
        "--data=splits=none: images are taken one by one here, so only "
        "white_level=VALUE applies",
        "--ema=0.9 and --raw are both given; pass one of them",
        "--patch_size=x: expected one side, or HEIGHT,WIDTH, in pixels",
        f"{shared / 'empty'}: the folder contains no images",
        f"{tmp_path / 'none'}: no such file or folder",
    ]
    for aspect in ("4:0", "0:4", "4:3:2", "a:b", "nan:1", "-4:3"):
        error = _refused(run_command, f"--aspect={aspect}")
        assert f"--aspect={aspect}: expected WIDTH:HEIGHT" in error
        assert "no images given; pass image files, or folders of them" in error
    error = _refused(run_command, "--method=tokencut", "--mass=0.5")
    assert "--mass=0.5: --method=tokencut keeps no share of a mass" in error
    assert "should be one of <attention|" in _refused(run_command, "--method=lost")


def test_boxes_are_not_overwritten(shared, model, run, run_command, tmp_path):
    arguments = [f"--checkpoint={model}", shared / "one.png", f"--out={tmp_path}"]
    run(*arguments)
    before = (tmp_path / "boxes.jsonl").read_text()
    error = _refused(run_command, *arguments)
    assert f"{tmp_path / 'boxes.jsonl'} has boxes already; pass another --out" in error
    assert (tmp_path / "boxes.jsonl").read_text() == before


def test_models_without_attention_are_refused(
    shared, make_teacher, run_command, tmp_path
):
    mixer = MixerArchitecture(
        width=16,
        depth=1,
        tokens_mlp_dim=8,
        mlp_dim=32,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=3,
    )
    path = make_teacher("mixer", architecture=mixer, class_names="abc")
    out = tmp_path / "out"
    arguments = [f"--checkpoint={path}", shared / "one.png", f"--out={out}"]
    error = _refused(run_command, *arguments)
    assert error.startswith("error: this model is an MLP-Mixer, which has neither")
    assert not out.exists()
    path = make_teacher("bands", channels=6)
    error = _refused(run_command, f"--checkpoint={path}", *arguments[1:])
    assert re.search("images of 6 channels, which no picture can show", error)
    assert not out.exists()


def test_grey_models_make_grey_crops(shared, make_teacher, run, tmp_path):
    path = make_teacher("grey", channels=1)
    run(f"--checkpoint={path}", shared / "one.png", f"--out={tmp_path / 'out'}")
    with PIL.Image.open(tmp_path / "out" / "crops" / "one.png") as cut:
        assert cut.mode == "L"
    with PIL.Image.open(tmp_path / "out" / "overlays" / "one.jpg") as painted:
        assert painted.mode == "RGB"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a b/c d.JPG", ("c_d", ".jpg")),
        ("/x/Ünïcode-1.tar.png", ("Ünïcode-1.tar", ".png")),
        ("<script>.png", ("_script_", ".png")),
        ("..png", ("png", "")),
        ("...hidden.png", ("hidden", ".png")),
        ("con:aux?*|.png", ("con_aux___", ".png")),
        ("\udcff.png", ("_", ".png")),
        ("x" * 300 + ".png", ("x" * 50, ".png")),
        ("https://a.b/c%20d.jpeg?size=3.png", ("c_d", ".jpeg")),
        ("https://a.b", ("image", "")),
        ("image 3", ("image_3", "")),
    ],
)
def test_names_of_files_are_safe(image, expected):
    assert safe_name(image) == expected


def test_equal_names_get_numbers(tmp_path):
    found = attention_box(np.ones((2, 2)), (4, 4))
    pixels = np.zeros((4, 4, 3), np.uint8)
    with open_folder(tmp_path) as folder:
        assert isinstance(folder, CropFolder)
        for image in ("a.png", "x/A.png", "a-2.jpg", "y/a.png"):
            folder.add({"image": image}, pixels, found)
    lines = _records(tmp_path)
    names = ["a.png", "A-2.png", "a-2-2.jpg", "a-3.png"]
    assert [line["crop"] for line in lines] == [f"crops/{name}" for name in names]


def test_an_overlay_shows_the_map_and_the_box():
    weights = np.zeros((4, 4))
    weights[1, 2] = 1
    found = attention_box(weights, (400, 800), padding=1)
    pixels = np.full((400, 800, 3), 100, np.uint8)
    painted = np.asarray(overlay(pixels, found, side=400))
    assert painted.shape == (200, 400, 3)
    assert painted[75, 250].tolist() == [193, 88, 40]  # 60 % of the heat's colour
    assert painted[25, 50].tolist() == [100, 100, 100]
    assert painted[100, 100].tolist() == [255, 255, 255]  # the left side of the box
    transparent = np.dstack([pixels, np.zeros((400, 800), np.uint8)])
    np.testing.assert_array_equal(overlay(transparent, found, side=400), painted)
