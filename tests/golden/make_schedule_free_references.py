"""Makes schedule_free.npz: thirty updates of the original package in PyTorch.

    pip install torch schedulefree==1.4.1
    python tests/golden/make_schedule_free_references.py

Two parameters, a kernel that decays and a bias that does not, descend on a quadratic
with noise. Each case stores the points where gradients are computed (y) and those to
evaluate (x) after every update.
"""

import pathlib

import numpy as np
import schedulefree
import torch

STEPS, WARMUP, DECAY = 30, 5, 0.1
CASES = {
    "constant": {"schedule": "constant", "r": 0.0, "weight_lr_power": 2.0, "b1": 0.9},
    "cosine": {"schedule": "cosine", "r": 1.0, "weight_lr_power": 1.0, "b1": 0.8},
}
PEAK = 0.02


def rates(schedule):
    """The learning rates of all updates; the first is 0, as in vit_jax."""
    t = np.arange(STEPS, dtype=np.float64)
    rate = np.full(STEPS, PEAK)
    if schedule == "cosine":
        progress = np.clip((t - WARMUP) / (STEPS - WARMUP), 0, 1)
        rate *= 0.5 * (1 + np.cos(np.pi * progress))
    return rate * np.minimum(t / WARMUP, 1)


def main():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    stored = {}
    for name, shape in shapes.items():
        stored[f"start/{name}"] = rng.normal(size=shape).astype(np.float32)
        curvature = rng.uniform(0.1, 2, size=shape)
        stored[f"curvature/{name}"] = curvature.astype(np.float32)
        noise = 0.3 * rng.normal(size=(STEPS, *shape))
        stored[f"noise/{name}"] = noise.astype(np.float32)
    for case, how in CASES.items():
        params = {
            name: torch.tensor(stored[f"start/{name}"], requires_grad=True)
            for name in shapes
        }
        optimizer = schedulefree.AdamWScheduleFree(
            [
                {"params": [params["kernel"]], "weight_decay": DECAY},
                {"params": [params["bias"]], "weight_decay": 0.0},
            ],
            betas=(how["b1"], 0.999),
            eps=1e-8,
            r=how["r"],
            weight_lr_power=how["weight_lr_power"],
        )
        optimizer.train()
        points = {f"{kind}/{name}": [] for kind in "yx" for name in shapes}
        for step, rate in enumerate(rates(how["schedule"])):
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            for name, p in params.items():
                curvature = torch.tensor(stored[f"curvature/{name}"])
                noise = torch.tensor(stored[f"noise/{name}"][step])
                p.grad = curvature * p.detach() + noise
            optimizer.step()
            for kind, change in (("y", lambda: None), ("x", optimizer.eval)):
                change()
                for name, p in params.items():
                    points[f"{kind}/{name}"].append(p.detach().numpy().copy())
            optimizer.train()
        stored[f"{case}/rates"] = rates(how["schedule"])
        for key, values in points.items():
            stored[f"{case}/{key}"] = np.stack(values)
    np.savez_compressed(pathlib.Path(__file__).with_name("schedule_free.npz"), **stored)


if __name__ == "__main__":
    main()
