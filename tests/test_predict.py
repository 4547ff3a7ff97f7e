import csv
import json
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

import vit_jax
from vit_jax import predict
from vit_jax.errors import UserError
from vit_jax.prediction.arguments import count

NAMES = ("bird", "cat", "dog")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    for name in ("images/b.png", "images/a.JPG", "images/below/c.webp", "one.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (10, 14, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path / name)
    (path / "images" / "notes.txt").write_text("no image")
    (path / "images" / ".hidden.png").write_bytes(b"no image")
    (path / "empty").mkdir()
    return path


@pytest.fixture
def workdir(shared, make_workdir):
    path = shared / "run"
    return path if path.exists() else make_workdir(path, class_names=NAMES, depth=1)


@pytest.fixture
def run(run_command, capsys):
    def run(*arguments):
        """Runs the command and returns its output; a user error is a SystemExit."""
        run_command(predict, *arguments)
        return capsys.readouterr().out

    return run


def _fresh_process(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "vit_jax.predict", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(vit_jax.__file__).parents[1])},
        capture_output=True,
        text=True,
    )


def test_a_fresh_process_needs_only_the_work_directory(workdir, shared, tmp_path):
    images = [shared / "one.png", shared / "images"]
    done = _fresh_process(f"--checkpoint={workdir}", *images, "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    files = ["one.png", "images/a.JPG", "images/b.png", "images/below/c.webp"]
    paths = [str(shared / file) for file in files]
    assert [entry["image"] for entry in report["predictions"]] == paths
    expected = vit_jax.load(workdir).predict(paths)
    for entry, top in zip(report["predictions"], expected, strict=True):
        assert [row["class"] for row in entry["top"]] == [name for name, _ in top]
        found = [row["probability"] for row in entry["top"]]
        np.testing.assert_allclose(found, [p for _, p in top], atol=1e-6)


def test_the_white_of_deep_images_can_be_said(workdir, shared, tmp_path, run, caplog):
    deep = np.asarray(PIL.Image.open(shared / "one.png")).astype(np.uint16) * 16
    path = tmp_path / "deep.tif"
    PIL.Image.fromarray(deep[..., 0].astype(np.float32)).save(path)
    with pytest.raises(SystemExit):
        run(f"--checkpoint={workdir}", path)
    assert "set data.white_level to the value that is white" in caplog.text
    output = run(f"--checkpoint={workdir}", "--data=white_level=4080", path, "--json")
    (found,) = json.loads(output)["predictions"]
    grey = np.asarray(PIL.Image.open(shared / "one.png"))[..., 0]
    (expected,) = vit_jax.load(workdir).predict(grey)
    assert [row["class"] for row in found["top"]] == [name for name, _ in expected]
    probabilities = [row["probability"] for row in found["top"]]
    np.testing.assert_allclose(probabilities, [p for _, p in expected], atol=1e-6)


def test_other_ways_to_read_data_do_not_concern_predict(workdir, shared, run):
    for given in ("splits=none", "image_root=images"):
        with pytest.raises(SystemExit, match="so only white_level=VALUE applies"):
            run(f"--checkpoint={workdir}", f"--data={given}", shared / "one.png")


def test_a_bad_image_costs_one_result_and_a_status_of_its_own(
    workdir, shared, run_command, tmp_path, capsys, caplog
):
    whole = (shared / "one.png").read_bytes()
    for name, content in (("a", whole), ("b", whole[:99]), ("c", b""), ("d", whole)):
        (tmp_path / f"{name}.png").write_bytes(content)
    images = [tmp_path, shared / "one.png"]
    with pytest.raises(SystemExit) as end:
        run_command(predict, f"--checkpoint={workdir}", *images, "--json")

    assert end.value.code == predict.SOME_FAILED == 3
    assert "b.png cannot be decoded: " in caplog.text
    assert "c.png is empty" in caplog.text
    output, errors = capsys.readouterr()
    assert errors.endswith("2 of 5 images could not be read\n")
    assert output.count("\n") == 1
    report = json.loads(output)
    good = [tmp_path / "a.png", tmp_path / "d.png", shared / "one.png"]
    assert [each["image"] for each in report["predictions"]] == list(map(str, good))
    (expected,) = vit_jax.load(workdir).predict(shared / "one.png")
    for each in report["predictions"]:
        assert [row["class"] for row in each["top"]] == [name for name, _ in expected]
    assert [each["image"][-5:] for each in report["errors"]] == ["b.png", "c.png"]
    assert "is empty" in report["errors"][1]["error"]


def test_bad_images_print_nothing_but_their_names(
    workdir, shared, run, tmp_path, caplog
):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as end:
        run(f"--checkpoint={workdir}", tmp_path / "x.png", tmp_path / "x.png")
    assert end.value.code == predict.SOME_FAILED == 3
    assert caplog.text.count("x.png cannot be decoded: its 8 bytes are in none") == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_results_in_a_file_and_going_on(suffix, workdir, shared, run, tmp_path, capsys):
    out = tmp_path / f"results{suffix}"
    arguments = [f"--checkpoint={workdir}", f"--out={out}", "--top_k=2"]
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [shared / "images", tmp_path / "bad.png", shared / "one.png"]
    assert run(*arguments, shared / "images") == ""
    before = _read_results(out)
    assert len(before) == 3
    for _ in range(2):  # the second time, nothing is left to do
        with pytest.raises(SystemExit) as end:
            run(*arguments, *images)
        assert end.value.code == 3
        assert "1 of 5 images could not be read; " in capsys.readouterr().err
        found = _read_results(out)
        assert found[:3] == before
        bad, *_ = found[3]
        assert bad == str(tmp_path / "bad.png")
        assert "none of the formats" in found[3][1]
        assert len(found) == 5
    files = ["images/a.JPG", "images/b.png", "images/below/c.webp", "one.png"]
    paths = [str(shared / file) for file in files]
    expected = vit_jax.load(workdir).predict(paths, top_k=2)
    for (path, error, top), name, wanted in zip(
        found[:3] + found[4:], paths, expected, strict=True
    ):
        assert (path, error) == (name, None)
        assert [name for name, _ in top] == [name for name, _ in wanted]
        np.testing.assert_allclose(
            [p for _, p in top], [p for _, p in wanted], atol=1e-6
        )
    with pytest.raises(SystemExit, match=r"the first 2 classes .* the first 3 are"):
        run(*arguments, *images, "--top_k=3")


def _read_results(path):
    """Reads [(image, error, [(class, probability), …])]."""
    if path.suffix == ".jsonl":
        return [
            (
                each["image"],
                each.get("error"),
                [(row["class"], row["probability"]) for row in each.get("top", ())],
            )
            for each in map(json.loads, path.read_text().splitlines())
        ]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
    else:
        table = pq.read_table(path).to_pylist()
    return [
        (
            row["image"],
            row["error"] or None,
            [
                (row[f"class_{n}"], float(row[f"probability_{n}"]))
                for n in (1, 2)
                if row[f"class_{n}"]
            ],
        )
        for row in table
    ]


def test_results_of_other_weights_are_not_continued(workdir, run, shared, make_workdir):
    out = shared / "results.csv"
    image = shared / "one.png"
    report = json.loads(run(f"--checkpoint={workdir}", image, f"--out={out}", "--json"))
    assert report == {
        "checkpoint": str(workdir),
        "step": 3,
        "out": str(out),
        "outputs": "exclusive",
        "images": 1,
        "errors": [],
    }
    # The same weights by another path may go on; other names of classes may not.
    run(f"--checkpoint={workdir}/checkpoints/3", image, f"--out={out}")
    # More classes than there are: all of them, as before.
    run(f"--checkpoint={workdir}", image, f"--out={out}", "--top_k=9")
    other = make_workdir(shared / "other", class_names=("a", "b", "c"), depth=1)
    with pytest.raises(SystemExit, match=f"results of other weights: {workdir} at"):
        run(f"--checkpoint={other}", image, f"--out={out}")


def test_a_file_has_each_image_once_and_the_errors_of_those_asked_for(
    workdir, shared, run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "results.jsonl"
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = [f"--checkpoint={workdir}", f"--out={out}"]
    image = shared / "images" / "b.png"
    with pytest.raises(SystemExit):
        run(*arguments, image, tmp_path / "bad.png", image)
    assert len(_read_results(out)) == 2
    run(*arguments, image, shared / "images", image)  # not the bad one
    paths = [path for path, *_ in _read_results(out)]
    files = ["images/b.png", "images/a.JPG", "images/below/c.webp"]
    names = [str(shared / name) for name in files]
    assert paths == [names[0], str(tmp_path / "bad.png"), *names[1:]]


def test_relative_paths_in_another_folder_are_other_images(
    workdir, shared, run, tmp_path, monkeypatch
):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        (tmp_path / name).mkdir()
        PIL.Image.fromarray(image).save(tmp_path / name / "x.png")
    arguments = [f"--checkpoint={workdir}", f"--out={tmp_path / 'all.csv'}"]
    monkeypatch.chdir(tmp_path / "a")
    run(*arguments, "x.png")
    before = (tmp_path / "all.csv").read_bytes()
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(SystemExit, match=f"was begun in {tmp_path}/a, so the same rel"):
        run(*arguments, "x.png")
    run(*arguments, tmp_path / "b" / "x.png")  # an absolute path is unambiguous
    assert (tmp_path / "all.csv").read_bytes().startswith(before)
    assert len(_read_rows(tmp_path / "all.csv")) == 2
    # A project that has moved as a whole continues.
    moved = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(moved)
    monkeypatch.chdir(moved / "a")
    run(f"--checkpoint={workdir}", "--out=../all.csv", "x.png")
    assert len(_read_rows(moved / "all.csv")) == 2


def _read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


KILLED = """
import os, signal, sys
from vit_jax import command, predict
from vit_jax.data.preprocessing import Preprocessing

prepare, seen = Preprocessing.prepare, []

def slow(self, image, name):
    seen.append(name)
    if len(seen) > 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare(self, image, name)

Preprocessing.prepare = slow
import vit_jax.prediction.appending as appending
appending._SECONDS = 0.0
command.run(predict.main, predict.FLAGS)
"""


def test_after_a_kill_the_same_command_continues(workdir, shared, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    out = tmp_path / "results.jsonl"
    arguments = [f"--checkpoint={workdir}", f"--out={out}", "--batch_size=4", tmp_path]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(vit_jax.__file__).parents[1])},
    )
    assert killed.returncode == -9
    before = out.read_bytes()
    assert 0 < before.count(b"\n") < 60
    out.write_bytes(before[:-5])  # as if it had been killed while it wrote
    assert run(*arguments) == ""
    found = _read_results(out)
    assert [pathlib.Path(path).name for path, *_ in found] == [
        f"{number:02}.png" for number in range(60)
    ]
    expected = vit_jax.load(workdir).predict(pixels)
    for (*_, top), wanted in zip(found, expected, strict=True):
        assert [name for name, _ in top] == [name for name, _ in wanted]
    assert out.read_bytes().startswith(before[:-5])


