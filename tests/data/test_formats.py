"""Tests of the list of formats: their endings, and files that need a plug-in."""

import io
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from vit_jax.data import formats
from vit_jax.data.decode import DecodeError, decode
from vit_jax.data.sources.folders import list_folder
from vit_jax.prediction.folders import images_in

# What people's files are called, of which none may be left out.
NAMED = [".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"]
NAMED += [".png", ".apng", ".gif", ".heics", ".heifs", ".hif", ".jpc", ".jpf", ".avifs"]
NAMED += [".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif"]
NAMED += [".jp2", ".j2k", ".jpx", ".j2c"]


def test_all_endings_are_images_for_folders_and_predict(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for ending in NAMED:
            (tmp_path / name / f"x{ending.upper()}").touch()
            (tmp_path / name / f"y{ending}").touch()
        (tmp_path / name / "z.eps").touch()
    listing = list_folder(str(tmp_path))
    assert sum(len(files) for files in listing.files.values()) == 4 * len(NAMED)
    assert len([*images_in(str(tmp_path))]) == 4 * len(NAMED)


def test_endings_agree_with_pillow():
    Image.init()
    unknown = {".jif", ".jfi", ".pjpeg", ".pjp", *formats.ENDINGS["HEIF"]}
    for ending in set(NAMED) - unknown:
        known = Image.EXTENSION[ending]
        assert ending in formats.ENDINGS["JPEG" if known == "MPO" else known]


def test_several_pictures_in_a_jpeg_give_the_first():
    file, frames = io.BytesIO(), [Image.new("L", (8, 8), grey) for grey in (40, 200)]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert abs(int(decode(file.getvalue())[4, 4, 0]) - 40) < 3


def heif(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(40)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_heif_without_its_plugin_names_the_extra(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._heif_plugin.cache_clear()
    with pytest.raises(DecodeError, match=r"x\.heic .* pip install 'vit_jax\[heif\]'"):
        decode(heif(brand), name="x.heic")
    formats._heif_plugin.cache_clear()


def test_heif_is_left_to_its_plugin(monkeypatch):
    registered = []

    class Plugin:
        @staticmethod
        def register_heif_opener():
            registered.append(True)
            Image.register_open(
                "HEIF",
                lambda file, name: Image.new("L", (2, 3), 70),
                lambda prefix: prefix[4:8] == b"ftyp",
            )

    monkeypatch.setitem(sys.modules, "pillow_heif", Plugin)
    formats._heif_plugin.cache_clear()
    try:
        assert (decode(heif(b"heic")) == 70).all()
        assert decode(heif(b"heic")).shape == (3, 2, 3)
        assert registered == [True]
    finally:
        formats._heif_plugin.cache_clear()
        Image.OPEN.pop("HEIF", None)
        if "HEIF" in Image.ID:
            Image.ID.remove("HEIF")


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"P6 1 1 255\n\0\0\0",
    ],
)
def test_other_formats_of_pillow_stay_closed(data, monkeypatch):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format in ("EPS", "PPM")  # Pillow itself would open it
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(DecodeError, match=r"none of the formats JPEG, PNG, .*HEIF"):
        decode(data)


def test_a_file_of_no_format_is_known_by_its_beginning():
    page = b"<!DOCTYPE html>\n<html>"
    with pytest.raises(DecodeError) as error:
        decode(page, name="a.jpg")
    message = str(error.value)
    assert message.startswith("a.jpg cannot be decoded: its 22 bytes are in none of")
    assert message.endswith(r"or damaged; they begin with b'<!DOCTYPE html>\n'")


def test_bigtiffs_that_pillow_cannot_read_are_named():
    with pytest.raises(DecodeError, match="a BigTIFF with the most significant byte f"):
        decode(b"MM\0+\0\x08\0\0" + bytes(8))


def test_extras_that_messages_name_exist():
    setup = pathlib.Path(__file__).parents[2].joinpath("setup.py").read_text("utf-8")
    assert '"heif": ["pillow-heif' in setup
    assert '"tiff": ["tifffile' in setup
