"""Writes augment_*.npz: what published random operations make of an image.

    pip install tensorflow-cpu
    python tests/golden/make_augment_references.py tensorflow
    pip install torch torchvision timm
    python tests/golden/make_augment_references.py timm

Tests read only the files. "source" is the image, those that RandAugment makes of it are
named OPERATION/MAGNITUDE/SIGN, with timm after INCREASING/INTERPOLATION/, those whose
hue torchvision changes hue/TURNS. "boxes" are random crops of an image of BOXED_SIZE:
(top, left, height, width).

TensorFlow's operations are written here after the definitions in big_vision's
pp/archive/autoaugment.py before June 2024; timm's are timm's own.
"""

import math
import pathlib
import sys
from typing import Any

import numpy as np

SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# Besides those of the recipes some that lie between, and for which numbers get cut off.
TENSORFLOW_MAGNITUDES = (0, 7.3, 10, 15, 20, 28)
TIMM_MAGNITUDES = (3, 9.37, 10)
FILL = (124, 116, 104)
CENTRE = (3, 20)  # of the square that is cut out
TURNS = (0.1, -0.3)
BOXED_SIZE = (375, 500)
NUM_BOXES = 3000


def make_source() -> np.ndarray:
    """Waves in three colours, noise, an even patch, and dark and light ends."""
    rows, columns = np.indices((20, 28)) / 5
    waves = [np.sin(rows + k) * np.cos(columns / (k + 1)) for k in range(3)]
    image = 120 + np.stack(waves, 2) * np.array([60, 80, 40])
    image += np.random.default_rng(5).normal(0, 6, image.shape)
    image[12:18, 3:12] = (200, 90, 130)
    image[2:7, 20:26] = np.random.default_rng(6).integers(20, 240, (5, 6, 3))
    return image.clip(12, 246).astype(np.uint8)


def with_tensorflow(source: np.ndarray) -> dict[str, np.ndarray]:
    import tensorflow as tf

    def grey(image):
        return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))

    def blended(base, image, factor):
        base, image = tf.cast(base, tf.float32), tf.cast(image, tf.float32)
        mixed = base + factor * (image - base)
        return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)

    def each_channel(function):
        return lambda image: tf.stack([*map(function, tf.unstack(image, axis=2))], 2)

    def auto_contrast(channel):
        low = tf.cast(tf.reduce_min(channel), tf.float32)
        high = tf.cast(tf.reduce_max(channel), tf.float32)
        scale = 255.0 / (high - low)
        stretched = tf.cast(channel, tf.float32) * scale + -low * scale
        return tf.cast(tf.clip_by_value(stretched, 0.0, 255.0), tf.uint8)

    def equalize(channel):
        channel = tf.cast(channel, tf.int32)
        counts = tf.histogram_fixed_width(channel, [0, 255], 256)
        present = tf.boolean_mask(counts, counts > 0)
        step = (tf.reduce_sum(present) - present[-1]) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // step
        return tf.cast(tf.gather(tf.clip_by_value(table, 0, 255), channel), tf.uint8)

    def contrast(image, factor):
        counts = tf.histogram_fixed_width(
            tf.cast(tf.image.rgb_to_grayscale(image), tf.int32), [0, 255], 256
        )
        level = tf.minimum(tf.reduce_sum(tf.cast(counts, tf.float32)) / 256.0, 255.0)
        return blended(tf.zeros_like(image) + tf.cast(level, tf.uint8), image, factor)

    def sharpness(image, factor):
        kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13.0
        kernel = tf.tile(kernel[:, :, None, None], [1, 1, 3, 1])
        batch = tf.cast(image, tf.float32)[None]
        smooth = tf.nn.depthwise_conv2d(batch, kernel, [1, 1, 1, 1], "VALID")[0]
        smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
        inside = tf.pad(tf.ones_like(smooth), [[1, 1], [1, 1], [0, 0]])
        smooth = tf.pad(smooth, [[1, 1], [1, 1], [0, 0]])
        return blended(tf.where(inside == 1, smooth, image), image, factor)

    def posterize(image, bits):
        shift = 8 - bits
        return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)

    def transformed(image, matrix):
        marked = tf.concat([image, tf.ones_like(image[:, :, :1])], 2)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=marked[None],
            transforms=tf.cast(tf.stack([*matrix, 0.0, 0.0]), tf.float32)[None],
            output_shape=tf.shape(image)[:2],
            fill_value=0.0,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]
        fill = tf.constant(128, tf.uint8)
        return tf.where(moved[:, :, 3:] == 0, fill, moved[:, :, :3])

    def rotate(image, degrees):
        angle = degrees * tf.constant(math.pi / 180)
        cos, sin = tf.cos(angle), tf.sin(angle)
        bottom, right = image.shape[0] - 1.0, image.shape[1] - 1.0
        x = (right - (cos * right - sin * bottom)) / 2.0
        y = (bottom - (sin * right + cos * bottom)) / 2.0
        return transformed(image, (cos, -sin, x, sin, cos, y))

    def cutout(image, pad):
        rows, columns = np.indices(source.shape[:2])
        inside = (rows >= CENTRE[0] - pad) & (rows < CENTRE[0] + pad)
        inside &= (columns >= CENTRE[1] - pad) & (columns < CENTRE[1] + pad)
        return tf.where(inside[:, :, None], tf.constant(128, tf.uint8), image)

    def solarize_add(image, addition):
        added = tf.clip_by_value(tf.cast(image, tf.int64) + addition, 0, 255)
        return tf.where(image < 128, tf.cast(added, tf.uint8), image)

    def enhancement(level):
        return level * 1.8 + 0.1

    operations = {
        "AutoContrast": (each_channel(auto_contrast), None),
        "Equalize": (each_channel(equalize), None),
        "Invert": (lambda image: 255 - image, None),
        "Rotate": (rotate, lambda level: level * 30),
        "Posterize": (posterize, lambda level: int(level * 4)),
        "Solarize": (
            lambda image, threshold: tf.where(image < threshold, image, 255 - image),
            lambda level: int(level * 256),
        ),
        "Color": (lambda image, f: blended(grey(image), image, f), enhancement),
        "Contrast": (contrast, enhancement),
        "Brightness": (lambda image, f: blended(image * 0, image, f), enhancement),
        "Sharpness": (sharpness, enhancement),
        "ShearX": (
            lambda image, k: transformed(image, (1.0, k, 0.0, 0.0, 1.0, 0.0)),
            lambda level: level * 0.3,
        ),
        "ShearY": (
            lambda image, k: transformed(image, (1.0, 0.0, 0.0, k, 1.0, 0.0)),
            lambda level: level * 0.3,
        ),
        "TranslateX": (
            lambda image, p: transformed(image, (1.0, 0.0, p, 0.0, 1.0, 0.0)),
            lambda level: level * 100,
        ),
        "TranslateY": (
            lambda image, p: transformed(image, (1.0, 0.0, 0.0, 0.0, 1.0, p)),
            lambda level: level * 100,
        ),
        "Cutout": (cutout, lambda level: int(level * 40)),
        "SolarizeAdd": (solarize_add, lambda level: int(level * 110)),
    }
    arrays = {}
    for name, (operation, argument) in operations.items():
        for magnitude in TENSORFLOW_MAGNITUDES if argument else (10,):
            for sign in (1, -1) if name in SIGNED else (1,):
                arguments = [argument(magnitude / 10)] if argument else []
                if name in SIGNED:
                    arguments = [tf.constant(sign * arguments[0], tf.float32)]
                # In a graph, as in a tf.data pipeline: there, whole numbers of Python
                # become 8 bits without a complaint.
                in_graph = tf.function(
                    lambda image, f=operation, a=tuple(arguments): f(image, *a),
                    autograph=False,
                )
                key = _key(name, magnitude, sign)
                arrays[key] = in_graph(tf.constant(source)).numpy()
    boxes = []
    for index in range(NUM_BOXES):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            (*BOXED_SIZE, 3),
            tf.zeros([1, 0, 4]),
            seed=(0, index),
            min_object_covered=0.0,
            aspect_ratio_range=(0.75, 1.33),
            area_range=(0.05, 1.0),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        boxes.append([*begin.numpy()[:2], *size.numpy()[:2]])
    print(f"{tf.__version__=}")
    return {**arrays, "boxes": np.array(boxes, np.int16)}


