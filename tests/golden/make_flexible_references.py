"""Writes flexible_references.npz: kernels of patch embeddings resized by timm.

    python tests/golden/make_flexible_references.py

timm (torch) is an implementation of FlexiViT's resize (arXiv:2212.08013, section 3.4)
that is independent of this package; FlexiViT's own has no antialiasing.
"""

import pathlib

import numpy as np
import torch
from timm.layers import resample_patch_embed

SIZES = ((4, 4), (8, 8), (12, 12), (16, 8), (5, 3), (48, 48))
HERE = pathlib.Path(__file__).parent


def main():
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((8, 8, 2, 3)).astype(np.float32)
    found = {"stored": stored}
    weights = torch.from_numpy(stored.transpose(3, 2, 0, 1).copy())  # [d, c, h, w]
    for height, width in SIZES:
        resized = resample_patch_embed(
            weights, [height, width], interpolation="bilinear", antialias=False
        )
        if (height, width) == (48, 48):  # one output channel of the largest is enough
            resized = resized[:1]
        kernel = resized.numpy().transpose(2, 3, 1, 0).astype(np.float32)
        found[f"{height}x{width}"] = kernel
    np.savez_compressed(HERE / "flexible_references.npz", **found)


if __name__ == "__main__":
    main()
