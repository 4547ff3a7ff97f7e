"""A check that we compute the same as timm with every model that it names.

    python benchmarks/check_imports.py write DIR
    python benchmarks/check_imports.py check DIR

The first half needs timm, but not vit_jax: for each name in timm's modules for ViT,
hybrids and DeiT it writes a narrow model with two blocks and random weights, in timm's
own way, and its logits. The second needs vit_jax, but not timm: it loads each model and
prints how far its logits are off, or why it is refused. Its exit status is 1 if logits
are off by more than 1e-5, or anything but UserError is raised.

In float32, rounding errors in a ResNet trunk can exceed this. There the tolerance is
1e-5 plus five times the distance between timm's logits in float32 and in float64.
"""

import argparse
import collections
import os
import pathlib
import sys
import warnings

TOLERANCE = 1e-5
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit")
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
SIZES = (64, 56, 60, 96, 128, 224)  # the first that the patches divide


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", choices=("write", "check"))
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    return {"write": write, "check": check}[arguments.half](arguments.directory)


def write(directory: pathlib.Path) -> int:
    """Writes DIR/NAME/ for every name."""
    import timm

    warnings.simplefilter("ignore")
    names = [name for module in MODULES for name in timm.list_models(module=module)]
    made = sum(_write(directory / name) for name in names)
    print(f"wrote {made} of {len(names)} models of timm {timm.__version__}")
    return 0


def _write(path: pathlib.Path) -> bool:
    """Writes a small model of this name; returns False if there is none."""
    import numpy as np
    import torch
    from timm.models._hub import save_for_hf

    torch.manual_seed(0)
    try:
        module, size = _small(path.name)
    except Exception as error:
        print(f"{path.name} cannot be made small: {error}")
        return False
    with torch.no_grad():
        for name, x in module.named_parameters():
            around, spread = 0.0, 0.3
            if name.endswith("weight") and x.ndim > 1:
                spread = x[0].numel() ** -0.5
            elif name.endswith(("weight", "gamma")):
                around = 1.0
            x.copy_(around + spread * torch.randn_like(x))
        images = torch.rand(2, 3, size, size) * 2 - 1
        logits = module(images)
        options = SMALL | {"img_size": size}
        path.mkdir(parents=True)
        save_for_hf(module, path, model_args=options, safe_serialization=True)
        exact = module.double()(images.double())
    np.savez(
        path / "reference.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        logits=logits.numpy(),
        error=(logits - exact).abs().max().numpy(),
    )
    return True


def _small(name: str):
    """Returns the model in evaluation mode, and the side of its images."""
    import timm
    import torch

    for size in SIZES:
        try:
            module = timm.create_model(name, img_size=size, **SMALL).eval()
            with torch.no_grad():
                module(torch.zeros(1, 3, size, size))
            # timm may round the grid down; our models have only whole patches.
            if size % module.patch_embed.patch_size[0]:
                raise ValueError(f"patches do not divide {size} pixels")
            return module, size
        except (AssertionError, ValueError) as error:
            why = error
    raise why


def check(directory: pathlib.Path) -> int:
    """Prints one row per model; returns 1 if any is wrong, else 0."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    import vit_jax
    from vit_jax.errors import UserError

    jax.config.update("jax_default_matmul_precision", "highest")
    states = collections.Counter()
    for path in sorted(directory.iterdir()):
        stored = np.load(path / "reference.npz")
        try:
            logits = np.asarray(vit_jax.load(path)(stored["images"]))
            difference = np.abs(logits - stored["logits"]).max()
            trunk = "resnet" in path.name or "_r" in path.name.replace("_reg", "")
            allowed = TOLERANCE + 5 * trunk * stored["error"]
            state = "ok" if difference <= allowed else "WRONG"
            row = f"{difference:.1e}"
        except UserError as error:
            state, row = "refused", str(error).rpartition(path.name)[2]
        # Anything else that is raised is reported for this model.
        except Exception as error:
            state, row = "WRONG", f"{type(error).__name__}: {error}"
        states[state] += 1
        print(f"{path.name:45} {state:8} {' '.join(row.split())[:160]}")
    print(", ".join(f"{count} {state}" for state, count in states.items()))
    return int(states["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
