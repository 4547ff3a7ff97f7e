"""What people hold, as images: each kind has the pixels that it should have."""

import io
import os
import pathlib
import zipfile
from collections import Counter

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.image_files import find_images
from vit_jax.errors import UserError
from vit_jax.prediction.folders import images_in
from vit_jax.prediction.inputs import inputs

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
PREPROCESSING = Preprocessing((4, 6))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    return path


def read(images, channels=3):
    """Returns [(name, pixels or message)] of the images."""
    found = []
    for each in inputs(images, channels):
        try:
            found.append((each.name, PREPROCESSING.prepare(each.read(), each.name)))
        except UserError as error:
            found.append((each.name, str(error)))
    return found


class PathLike:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


class Tensor:
    """An array of another library, as PyTorch's."""

    def __init__(self, array):
        self.array = array

    def __array__(self, *_, **__):
        if self.array is None:
            raise TypeError("can't convert cuda:0 device type tensor")
        return self.array


HELD = {
    "path": lambda path: path,
    "text": str,
    "bytes of a path": lambda path: PathLike(bytes(path)),
    "path-like": lambda path: PathLike(str(path)),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "PIL image": lambda path: Image.open(path),
    "NumPy array": lambda path: PIXELS,
    "JAX array": lambda path: jnp.asarray(PIXELS),
    "tensor": lambda path: Tensor(PIXELS),
    "batch": lambda path: PIXELS[None],
    "folder": lambda path: path.parent,
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("several", [None, list, tuple, iter])
def test_each_kind_alone_and_in_every_container(kind, several, path):
    held = HELD[kind](path)
    images = held if several is None else several([held, PIXELS, held])
    found = read(images)
    assert len(found) == (1 if several is None else 3)
    for name, pixels in found:
        np.testing.assert_array_equal(pixels, PIXELS, err_msg=name)
    if hasattr(held, "close"):
        held.close()


def test_names_are_paths_or_numbers(path):
    images = [path, PIXELS, np.stack([PIXELS] * 2), path.read_bytes(), path.open("rb")]
    names = [name for name, _ in read(images)]
    assert names == [str(path), "image 1", "image 2", "image 3", "image 4", str(path)]
    images[-1].close()


def test_a_file_is_read_from_its_beginning_before_the_next_is_taken(path):
    written = io.BytesIO()
    Image.fromarray(PIXELS).save(written, "PNG")  # it is at its end
    np.testing.assert_array_equal(read(written)[0][1], PIXELS)

    def opened_for_a_moment():
        for _ in range(2):
            with path.open("rb") as file:
                yield file

    listed = list(inputs(opened_for_a_moment(), 3))
    assert [each.read() for each in listed] == [path.read_bytes()] * 2
    with zipfile.ZipFile(path.parent / "a.zip", "w") as archive:
        archive.write(path, "inside.png")
        with archive.open("inside.png") as file:
            np.testing.assert_array_equal(read(file)[0][1], PIXELS)


def test_what_an_iterator_may_change_is_prepared_at_once(path):
    image = Image.fromarray(PIXELS)
    now = [each.now for each in inputs(iter([PIXELS, image, path]), 3)]
    assert now == [True, True, False]
    # A list keeps its arrays; images of Pillow are not safe in several threads.
    assert [each.now for each in inputs([PIXELS, image], 3)] == [False, True]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B"]
)
def test_images_of_pillow_are_converted_as_files_are(mode, tmp_path):
    deep = PIXELS[..., 0].astype(np.uint16) * 256
    image = Image.fromarray(deep)
    if mode == "I;16B":
        size = image.size
        image = Image.frombytes(mode, size, deep.astype(">u2").tobytes())
    elif mode != "I;16":
        image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    (_, file), (_, held) = read([path, image])
    np.testing.assert_array_equal(held, file)
    if mode.startswith("I"):
        np.testing.assert_array_equal(held, np.repeat(PIXELS[..., :1], 3, -1))