def test_names_that_cannot_be_shown(
    tmp_path, make_workdir, run_command, capsys, monkeypatch
):
    # Parallel test processes cannot send such names in a captured log.
    monkeypatch.setattr(logging.getLogger("vit_jax"), "propagate", False)
    names = ("猫", "ärger 🐶", "\udce9")
    workdir = make_workdir(tmp_path / "run", class_names=names, depth=1)
    (tmp_path / "images").mkdir()
    image = os.fsencode(tmp_path) + b"/images/caf\xe9.png"
    with open(image, "wb") as file:
        PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    with open(os.fsencode(tmp_path) + b"/images/bad\xe9.png", "wb") as file:
        file.write(b"no image")
    out = tmp_path / "results.csv"
    for more in ([], ["--json"], [f"--out={out}"]):
        with pytest.raises(SystemExit) as end:
            run_command(predict, f"--checkpoint={workdir}", tmp_path / "images", *more)
        assert end.value.code == 3
    output = capsys.readouterr().out
    assert output.count(r"caf\udce9.png") == 2
    assert "ärger 🐶" in output
    with out.open(encoding="utf-8", newline="") as file:
        table = [row[0] for row in csv.reader(file)]
    folder = tmp_path / "images"
    assert table[1:] == [rf"{folder}/bad\udce9.png", rf"{folder}/caf\udce9.png"]