def with_timm(source: np.ndarray) -> dict[str, np.ndarray]:
    import PIL
    import timm
    import torch
    import torchvision
    from PIL import Image
    from timm.data import auto_augment

    resampling = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    plain = auto_augment._RAND_TRANSFORMS
    others = set(auto_augment._RAND_INCREASING_TRANSFORMS) - set(plain)
    arrays = {}
    for full_name in (*plain, *sorted(others)):
        increasing = full_name in others
        name = full_name.removesuffix("Increasing").removesuffix("Rel")
        enhances = name in ("Color", "Contrast", "Brightness", "Sharpness")
        draws = auto_augment.LEVEL_TO_ARG[full_name] is not None
        for magnitude in TIMM_MAGNITUDES if draws else (10,):
            bits = int(magnitude / 10 * 4)
            if name == "Posterize" and (4 - bits if increasing else bits) == 0:
                continue  # which Pillow now refuses, and made black before
            signs = name in SIGNED or (enhances and increasing)
            for sign in (1, -1) if signs else (1,):
                for interpolation in resampling if name in SIGNED else ("",):
                    hparams: dict[str, Any] = {"img_mean": FILL}
                    if interpolation:
                        hparams["interpolation"] = resampling[interpolation]
                    auto_augment._randomly_negate = lambda v, s=sign: s * v
                    operation = auto_augment.AugmentOp(
                        full_name, prob=1.0, magnitude=magnitude, hparams=hparams
                    )
                    key = f"{int(increasing)}/{interpolation}/"
                    key += _key(name, magnitude, sign)
                    arrays[key] = np.asarray(operation(Image.fromarray(source)))
    transforms = torchvision.transforms
    for turns in TURNS:
        turned = transforms.functional.adjust_hue(Image.fromarray(source), turns)
        arrays[f"hue/{turns}"] = np.asarray(turned)
    torch.manual_seed(0)
    empty = torch.empty((3, *BOXED_SIZE))
    boxes = [
        transforms.RandomResizedCrop.get_params(empty, [0.08, 1.0], [3 / 4, 4 / 3])
        for _ in range(NUM_BOXES)
    ]
    print(f"{timm.__version__=} {torchvision.__version__=} {PIL.__version__=}")
    return {**arrays, "boxes": np.array(boxes, np.int16)}


def _key(name: str, magnitude: float, sign: int) -> str:
    return f"{name}/{magnitude}/{'+' if sign > 0 else '-'}"


def main():
    for library in sys.argv[1:]:
        make = {"tensorflow": with_tensorflow, "timm": with_timm}[library]
        source = make_source()
        path = pathlib.Path(__file__).with_name(f"augment_{library}.npz")
        np.savez_compressed(path, source=source, **make(source))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