def test_the_white_of_an_image_of_pillow_is_that_of_its_file(tmp_path):
    path = tmp_path / "deep.tif"
    deep = PIXELS[..., 0].astype(np.uint16) * 16
    Image.fromarray(deep).save(path, tiffinfo={50717: 4095})
    with Image.open(path) as image:
        (_, file), (_, held) = read([path, image])
    np.testing.assert_array_equal(held, file)
    np.testing.assert_array_equal(held[..., 0], np.rint(deep * (255 / 4095)))


@pytest.mark.parametrize("ending", ["png", "tif", "jp2"])
def test_deep_colours_of_an_image_of_pillow_are_those_of_its_file(ending, tmp_path):
    path = tmp_path / f"deep.{ending}"
    large = np.kron(PIXELS, np.full((16, 16, 1), 15, np.uint16))
    cv2.imwrite(str(path), large)
    preprocessing = Preprocessing((64, 96), white_level=4095)
    expected = preprocessing.prepare(path)
    assert np.ptp(expected) > 200
    with path.open("rb") as file, Image.open(file) as image:
        position = file.tell()
        np.testing.assert_array_equal(preprocessing.prepare(image), expected)
        assert file.tell() == position  # it is still as it was
        loaded = np.asarray(image)
        assert loaded.shape == large.shape
        if ending == "tif":
            with pytest.raises(UserError, match="has not kept all of its 16 bits; pa"):
                preprocessing.prepare(image)


def test_the_orientation_of_an_image_of_pillow_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "turned.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read(image)[0][1], PIXELS[::-1, ::-1])


def test_arrays_of_paths_are_lists(path):
    for array in (np.array([str(path)] * 2), np.array([path, path], object)):
        assert [name for name, _ in read(array)] == [str(path)] * 2


def test_grey_arrays():
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None], grey[None, ..., None]):
        (_, pixels), *_ = read(array)
        np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, -1))
    assert read(np.zeros((0, 4, 6, 3), np.uint8)) == read([]) == []


class DataFrame:
    columns = ("path", "label")

    def __array__(self):
        return np.zeros((2, 2), object)


class Loader:
    def __iter__(self):
        return iter([(PIXELS, 1)])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images: found NoneType, expected a path, a folder, an https address"),
        (7, "images: found int, expected"),
        ({"a": PIXELS}, "found dict, .*; pass its values"),
        ({"a.png"}, "found set, .*; a set has no order, pass a list"),
        (DataFrame(), r"found DataFrame, .*; pass its column of paths, as in table\["),
        (Loader(), "found Loader, expected"),
    ],
)
def test_what_is_no_image_and_no_list_is_refused_at_once(images, message):
    with pytest.raises(UserError, match=message) as error:
        inputs(images, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (None, "image 1: found NoneType, expected a path"),
        (1.5, "image 1: found float, expected a path"),
        ((PIXELS, 3), "image 1: found tuple, .*; nested lists are not taken"),
        ({}, "image 1: found dict"),
        (DataFrame(), "image 1: found DataFrame"),
        (PIXELS / 255, r"image 1 is an array of float64 with shape \(4, 6, 3\); expe"),
        (PIXELS[None] / 255, r"image 1 is an array of float64 with shape \(1, 4, 6, 3"),
        (jnp.ones((4, 6, 3), jnp.bfloat16), "image 1 is an array of bfloat16"),
        (PIXELS.astype(int), "image 1 is an array of int64"),
        (np.zeros(3, np.uint8), r"image 1 is an array of uint8 with shape \(3,\)"),
        (
            PIXELS.transpose(2, 0, 1),
            r"looks like \[channels, height, width\]; expected",
        ),
        (PIXELS.transpose(2, 0, 1)[None], r"looks like \[channels, height, width\]"),
        (Tensor(PIXELS.transpose(2, 0, 1)), r"\[channels, height, width\]; expected"),
        (
            Tensor(None),
            "image 1 cannot be converted to a NumPy array: can't convert cu",
        ),
        (np.zeros((7, 6, 5), np.uint8), "image 1 has 5 channels, the model takes 3"),
        ("absent.png", "absent.png cannot be read: No such file or directory"),
        ("*.absent", "patterns are not expanded here"),
        ("gs://bucket/a.png", "gs: addresses are not read"),
        ("data:image/png;base64,AAAA", "data: addresses are not read"),
        (pathlib.Path("https://host/a.png"), "a path cannot hold an address; pass it"),
        ("iVBOR" * 2000, "neither a path nor an address; pass the content"),
        ("a\0b", "neither a path nor an address"),
        (b"", r"image 1 is empty \(0 bytes\)"),
        ("", ": an empty text is not a path"),
        (Image.new("RGB", (5, 0)), "image 1 cannot be decoded: it has 5 × 0 pixels"),
        (zipfile.ZipFile(io.BytesIO(), "w"), "image 1: found ZipFile, expected a path"),
        (b"no image", "image 1 cannot be decoded: its 8 bytes are in none of"),
        (io.StringIO("text"), 'image 1 is open as text; open it with mode "rb"'),
    ],
)
def test_a_bad_element_costs_one_result(element, message, path):
    found = read([path, element, PIXELS])
    assert len(found) == 3
    np.testing.assert_array_equal(found[0][1], PIXELS)
    np.testing.assert_array_equal(found[2][1], PIXELS)
    with pytest.raises(UserError, match=message):
        raise UserError(found[1][1])
    assert "\n" not in found[1][1]
    assert len(found[1][1]) < 500