def test_addresses_are_images(workdir, shared, run, monkeypatch):
    content = (shared / "one.png").read_bytes()
    monkeypatch.setattr("vit_jax.web.fetch", lambda url, most: content)
    report = json.loads(
        run(f"--checkpoint={workdir}", "https://host/a.png?b=1", "--json")
    )
    assert report["predictions"][0]["image"] == "https://host/a.png?b=1"
    assert report["errors"] == []


def test_lines_are_readable_when_piped(workdir, shared, run):
    path = shared / "one.png"
    lines = run(f"--checkpoint={workdir}", path, "--top_k=2").splitlines()

    top = vit_jax.load(workdir).predict(path, top_k=2)[0]
    assert lines[0] == str(path)
    assert [line.split() for line in lines[1:]] == [
        [f"{probability:.2%}", name] for name, probability in top
    ]


def test_plain_numbers_are_no_percentages(workdir, shared, run):
    path, flags = shared / "one.png", [f"--checkpoint={workdir}", "--outputs=numbers"]
    model = vit_jax.load(workdir)
    [logits] = np.asarray(model(model.prepare(path))).tolist()
    lines = run(*flags, path, "--top_k=1").splitlines()
    assert [line.split()[1] for line in lines[1:]] == list(NAMES)
    shown = [float(line.split()[0]) for line in lines[1:]]
    np.testing.assert_allclose(shown, logits, rtol=1e-5, atol=1e-6)

    report = json.loads(run(*flags, path, "--json"))
    assert report["outputs"] == "numbers"
    [entry] = report["predictions"]
    assert [row["class"] for row in entry["top"]] == list(NAMES)
    values = [row["value"] for row in entry["top"]]
    np.testing.assert_allclose(values, logits, rtol=1e-6, atol=1e-6)
    assert "probability" not in entry["top"][0]


