"""Writes mixing_references.npz: batches mixed and images erased by timm.

    pip install torch timm numpy
    python tests/golden/make_mixing_references.py

Tests read only the file. Of single cases it has what timm drew and what it made of it,
with the images as [b, h, w, c]; of many draws the rectangles, as first row, first
column, and the row and the column after the last.
"""

import pathlib
import random
from unittest import mock

import numpy as np
import timm
import torch
from timm.data.mixup import Mixup, rand_bbox
from timm.data.random_erasing import RandomErasing

NUM_CLASSES = 5
LABELS = np.array([3, 0, 3, 4], np.int32)

# lam, centre of the box (None: mixup), label smoothing
MIXED = {
    "mixup": (0.3, None, 0.0),
    "mixup_smoothed": (0.8, None, 0.1),
    "cutmix_inside": (0.7, (4, 5), 0.0),
    "cutmix_clipped": (0.4, (0, 10), 0.1),
    "cutmix_whole": (0.0, (4, 5), 0.1),
    "cutmix_nothing": (0.999, (3, 3), 0.0),
}

# Areas and aspects that are drawn, until one fits; corner, 0 … 1; size of the image.
ERASED = {
    "first_fits": ([0.2], [1.0], (0.0, 0.999), (9, 11)),
    "third_fits": ([0.33, 0.3, 0.1], [3.3, 0.31, 0.5], (0.5, 0.25), (10, 10)),
    "low": ([0.25], [0.35], (0.9, 0.1), (16, 32)),
    "none_fits": ([0.333] * 10, [3.33] * 10, (0.5, 0.5), (8, 8)),
    "empty": ([0.02], [0.3], (0.5, 0.5), (5, 5)),
}

DRAWS, SIDE = 2000, 64


def main():
    arrays = {"labels": LABELS}
    images = np.random.default_rng(0).normal(size=(len(LABELS), 9, 11, 2))
    arrays["images"] = images.astype(np.float32)
    for name, (lam, center, smoothing) in MIXED.items():
        mixed, targets = mix(images, lam, center, smoothing)
        arrays[f"{name}/images"], arrays[f"{name}/targets"] = mixed, targets
        arrays[f"{name}/drawn"] = np.float32([lam, smoothing])
        arrays[f"{name}/center"] = np.int32(center or ())
    for name, (areas, aspects, corner, size) in ERASED.items():
        arrays[f"{name}/mask"] = erased(areas, aspects, corner, size)
        # timm stops drawing at the first that fits; what comes after must not count.
        padding = [0.1] * (10 - len(areas))
        arrays[f"{name}/areas"] = np.float32([*areas, *padding])
        arrays[f"{name}/aspects"] = np.float32([*aspects, *padding])
        arrays[f"{name}/corner"] = np.float32(corner)
    arrays["cutmix_boxes"] = cutmix_boxes()
    arrays["erased_boxes"] = erased_boxes()
    path = pathlib.Path(__file__).with_name("mixing_references.npz")
    np.savez_compressed(path, **arrays)
    size = path.stat().st_size
    print(f"{path}: {size} bytes; {torch.__version__=} {timm.__version__=}")


def mix(images, lam, center, smoothing):
    """One batch through timm's Mixup, with what it draws given."""
    cuts = center is not None
    mixup = Mixup(
        mixup_alpha=0.0 if cuts else 1.0,
        cutmix_alpha=1.0 if cuts else 0.0,
        label_smoothing=smoothing,
        num_classes=NUM_CLASSES,
    )
    channels_first = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    with (
        mock.patch("numpy.random.beta", return_value=lam),
        mock.patch("numpy.random.randint", side_effect=center),
    ):
        mixed, targets = mixup(channels_first.clone(), torch.from_numpy(LABELS).long())
    return mixed.permute(0, 2, 3, 1).numpy(), targets.numpy()


def erased(areas, aspects, corner, size):
    """Which pixels timm's RandomErasing erases, with what it draws given."""
    draws = [
        number
        for area, aspect in zip(areas, aspects, strict=True)
        for number in (area, np.log(aspect))
    ]
    corner = iter(corner)
    erasing = RandomErasing(probability=1.0, mode="const", device="cpu")
    with (
        mock.patch("random.uniform", side_effect=draws),
        mock.patch("random.randint", lambda a, b: a + int(next(corner) * (b - a + 1))),
    ):
        return erasing(torch.ones(1, *size))[0].numpy() == 0


def cutmix_boxes():
    """Rectangles of timm's CutMix with lam ~ Beta(1, 1)."""
    np.random.seed(1)
    boxes = [rand_bbox((SIDE, SIDE), np.random.beta(1.0, 1.0)) for _ in range(DRAWS)]
    return np.uint8(boxes)[:, [0, 2, 1, 3]]


def erased_boxes():
    """Rectangles of timm's RandomErasing."""
    random.seed(2)
    erasing = RandomErasing(probability=1.0, mode="const", device="cpu")
    masks = erasing(torch.ones(DRAWS, 1, SIDE, SIDE))[:, 0].numpy() == 0
    return np.uint8([_box(mask) for mask in masks])


def _box(mask):
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


if __name__ == "__main__":
    main()
