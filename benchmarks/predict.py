"""Throughput of `python -m vit_jax.predict`, compared with the model's alone.

    python benchmarks/predict.py [--images=2000] [--batch=32] [--variant=S/16]

Makes a file of random weights and a folder of JPEGs of 500 × 375 pixels, and predicts
them with --out, in a fresh process: once a single batch, once all. The difference is
the time of the images alone, without imports, loading and compiling. Before and after,
`python -m vit_jax.benchmark --what=inference` times the compiled model at the same
batch size. Prints all numbers, and exits with 1 if predict has less than 0.9 of the
mean of both. Run it while the machine has no other work. Nothing is kept.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

LEAST = 0.9  # of the throughput of the model alone
_PICTURES = 50  # different ones; the others are copies

MODEL = """
import sys
import jax, numpy as np
from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import abstract_params, architecture_from_variant
from vit_jax.weights.saving import save_weights

architecture = architecture_from_variant(
    sys.argv[2], image_size=(224, 224), num_classes=1000
)
rng = np.random.default_rng(0)
params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32) / 50,
    abstract_params(architecture),
)
transform = "resize_small(256)|central_crop"
description = Description(
    architecture,
    Preprocessing((224, 224), eval_transform=transform),
    (),
    to_plain(default_config()),
    0,
)
save_weights(description, params, sys.argv[1], "vit_jax")
"""


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        model = root / "model.safetensors"
        _python("-c", MODEL, str(model), options.variant)
        _make_pictures(root / "one", options.batch)
        _make_pictures(root / "all", options.images)
        _predict(model, root / "one", options.batch)  # fills the cache of programs
        before = _model_alone(options)
        few = _predict(model, root / "one", options.batch)
        many = _predict(model, root / "all", options.batch)
        after = _model_alone(options)
    rate = (options.images - options.batch) / (many - few)
    alone = (before + after) / 2
    print(f"the model alone      {before:8.2f} images/s before, {after:.2f} after")
    print(f"predict              {rate:8.2f} images/s, {rate / alone:.3f} of the model")
    print(
        f"from start to end    {options.images / many:8.2f} images/s: "
        f"{options.images:,} images in {many:.1f} s, a single batch in {few:.1f} s"
    )
    return int(rate < LEAST * alone)


def _make_pictures(folder: pathlib.Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, _PICTURES)):
        # Large shapes with some noise compress about as photographs do.
        shapes = rng.integers(0, 256, (12, 16, 3), np.uint8)
        pixels = cv2.resize(shapes, (500, 375), interpolation=cv2.INTER_CUBIC)
        noise = rng.normal(0, 12, pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        ok, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])
        assert ok
        contents.append(data.tobytes())
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        path.write_bytes(contents[number % len(contents)])


def _predict(model: pathlib.Path, folder: pathlib.Path, batch: int) -> float:
    """Returns the seconds that the command takes."""
    out = folder.with_suffix(".jsonl")
    start = time.perf_counter()
    _python(
        *("-m", "vit_jax.predict", f"--checkpoint={model}", str(folder)),
        *(f"--out={out}", f"--batch_size={batch}"),
    )
    seconds = time.perf_counter() - start
    assert len(out.read_text().splitlines()) == len(list(folder.iterdir()))
    out.unlink()
    return seconds


def _model_alone(options: argparse.Namespace) -> float:
    """Returns the images per second of the compiled model."""
    output = _python(
        *("-m", "vit_jax.benchmark", "--what=inference", "--config=b16:imagenet2012"),
        f"--config.model.variant={options.variant}",
        *("--config.image_size=(224,)", "--config.pretrained="),
        *(f"--batch_sizes={options.batch}", f"--seconds={options.seconds}", "--json"),
    )
    return json.loads(output)["images_per_second"]


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