def test_a_single_output_is_the_probability_of_yes(shared, make_workdir, run):
    workdir = make_workdir(shared / "single", class_names=("tumour",), depth=1)
    path = shared / "one.png"
    model = vit_jax.load(workdir)
    [[logit]] = np.asarray(model(model.prepare(path))).tolist()
    assert abs(logit) < 8
    [_, line] = run(f"--checkpoint={workdir}", path).splitlines()
    assert line.split() == [f"{1 / (1 + np.exp(-logit)):.2%}", "tumour"]
    with pytest.raises(SystemExit, match="single output, whose probability would alw"):
        run(f"--checkpoint={workdir}", path, "--outputs=exclusive")


def test_a_path_that_may_not_be_looked_at_is_not_called_absent(monkeypatch):
    def stat(path, **_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(UserError, match=r"^a/b\.png: Permission denied$"):
        count(["a/b.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint={run}", "{shared}/one.png", "--out=x.txt"], "must end in .jso"),
        (["--checkpoint={run}", "{shared}/one.png", "--batch_size=0"], "batch_size"),
        (["x.png"], "no model"),
        (["--outputs=softmax"], "<exclusive|independent|numbers>"),
        (["--checkpoint={run}"], "no images"),
        (["--checkpoint={run}", "{shared}/one.png", "--top_k=0"], "top_k"),
        (["--checkpoint={shared}/none", "{shared}/one.png"], "nothing at"),
        (
            ["--checkpoint={run}", "{shared}/absent.png", "{shared}/empty"],
            r"absent.png: no such file or folder\n.*empty: the folder contains no",
        ),
        (
            ["--checkpoint={run}", "data:image/png;base64," + "iVBOR" * 99, "x/*.png"],
            r"^error: data:image.{10,200}…: data: addresses .*\n"
            r"x/\*.png: no such file, and patterns are not expanded here",
        ),
        (["--checkpoint={run}", "s3://a/b.png"], "s3: addresses are not read; pass a"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, workdir, shared, run):
    filled = [text.format(run=workdir, shared=shared) for text in arguments]
    with pytest.raises(SystemExit, match=message):
        run(*filled)
