import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import predict

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


def test_all_unreadable_images_at_once_and_no_traceback(workdir, shared, tmp_path):
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(b"no image")
    images = [tmp_path / "x.png", shared / "one.png", tmp_path / "y.png"]
    done = _fresh_process(f"--checkpoint={workdir}", *images, cwd=tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: 2 images cannot be read:")
    assert "x.png" in done.stderr
    assert "y.png" in done.stderr
    assert "Traceback" not in done.stderr


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png"], "no model"),
        (["--outputs=softmax"], "<exclusive|independent|numbers>"),
        (["--checkpoint={run}"], "no images"),
        (["--checkpoint={run}", "{shared}/one.png", "--top_k=0"], "top_k"),
        (["--checkpoint={shared}/none", "{shared}/one.png"], "nothing at"),
        (
            ["--checkpoint={run}", "{shared}/absent.png", "{shared}/empty"],
            r"absent.png: no such file or folder\n.*empty: the folder contains no",
        ),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, workdir, shared, run):
    filled = [text.format(run=workdir, shared=shared) for text in arguments]
    with pytest.raises(SystemExit, match=message):
        run(*filled)
