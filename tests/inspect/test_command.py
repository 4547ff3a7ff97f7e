"""The command: a page and files for every image, in one model or in two."""

import html.parser
import pathlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax.inspect import __main__ as inspecting
from vit_jax.inspect.distances import attention_statistics
from vit_jax.inspect.findings import look_at
from vit_jax.inspect.maps import MAPS

NAMES = ("cat", "<script>alert(1)</script>", "dog")


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for n, v in attrs if n in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(run_command, capsys):
    """Runs the command; returns its exit status or message, and what it printed."""

    def run(*arguments):
        try:
            run_command(inspecting, *arguments)
        except SystemExit as end:
            return end.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


@pytest.fixture
def images(tmp_path):
    """Makes a folder of two images and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "<img onerror=x>.png"):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)
    return folder


def test_a_folder_of_images(run, images, make_workdir, tmp_path):
    workdir = make_workdir(tmp_path / "run", class_names=NAMES)
    out = tmp_path / "out"
    status, printed = run(f"--checkpoint={workdir}", f"--out={out}", images)
    assert status == 0, printed.err
    assert printed.out == f"{out / 'index.html'}: 2 images\n"
    page = Elements((out / "index.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert page.tags.count("section") == 3  # one of all images
    assert f"{images / '<img onerror=x>.png'}" in page.text
    for row in MAPS.values():
        assert page.text.count(row.title) >= 2
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["_img_onerror_x_", "a"]

    # The numbers are those of the functions.
    model = vit_jax.load(workdir)
    image = model.prepare(str(images / "a.png"))
    with np.load(folders[1] / "arrays.npz") as arrays:
        for name, row in MAPS.items():
            expected = row.compute(model, image, None)[0]
            np.testing.assert_allclose(
                arrays[f"map_{name}"], expected, rtol=1e-5, atol=1e-7, err_msg=name
            )
        assert arrays["heads"].shape == (2, 2, 2)
        assert arrays["layers"].shape == arrays["norms"].shape == (2, 2, 2)
        statistics = attention_statistics(model, image)
        for ours, theirs in (("distances", "distance"), ("entropies", "entropy")):
            expected = getattr(statistics, theirs)
            np.testing.assert_allclose(arrays[ours], expected, rtol=1e-5)
        probabilities = np.exp(model(image)[0])
        probabilities /= probabilities.sum()
        np.testing.assert_allclose(arrays["lens"][-1], probabilities, rtol=1e-5)
    with PIL.Image.open(folders[1] / "rollout.png") as picture:
        assert picture.size == (224, 224)


def test_two_models_side_by_side(run, images, make_workdir, tmp_path):
    first = make_workdir(tmp_path / "before", class_names=NAMES)
    second = make_workdir(tmp_path / "after", class_names=NAMES, depth=3, pooling="map")
    out = tmp_path / "out"
    status, printed = run(
        *(f"--checkpoint={first}", f"--checkpoint={second}", f"--out={out}"),
        *("--maps=rollout,relevance", "--target=dog", images / "a.png"),
    )
    assert status == 0, printed.err
    text = Elements((out / "index.html").read_text(encoding="utf-8")).text
    assert f"{first}:" in text
    assert f"{second}:" in text
    assert text.count("Of dog.") == 2  # relevance, which a class can change
    assert "Grad-CAM" not in text
    found = {path.name for path in (out / "a").iterdir()}
    assert found == {
        *("arrays.npz", "arrays-2.npz", "image.png", "image-2.png"),
        *("rollout.png", "rollout-2.png", "relevance.png", "relevance-2.png"),
    }
    with np.load(out / "a" / "arrays-2.npz") as arrays:
        assert arrays["norms"].shape == (3, 2, 2)
        model = vit_jax.load(second)
        image = model.prepare(str(images / "a.png"))
        relevance = MAPS["relevance"].compute(model, image, 2)[0]
        np.testing.assert_allclose(arrays["map_relevance"], relevance, rtol=1e-5)


def test_a_mixer_has_what_needs_no_attention(make_model, make_images):
    model = make_model(mixer=True)
    found = look_at(model, jnp.asarray(make_images(model, count=1)))
    assert set(found.maps) == {"grad_cam", "hires_cam", "eigen_cam"}
    assert set(found.refused) == set(MAPS) - set(found.maps)
    assert found.heads is None
    assert found.layers is None
    assert found.norms.shape == (2, 2, 3)


def test_an_image_that_cannot_be_read_costs_no_other(
    run, images, make_workdir, tmp_path, caplog
):
    (images / "broken.png").write_bytes(b"no image")
    workdir, out = make_workdir(tmp_path / "run", class_names=NAMES), tmp_path / "out"
    status, printed = run(
        f"--checkpoint={workdir}",
        f"--out={out}",
        "--most=1",
        "--maps=attention",
        images,
    )
    assert status == inspecting.SOME_FAILED
    assert "broken.png" in caplog.text
    assert "1 of 3 images could not be read" in printed.err
    assert len([path for path in out.iterdir() if path.is_dir()]) == 2
    page = Elements((out / "index.html").read_text(encoding="utf-8"))
    assert page.tags.count("section") == 2
    assert "The first 1 of 2 images" in page.text


def test_all_problems_at_once(run, images, make_workdir, tmp_path):
    (tmp_path / "file").write_text("")
    status, _ = run(
        *("--maps=rolout,attention", f"--out={tmp_path / 'file'}"),
        *("--checkpoint=a", "--checkpoint=b", "--checkpoint=c", "nowhere.png"),
    )
    message = str(status)
    assert "no map 'rolout': choose from attention, rollout" in message
    assert "did you mean 'rollout'?" in message
    assert "file is a file; pass a folder" in message
    assert "3 models given; pass one, or two to compare" in message
    assert "nowhere.png" in message
    status, _ = run()
    assert "no model given" in str(status)
    assert "no images given" in str(status)

    workdir = make_workdir(tmp_path / "run", class_names=NAMES)
    out = tmp_path / "out"
    status, _ = run(
        f"--checkpoint={workdir}", f"--out={out}", "--target=dgo", images / "a.png"
    )
    assert str(status) == (
        "error: --target=dgo: the model has no such class; expected the name of one, "
        "or an index from 0 to 2; did you mean 'dog'?"
    )
    assert not pathlib.Path(out).exists()
    out.mkdir()
    (out / "index.html").write_text("")
    status, _ = run(f"--checkpoint={workdir}", f"--out={out}", images / "a.png")
    assert "index.html exists already; pass another --out, or remove it" in str(status)
