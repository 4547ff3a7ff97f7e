"""A check of crop boxes against boxes drawn by hand.

    pip download --no-deps --dest=DIR scikit-image==0.26.0
    unzip -j DIR/scikit_image-*.whl 'skimage/data/*' -d DIR
    python benchmarks/check_crop.py --checkpoint=MODEL --images=DIR [--out=FOLDER]

Prints, for each picture of crop_boxes.json and each setting, the share of the box drawn
by hand that the crop covers, and their intersection over union (IoU); then, for many
input sizes and masses, how many pictures are covered and the mean IoU. --out writes the
overlays. The exit status is 1 if the setting CHECKED leaves more than a tenth of any
box out. It was chosen on these pictures, for DINOv2's ViT-S/14: the check is that the
numbers in docs/crop.md hold, not a measure of how well other pictures are cropped.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

LEAST = 0.9
SIZES = (224, 252, 280, 336, 392, 448, 518)
MASSES = (0.5, 0.6, 0.7, 0.8)


class Setting(NamedTuple):
    """Arguments of `Cropper`."""

    method: str
    image_size: int | None = None
    mass: float = 0.6

    def __str__(self) -> str:
        size = "own size" if self.image_size is None else f"{self.image_size}"
        mass = f", mass {self.mass}" if self.method == "attention" else ""
        return f"{self.method}, {size}{mass}"


CHECKED = Setting("attention", 280, 0.8)
SETTINGS = (
    Setting("attention"),
    Setting("attention", 224),
    Setting("attention", 336, 0.7),
    CHECKED,
    Setting("tokencut", 280),
    Setting("tokencut_centred"),
    Setting("tokencut_centred", 280),
)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    import vit_jax

    model = vit_jax.load(arguments.checkpoint)
    pictures = read(arguments.images)
    missed = compare(model, pictures, arguments.out)
    sweep(model, pictures)
    verdict = f"MISSED: {', '.join(missed)}" if missed else "ok"
    print(f"\n{CHECKED} covers {LEAST:.0%} of each box: {verdict}")
    return int(bool(missed))


def read(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, Any]]:
    """Returns the pixels and the box of each picture by what the box is around."""
    from vit_jax.data.preprocessing import read_file, to_pixels
    from vit_jax.inspect.boxes import Box

    data = pathlib.Path(__file__).with_name("crop_boxes.json")
    found = {}
    for name, record in json.loads(data.read_text("utf-8"))["pictures"].items():
        pixels = to_pixels(read_file(folder / name), 3, name)
        height, width = pixels.shape[:2]
        if [width, height] != record["size"]:
            raise SystemExit(f"{name} is another picture: {width} × {height} pixels")
        found[record["what"]] = pixels, Box(*record["box"])
    return found


def compare(
    model: Any,
    pictures: dict[str, tuple[np.ndarray, Any]],
    out: pathlib.Path | None,
) -> list[str]:
    """Prints a line for each setting and picture; returns what CHECKED misses."""
    from vit_jax.errors import UserError
    from vit_jax.inspect.boxes import covered, overlap
    from vit_jax.inspect.crop_folder import overlay
    from vit_jax.inspect.cropping import Cropper

    missed = []
    print(f"{'picture':22} {'method':34} {'covered':>8} {'IoU':>6}  box")
    for setting in SETTINGS:
        cropper = Cropper(
            model, setting.method, mass=setting.mass, image_size=setting.image_size
        )
        for what, (pixels, box) in pictures.items():
            line = f"{what:22} {setting!s:34}"
            try:
                found = cropper(pixels)
            except UserError as error:
                print(f"{line} {str(error).partition(':')[0]}")
                continue
            share, iou = covered(found.box, box), overlap(found.box, box)
            print(f"{line} {share:8.1%} {iou:6.2f}  {tuple(found.box)}", flush=True)
            if setting == CHECKED and share < LEAST:
                missed.append(what)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                name = f"{what} {setting}.png".replace(" ", "_").replace(",", "")
                overlay(pixels, found).save(out / name)
    return missed


def sweep(model: Any, pictures: dict[str, tuple[np.ndarray, Any]]) -> None:
    """Prints how many boxes attention covers, by size of the input and mass."""
    from vit_jax.inspect.boxes import attention_box, covered, overlap
    from vit_jax.inspect.cropping import Cropper

    print(f"\nattention: boxes of {len(pictures)} covered, mean IoU")
    print("size  " + "".join(f"  mass {mass:<5}" for mass in MASSES))
    for size in SIZES:
        cropper = Cropper(model, image_size=size)
        maps = {what: cropper(pixels).map for what, (pixels, _) in pictures.items()}
        line = f"{size:4}  "
        for mass in MASSES:
            shares, ious = [], []
            for what, (pixels, box) in pictures.items():
                found = attention_box(maps[what], pixels.shape[:2], mass=mass)
                shares.append(covered(found.box, box))
                ious.append(overlap(found.box, box))
            count = sum(share >= LEAST for share in shares)
            line += f"  {count} {np.mean(ious):8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
