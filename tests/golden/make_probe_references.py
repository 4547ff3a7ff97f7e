"""Writes probe.npz: linear probing by PyTorch's layers, with SGD and with LARS.

    pip install torch==2.14.1 numpy
    python tests/golden/make_probe_references.py

BatchNorm1d without affine parameters, then Linear, trained on given features for 30
steps, each time without the rows whose "mask" is 0. The arrays are "features"
[steps, b, d], "labels" and "mask" [steps, b], "kernel" [d, k] and "bias" at the start,
"seen" [n, d], the features for evaluation, and for both optimisers (KIND is "sgd" or
"lars") "KIND/losses" [steps], "KIND/kernel", "KIND/bias", "KIND/mean", "KIND/variance"
at the end, and "KIND/logits" [n, k] of evaluation.
"""

import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
STEPS, BATCH, WIDTH, CLASSES = 30, 16, 16, 10
RATES = {"sgd": 0.5, "lars": 3.0}
MOMENTUM, TRUST = 0.9, 0.001


def direction(kind, parameter):
    """Returns what the momentum adds up: the gradient, for LARS scaled if a matrix."""
    gradient = parameter.grad
    if kind == "sgd" or parameter.ndim < 2:
        return gradient
    norms = parameter.norm(), gradient.norm()
    return gradient * (TRUST * norms[0] / norms[1] if all(norms) else 1.0)


def trained(kind, arrays):
    """Trains with one optimiser; returns its results."""
    norm = torch.nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
    linear = torch.nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(arrays["kernel"].T))
        linear.bias.copy_(torch.from_numpy(arrays["bias"]))
    velocity = [torch.zeros_like(p) for p in linear.parameters()]
    losses = []
    for x, labels, mask in zip(
        *(torch.from_numpy(arrays[name]) for name in ("features", "labels", "mask")),
        strict=True,
    ):
        counts = mask > 0
        logits = linear(norm(x[counts]))
        loss = torch.nn.functional.cross_entropy(logits, labels[counts].long())
        linear.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for v, parameter in zip(velocity, linear.parameters(), strict=True):
                v.mul_(MOMENTUM).add_(direction(kind, parameter))
                parameter.sub_(RATES[kind] * v)
    norm.eval()
    found = {
        "losses": np.array(losses, np.float32),
        "kernel": linear.weight.detach().numpy().T,
        "bias": linear.bias.detach().numpy(),
        "mean": norm.running_mean.numpy(),
        "variance": norm.running_var.numpy(),
        "logits": linear(norm(torch.from_numpy(arrays["seen"]))).detach().numpy(),
    }
    return {f"{kind}/{name}": value for name, value in found.items()}


def main():
    """Writes the file."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    scale, offset = rng.uniform(0.2, 3, WIDTH), 2 * rng.normal(size=WIDTH)

    def features(labels):
        noise = rng.normal(size=(*labels.shape, WIDTH))
        return ((centres[labels] + noise) * scale + offset).astype(np.float32)

    labels = rng.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32)
    mask = np.ones((STEPS, BATCH), np.float32)
    mask[2, -3:] = mask[17, ::2] = 0
    arrays = {
        "features": features(labels),
        "labels": labels,
        "mask": mask,
        "kernel": rng.normal(0, 0.1, (WIDTH, CLASSES)).astype(np.float32),
        "bias": rng.normal(0, 0.1, CLASSES).astype(np.float32),
        "seen": features(rng.integers(0, CLASSES, 20)),
    }
    for kind in RATES:
        arrays |= trained(kind, arrays)
    np.savez_compressed(HERE / "probe.npz", **arrays)


if __name__ == "__main__":
    main()
