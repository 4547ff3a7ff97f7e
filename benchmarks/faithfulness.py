"""Deletion and insertion of maps against random orders, on photographs.

    python benchmarks/faithfulness.py --checkpoint=… --images=DIR [--steps=32]

Scores an image by the cosine of the model's features to those of the whole image.
Gradients are those of minus the cosine to the features of a blank image, since those of
the score itself are zero at the whole image. Prints the areas, of each photograph and
their means.
"""

import argparse
import pathlib
import time

import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax.inspect import MAPS, away_from
from vit_jax.inspect.faithfulness import (
    area,
    cost,
    curves,
    deletion,
    insertion,
    random_baseline,
    ranks,
    score_of,
)

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "coffee": "coffee.png",
    "cat": "chelsea.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
}


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument(
        "--maps", nargs="+", default=["attention", "rollout", "relevance"]
    )
    args = parser.parse_args()
    model = vit_jax.load(args.checkpoint, image_size=args.image_size, num_classes=0)
    images = model.prepare([args.images / file for file in PHOTOGRAPHS.values()])
    blank = model(jnp.zeros_like(images[:1]))
    score, grid = score_of(model, images), model.architecture.grid
    passes = 2 * len(images) * cost(grid, len(args.maps) + args.orders, args.steps)
    print(f"{passes} images to score", flush=True)
    start = time.monotonic()
    orders = {
        name: ranks(np.asarray(MAPS[name].compute(model, images, away_from(blank))))
        for name in args.maps
    }
    for kind, ends in (
        ("deletion", deletion(images)),
        ("insertion", insertion(images)),
    ):
        print(f"\n| {kind} | {' | '.join(PHOTOGRAPHS)} | mean |", flush=True)
        print("|---" * (len(images) + 2) + "|")
        for name, order in orders.items():
            _row(name, area(curves(score, ends, order, steps=args.steps)))
        drawn = area(
            random_baseline(score, ends, grid, orders=args.orders, steps=args.steps)
        )
        _row("random, mean", drawn.mean(axis=0))
        _row("random, lowest", drawn.min(axis=0))
        _row("random, highest", drawn.max(axis=0))
    print(f"\n{time.monotonic() - start:.0f} s")


def _row(name: str, values: np.ndarray):
    cells = " | ".join(f"{x:.3f}" for x in (*values, values.mean()))
    print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
