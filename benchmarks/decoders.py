"""Comparison of libraries that decode JPEG, on one photograph, in one run.

    taskset -c 0 python benchmarks/decoders.py

500 × 375, quality 95, 4:2:0. Milliseconds of processor time, medians of rounds that
take turns, and the mean difference from Pillow's pixels in grey levels. Libraries that
are not installed are left out.
"""

import importlib
import io
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

ROUNDS, REPEATS = 9, 100


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def imagecodecs(data: bytes) -> np.ndarray:
    return importlib.import_module("imagecodecs").jpeg8_decode(data)


def torchvision(data: bytes) -> np.ndarray:
    torch = importlib.import_module("torch")
    io_module = importlib.import_module("torchvision.io")
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return io_module.decode_jpeg(tensor).permute(1, 2, 0).numpy()


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "simplejpeg (ours)": simplejpeg.decode_jpeg,
    "simplejpeg, fast DCT and upsampling": lambda data: simplejpeg.decode_jpeg(
        data, fastdct=True, fastupsample=True
    ),
    "OpenCV": opencv,
    "imagecodecs": imagecodecs,
    "torchvision": torchvision,
    "Pillow": pillow,
}


def main() -> None:
    """Runs the command."""
    cv2.setNumThreads(1)
    image = Image.fromarray(load_sample_images().images[0]).crop((0, 0, 500, 375))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:2:0")
    data = file.getvalue()
    there = {}
    for name, decode in DECODERS.items():
        try:
            decode(data)
            there[name] = decode
        except ImportError as error:
            print(f"{name} is left out: {error}")
    times: dict[str, list[float]] = {name: [] for name in there}
    for _ in range(ROUNDS):
        for name, decode in there.items():
            start = time.process_time()
            for _ in range(REPEATS):
                decode(data)
            times[name].append((time.process_time() - start) / REPEATS * 1000)
    expected = pillow(data).astype(int)
    for name, decode in there.items():
        difference = np.abs(decode(data).astype(int) - expected).mean()
        print(f"{name:36} {statistics.median(times[name]):5.2f} ms  {difference:4.2f}")


if __name__ == "__main__":
    main()
