"""Writes posemb_references.npz: position embeddings resized by PyTorch and timm.

    pip install torch timm numpy
    python tests/golden/make_posemb_references.py

Tests read only the file. Names are METHOD/HEIGHTxWIDTH; "source" is what was resized.
"""

import pathlib

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed

GRIDS = ((7, 9), (3, 2), (5, 8), (2, 8), (12, 4), (16, 16), (1, 1))


def main():
    source = np.random.default_rng(2).normal(size=(1, 5, 4, 3)).astype(np.float32)
    arrays = {"source": source}
    channels_first = torch.from_numpy(source).permute(0, 3, 1, 2)
    rows = torch.from_numpy(source).flatten(1, 2)

    def with_timm(grid, **options):
        resized = resample_abs_pos_embed(
            rows, new_size=list(grid), old_size=[5, 4], num_prefix_tokens=0, **options
        )
        return resized.reshape(1, *grid, -1)

    for grid in GRIDS:
        torch_cubic = torch.nn.functional.interpolate(
            channels_first, size=grid, mode="bicubic", align_corners=False
        )
        # DINO and DINOv2 (vision_transformer.py): an offset of 0.1 in the scale.
        scale = tuple((new + 0.1) / old for new, old in zip(grid, (5, 4), strict=True))
        offset = torch.nn.functional.interpolate(
            channels_first, scale_factor=scale, mode="bicubic", align_corners=False
        )
        assert offset.shape[2:] == grid
        for method, resized in (
            ("bicubic", with_timm(grid, interpolation="bicubic", antialias=True)),
            ("bicubic_torch", torch_cubic.permute(0, 2, 3, 1)),
            ("bicubic_offset", offset.permute(0, 2, 3, 1)),
            ("bilinear", with_timm(grid, interpolation="bilinear", antialias=False)),
        ):
            arrays[f"{method}/{grid[0]}x{grid[1]}"] = resized.numpy()
    path = pathlib.Path(__file__).with_name("posemb_references.npz")
    np.savez_compressed(path, **arrays)
    size = path.stat().st_size
    print(f"{path}: {size} bytes; {torch.__version__=} {timm.__version__=}")


if __name__ == "__main__":
    main()
