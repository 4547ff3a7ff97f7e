"""Writes tuning.npz: factors of layer-wise decay and clipped gradients, from timm.

  pip install torch timm
  python tests/golden/make_tuning_references.py

The factors are those of `param_groups_layer_decay` for small models of four kinds, by
timm's names of the parameters; the gradients are those that `adaptive_clip_grad` leaves
of random ones.
"""

import pathlib

import numpy as np
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.utils.agc import adaptive_clip_grad

FILE = pathlib.Path(__file__).parent / "tuning.npz"
SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
MODELS = {
    "registers": lambda: VisionTransformer(
        **SIZES, depth=3, num_classes=5, reg_tokens=2, init_values=1e-4
    ),
    "distilled": lambda: VisionTransformerDistilled(**SIZES, depth=2, num_classes=5),
    "map": lambda: VisionTransformer(
        **SIZES, depth=2, num_classes=5, global_pool="map", class_token=False
    ),
    "fc_norm": lambda: VisionTransformer(
        **SIZES, depth=2, num_classes=5, global_pool="avg"
    ),
    "headless": lambda: VisionTransformer(**SIZES, depth=2, num_classes=0),
}
DECAY, SMALLEST, FACTOR = 0.6, 0.3, 0.02
# Name → shape in PyTorch's order; the scales of weights and gradients are such that
# some outputs are clipped, some are not, and some norms are below the smallest.
SHAPES = {
    "linear": ((6, 4), 1.0, 0.02),
    "zeros": ((3, 4), 0.0, 0.001),
    "conv": ((5, 3, 2, 2), 0.3, 0.01),
    "bias": ((7,), 0.01, 0.001),
    "token": ((1, 1, 6), 0.02, 0.001),
    "positions": ((1, 4, 6), 0.02, 0.0001),
}


def factors():
    """Computes the factor of each parameter of each model, plain and limited."""
    found = {}
    for kind, make in MODELS.items():
        model = make()
        names = {id(p): name for name, p in model.named_parameters()}
        for suffix, smallest in (("", 0.0), ("_limited", SMALLEST)):
            groups = param_groups_layer_decay(
                model, layer_decay=DECAY, min_scale=smallest
            )
            scales = {
                names[id(p)]: group["lr_scale"]
                for group in groups
                for p in group["params"]
            }
            found[f"factors/{kind}{suffix}/names"] = np.array(list(scales))
            found[f"factors/{kind}{suffix}/values"] = np.array(list(scales.values()))
    return found


def clipped():
    """Clips random gradients of parameters of each shape."""
    rng, found = np.random.default_rng(0), {}
    for name, (shape, size, of_gradient) in SHAPES.items():
        weights = (size * rng.standard_normal(shape)).astype(np.float32)
        # Each output's gradient has another size.
        spread = 3.0 ** rng.integers(-2, 3, (shape[0], *[1] * (len(shape) - 1)))
        gradient = of_gradient * spread * rng.standard_normal(shape)
        gradient = gradient.astype(np.float32)
        parameter = torch.nn.Parameter(torch.tensor(weights))
        parameter.grad = torch.tensor(gradient)
        adaptive_clip_grad([parameter], clip_factor=FACTOR)
        found |= {
            f"clipped/{name}/weights": weights,
            f"clipped/{name}/gradient": gradient,
            f"clipped/{name}/result": parameter.grad.numpy(),
        }
    return found


if __name__ == "__main__":
    constants = {"decay": DECAY, "smallest": SMALLEST, "factor": FACTOR}
    np.savez_compressed(
        FILE, timm=timm.__version__, **constants, **factors(), **clipped()
    )
