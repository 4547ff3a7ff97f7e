"""Comparison of the input pipeline with others, on the same photographs.

    pip install -e '.[peers]'
    taskset -c 0 python benchmarks/input.py [--images=768] [--rounds=5] [--json]

The two photographs that scikit-learn ships, cut to 500 × 375 at several places and
saved as JPEG of quality 95 with 4:2:0; each pipeline decodes them, takes its training
crop to 224 and flips. Rates and ratios are by processor time, medians of the rounds, in
which all take turns. A pipeline that is not installed is left out and reported. Exits
with 1 if ours misses a bound.
"""

import argparse
import io
import json
import operator
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

# One core each: work in a library's own threads would not be counted.
os.environ |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.data.loading.batches import train_batches
from vit_jax.data.sources.protocol import Example
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.data.transforms.crops import inception_box

SIZE = (224, 224)
# How many times as fast as another pipeline ours has to be.
BOUNDS = {"tf.data": 1.05, "torchvision v2": 1.6, "timm": 2.5, "bare loop": 0.85}
BATCH = 64

# Loads the files once, and yields after each batch.
Load = Callable[[], Iterator[None]]


def photographs(count: int) -> list[bytes]:
    """Makes JPEG files of 500 × 375, each of a different part of a photograph."""
    rng, files = np.random.default_rng(0), []
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        image = originals[number % len(originals)]
        left, top = (
            int(rng.integers(0, have - want + 1))
            for have, want in zip(image.size, (500, 375), strict=True)
        )
        file = io.BytesIO()
        box = (left, top, left + 500, top + 375)
        image.crop(box).save(file, "JPEG", quality=95, subsampling="4:2:0")
        files.append(file.getvalue())
    return files


class Files:
    """The photographs as a source of examples."""

    class_names = ("photograph", "other")
    num_classes = 2
    multi_label = False

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return 1_281_167  # as many as ImageNet, so that shuffling costs the same

    def __getitem__(self, index: int) -> Example:
        return Example(self._files[index % len(self._files)], 0, f"photograph {index}")


def ours(files: list[bytes]) -> Load:
    """Reads with the iterator that training uses."""
    chain = parse_chain("inception_crop|flip_lr", SIZE)
    count = len(files) // BATCH

    def load() -> Iterator[None]:
        with train_batches(
            Files(files),  # type: ignore[arg-type]
            batch_size=BATCH,
            transform=chain,
            seed=0,
            start=0,
            stop=count,
            num_threads=1,
        ) as batches:
            for _ in batches:
                yield

    return load


def bare_loop(files: list[bytes]) -> Load:
    """Reads with our libraries alone, in a bare loop."""

    def load() -> Iterator[None]:
        rng = np.random.default_rng(0)
        for number, data in enumerate(files, 1):
            image = simplejpeg.decode_jpeg(data)
            top, left, h, w = inception_box(
                image.shape[:2], rng, (0.05, 1.0), (0.75, 1.33)
            )
            box = np.ascontiguousarray(image[top : top + h, left : left + w])
            image = cv2.resize(box, SIZE, interpolation=cv2.INTER_LINEAR)
            if rng.random() < 0.5:
                cv2.flip(image, 1)
            if number % BATCH == 0:
                yield

    return load


def tf_data(files: list[bytes]) -> Load:
    """Reads with tf.data in big_vision's way: only the crop is decoded."""
    import tensorflow as tf

    def decoded(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((0, 0, 4), tf.float32),
            area_range=(0.05, 1),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, SIZE)
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(files).map(decoded).batch(BATCH)
    dataset = dataset.with_options(options)

    def load() -> Iterator[None]:
        for _ in dataset:
            yield

    return load


def torchvision_v2(files: list[bytes]) -> Load:
    """Reads with torchvision: decode_jpeg, RandomResizedCrop, flip."""
    import torch
    from torchvision.io import decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    transform = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def load() -> Iterator[None]:
        for start in range(0, len(tensors), BATCH):
            torch.stack(
                [transform(decode_jpeg(x)) for x in tensors[start : start + BATCH]]
            )
            yield

    return load


def timm_default(files: list[bytes]) -> Load:
    """Reads with timm's default training transform."""
    import torch
    from timm.data import create_transform

    torch.set_num_threads(1)
    transform = create_transform(SIZE, is_training=True)

    def load() -> Iterator[None]:
        for start in range(0, len(files), BATCH):
            torch.stack(
                [
                    transform(Image.open(io.BytesIO(data)).convert("RGB"))
                    for data in files[start : start + BATCH]
                ]
            )
            yield

    return load


# PyTorch before TensorFlow: in the other order the import crashes.
CONTENDERS = {
    "ours": ours,
    "bare loop": bare_loop,
    "torchvision v2": torchvision_v2,
    "timm": timm_default,
    "tf.data": tf_data,
}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12 * BATCH, help="× 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.images % BATCH:
        parser.error(f"--images must be a multiple of {BATCH}, or batches differ")
    cv2.setNumThreads(1)
    files = photographs(arguments.images)
    loads = {}
    for name, make in CONTENDERS.items():
        try:
            loads[name] = make(files)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for load in loads.values():
        deque(load(), 0)  # warms up: loads and compiles
    for _ in range(arguments.rounds):
        for name, load in loads.items():
            batches = load()
            next(batches)  # work done once per epoch does not count
            start = time.process_time()
            deque(batches, 0)
            seconds = time.process_time() - start
            rates[name].append((len(files) - BATCH) / seconds)
    found = {name: statistics.median(some) for name, some in rates.items()}
    # Ratios within a round, so that whatever slows the machine affects both.
    ratios = {
        name: statistics.median(map(operator.truediv, rates["ours"], some))
        for name, some in rates.items()
    }
    missed = [n for n, bound in BOUNDS.items() if n in ratios and ratios[n] < bound]
    if arguments.json:
        print(json.dumps({"images_per_second": found, "ours_over": ratios}))
    else:
        for name, rate in found.items():
            wanted = f", at least {BOUNDS[name]}" if name in BOUNDS else ""
            print(f"{name:15} {rate:7,.0f} images/s, ours {ratios[name]:.2f}×{wanted}")
    if missed:
        sys.exit(f"too slow compared with {', '.join(missed)}")


if __name__ == "__main__":
    main()
