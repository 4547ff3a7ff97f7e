"""Fuzz test of the decoder: a mutated image gives an array or DecodeError.

    python benchmarks/fuzz_images.py [--count=20000] [--seed=0]

Small images in every format have bytes changed, removed, repeated or exchanged between
two files. Each is decoded as for a training crop, no further than needed, and as a
whole. Exits with 1 if an image raises anything else or takes more than five seconds, or
if memory keeps growing: it is measured after a quarter of the images and at the end. A
crash ends the process; its input is then in fuzz_images.last.
"""

import collections
import gc
import io
import os
import pathlib
import resource
import sys
import time
import warnings

import numpy as np
from absl import app, flags
from PIL import Image

from vit_jax.data.decode import DecodeError, open_image, whole

flags.DEFINE_integer("count", 20_000, "images to decode")
flags.DEFINE_integer("seed", 0, "of the mutations")

_SLOW = 5.0  # seconds
_GROWTH = 64 << 20  # bytes
_LAST = pathlib.Path("fuzz_images.last")


def originals() -> list[bytes]:
    """Makes undamaged files of every format and of many modes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(coarse).resize((61, 47))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants = [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("PNG", "1", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {"save_all": True, "append_images": [image.rotate(90)]}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_deflate"}),
    ]
    files = []
    for kind, mode, options in variants:
        file = io.BytesIO()
        plain = image.convert("L") if mode == "I;16" else image
        plain.convert(mode).save(file, kind, **options)
        files.append(file.getvalue())
    return files


def mutated(files: list[bytes], rng: np.random.Generator) -> bytes:
    """Damages one of the files in one to four ways."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.geometric(0.1))
        kind = rng.integers(6)
        if kind == 0:  # bytes anywhere
            for place in rng.integers(0, max(len(data), 1), length):
                data[place : place + 1] = rng.bytes(1)
        elif kind == 1:  # a number in the header
            place = int(rng.integers(min(len(data), 64) + 1))
            data[place : place + 2] = rng.choice([b"\0\0", b"\xff\xff", b"\x7f\xff"])
        elif kind == 2:  # cut off
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 50))
        else:  # the end of another file
            other = files[rng.integers(len(files))]
            data[at:] = other[min(at, len(other)) :]
    return bytes(data)


def main(_: list[str]) -> None:
    """Runs the command."""
    warnings.simplefilter("ignore")
    # libtiff prints what is wrong with a file.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    rng = np.random.default_rng(flags.FLAGS.seed)
    files, count = originals(), flags.FLAGS.count
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, early, problems = 0.0, 0, []
    for number in range(count):
        data = mutated(files, rng)
        _LAST.write_bytes(data)
        start = time.perf_counter()
        try:
            image = open_image(data, int(rng.choice([1, 3, 4])), "fuzzed", fast=True)
            height, width, _ = image.shape
            rows = slice(height // 4, max(height // 2, 1))
            assert image[rows, : max(width // 2, 1)].size
            outcomes["cut"] += 1
            assert whole(image).shape == image.shape
            outcomes["decoded"] += 1
        except DecodeError:
            outcomes["refused"] += 1
        except BaseException as error:
            problems.append(f"image {number}: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - start
        slowest = max(slowest, seconds)
        if seconds > _SLOW:
            problems.append(f"image {number} took {seconds:.1f} s")
        if number == count // 4:
            early = _memory()
    growth = _memory() - early
    _LAST.unlink()
    print(
        f"{count:,} images: {dict(outcomes)}, slowest {slowest * 1000:.0f} ms, memory "
        f"grew by {growth / 2**20:.0f} MiB over the last three quarters"
    )
    if growth > _GROWTH:
        problems.append(f"memory grew by {growth:,} bytes")
    if problems:
        print("\n".join(problems[:20]))
        sys.exit(1)


def _memory() -> int:
    """Returns the memory that this process holds now, in bytes (Linux)."""
    gc.collect()
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    app.run(main)