def test_text_files_are_named_as_such(path):
    with path.open() as file:  # its bytes are no text either
        [(name, message)] = read(file)
    assert name == str(path)
    assert message == f'{path} is open as text; open it with mode "rb"'


def test_addresses_in_any_case_are_downloaded(monkeypatch):
    asked = []
    monkeypatch.setattr("vit_jax.web.fetch", lambda url, most: asked.append(url) or b"")
    read(["HTTPS://Host/a.png", "Http://localhost/b.png"])
    assert asked == ["HTTPS://Host/a.png", "Http://localhost/b.png"]


def test_closed_files_and_images(path):
    file = path.open("rb")
    file.close()
    image = Image.open(path)
    image.close()
    (_, first), (_, second) = read([file, image])
    assert "cannot be read: " in first
    assert "image 1 cannot be decoded: " in second


def test_models_with_many_channels_take_arrays(tmp_path):
    many = np.zeros((2, 3, 8), np.uint8)
    (found,) = inputs(many, channels=8)
    assert found.read().shape == (2, 3, 8)


@pytest.fixture
def tree(tmp_path):
    """Returns a folder with links, hidden files and other files."""
    for name in ("b.png", "a/2.JPG", "a/1.png", ".hidden/x.png", ".y.png", "note.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.png").write_bytes(b"")
    (tmp_path / "tree" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "tree" / "Thumbs.db").write_bytes(b"")
    return tmp_path / "tree"


def test_a_folder_is_all_its_images_in_order_links_included(tree):
    names = [each.name for each in inputs(tree, 3)]
    # A link that leads nowhere is an image that cannot be read.
    files = ("a/1.png", "a/2.JPG", "b.png", "c/3.png", "gone.png")
    assert names == [str(tree / name) for name in files]
    left_out = Counter()
    # What training finds, and in which order.
    assert [*images_in(str(tree), left_out)] == names
    found = find_images(tree)
    assert [str(tree / name) for name in found.images] == names
    assert left_out == found.left_out
    assert sum(left_out.values()) == 5


def test_a_folder_without_images_or_access_is_one_bad_input(tree, monkeypatch):
    (tree / "empty").mkdir()
    assert read(tree / "empty") == [
        (str(tree / "empty"), f"{tree / 'empty'}: the folder contains no images")
    ]
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    found = read(tree)
    assert found[0] == (
        str(tree / "a"),
        f"{tree / 'a'} cannot be listed: Permission denied",
    )
    assert found[1][0] == str(tree / "b.png")
