import gzip
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from vit_jax.weights.files.recognise import recognise


def _safetensors(path):
    header = json.dumps(
        {
            "__metadata__": {},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


def _torch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
        archive.writestr("model/data/0", b"\0" * 8)


def _npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(2), b=np.ones(3))


def _cut_npz(path):
    _npz(path)
    path.write_bytes(path.read_bytes()[:100])


def _other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x")


def _zip_of(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def _torchscript(path):
    _zip_of(path, "m/data.pkl", "m/constants.pkl", "m/code/__torch__.py", "m/version")


def _zipped(path):
    _zip_of(path, "vit/model.safetensors", "vit/config.json")


def _keras(path):
    _zip_of(path, "metadata.json", "config.json", "model.weights.h5")


def _npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(2))


def _full_directory(path):
    path.mkdir()
    for name in "abcdef":
        (path / name).touch()


KINDS = {
    "empty": (lambda p: p.touch(), "an empty file"),
    "html": (
        lambda p: p.write_bytes(b"\n<!DOCTYPE html><p>403"),
        "an HTML or XML page",
    ),
    "bucket": (lambda p: p.write_bytes(b"<?xml version='1.0'?><Error>"), "HTML or XML"),
    "pointer": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1"),
        "a git-lfs pointer",
    ),
    "npz": (_npz, "a NumPy archive (.npz) of 2 arrays"),
    "cut": (_cut_npz, "a damaged archive of 100 bytes"),
    "safetensors": (_safetensors, "a safetensors file of 1 tensors"),
    "torch": (_torch, "a PyTorch checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle"),
    "json": (lambda p: p.write_bytes(b'{"abcd":{"e": 1}}'), "a JSON file"),
    "zip": (_other_zip, "a zip archive"),
    "no zip": (lambda p: p.write_bytes(b"PK\5\6"), "a damaged archive of 4 bytes"),
    "npy": (_npy, "a NumPy array (.npy)"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5"),
    "other": (
        lambda p: p.write_bytes(b"hello"),
        "a file of 5 bytes in an unknown form",
    ),
    "server's answer": (
        lambda p: p.write_bytes(b"Entry not found"),
        "in an unknown format, with the text 'Entry not found'",
    ),
    "gguf": (lambda p: p.write_bytes(b"GGUF\3\0\0\0" + bytes(40)), "a GGUF file"),
    "onnx": (
        lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(60)),
        "an ONNX model",
    ),
    "torchscript": (_torchscript, "a TorchScript model (torch.jit.save)"),
    "zipped": (_zipped, "a zip archive of vit/model.safetensors (unpack it)"),
    "keras": (_keras, "a Keras file"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "a gzip archive (unpack"),
    "openvino": (
        lambda p: p.write_bytes(b'<?xml version="1.0"?>\n<net name="v" version="11">'),
        "an OpenVINO model",
    ),
    "tflite": (
        lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(20)),
        "TensorFlow Lite",
    ),
    "image": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "an image (PNG)"),
    "no_entries": (lambda p: p.mkdir(), "an empty directory"),
    "entries": (_full_directory, "a directory that holds a, b, c, d, e, …"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_describes_a_file(kind, tmp_path):
    write, expected = KINDS[kind]
    path = tmp_path / "x"
    write(path)

    assert expected in recognise(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("flax_model.msgpack", "weights of Flax"), ("vit.pb", "a TensorFlow model")],
)
def test_a_suffix_tells_what_the_content_does_not(name, expected, tmp_path):
    (tmp_path / name).write_bytes(b"\x87\xa5\xff\0")
    assert expected in recognise(tmp_path / name)


def test_a_wrong_header_length_of_safetensors_counts_as_damage(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{ not json")

    assert recognise(path) == "a damaged safetensors file"


@pytest.mark.parametrize("header", [b"{ not json", b"{" + b'"a":{' * 9999, b"{\xff"])
def test_damaged_headers_of_safetensors(header, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(header)) + header)

    assert recognise(path) == "a damaged safetensors file"
