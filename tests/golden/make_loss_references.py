"""Writes losses.npz: losses of PyTorch, torchvision and timm, with their gradients.

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy
    python tests/golden/make_loss_references.py

The arrays are "logits" [b, k], "labels" [b], "positive" [b, k] (several labels),
"weights" and "pos_weight" [k], "counts" [k], and for each case NAME "NAME/loss", the
mean over the images in float64, and "NAME/grad", its gradient by the logits.
"""

import pathlib

import numpy as np
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

HERE = pathlib.Path(__file__).parent


def softmax_focal(logits, labels, gamma, weights=None):
    """Returns the mean of −(1 − p)^gamma log p of the labels (arXiv:1708.02002)."""
    log_p = functional.log_softmax(logits, dim=-1)
    log_p = log_p.gather(1, labels[:, None])[:, 0]
    losses = -((1 - log_p.exp()) ** gamma) * log_p
    if weights is None:
        return losses.mean()
    weights = weights[labels]
    return (weights * losses).sum() / weights.sum()


def cases(arrays):
    """Returns the losses by name, as functions of the logits."""
    labels, positive, weights, pos_weight, counts = (
        torch.from_numpy(arrays[name])
        for name in ("labels", "positive", "weights", "pos_weight", "counts")
    )
    prior = torch.log(counts / counts.sum())
    by_image = weights[labels]
    one_hot = functional.one_hot(labels, len(weights)).double()

    def asymmetric(**options):
        made = AsymmetricLossMultiLabel(**options)
        return lambda logits: made(logits, positive)

    def focal(**options):
        return lambda x: (
            sigmoid_focal_loss(x, positive, reduction="sum", **options) / len(x)
        )

    def sigmoid(**options):
        return lambda x: (
            functional.binary_cross_entropy_with_logits(
                x, positive, reduction="sum", **options
            )
            / len(x)
        )

    def balanced_sigmoid(logits):
        losses = functional.binary_cross_entropy_with_logits(
            logits, one_hot, reduction="none"
        )
        return (by_image[:, None] * losses).sum() / by_image.sum()

    def softmax(**options):
        return lambda x: functional.cross_entropy(x, labels, **options)

    return {
        "asymmetric": asymmetric(),
        "asymmetric_no_gradient": asymmetric(
            gamma_pos=0, disable_torch_grad_focal_loss=True
        ),
        "asymmetric_unclipped": asymmetric(gamma_neg=2, gamma_pos=1.5, clip=0),
        "asymmetric_weighted": asymmetric(weight=weights, pos_weight=pos_weight),
        "sigmoid_focal": focal(),
        "sigmoid_focal_without_alpha": focal(alpha=-1, gamma=1.5),
        "sigmoid_pos_weight": sigmoid(pos_weight=pos_weight),
        "sigmoid_weighted": sigmoid(weight=weights),
        "sigmoid_of_one_label_weighted": balanced_sigmoid,
        "softmax_weighted": softmax(weight=weights),
        "softmax_weighted_smoothed": softmax(weight=weights, label_smoothing=0.2),
        "softmax_adjusted": lambda x: functional.cross_entropy(x + 1.5 * prior, labels),
        "softmax_focal": lambda x: softmax_focal(x, labels, 2.0),
        "softmax_focal_weighted": lambda x: softmax_focal(x, labels, 0.5, weights),
    }


def main():
    """Writes the file."""
    rng = np.random.default_rng(0)
    arrays = {
        "logits": 3 * rng.normal(size=(6, 5)),
        "labels": np.array([0, 3, 1, 4, 2, 3]),
        "positive": (rng.random((6, 5)) < 0.4).astype(np.float64),
        "weights": rng.uniform(0.5, 3, 5),
        "pos_weight": rng.uniform(0.5, 3, 5),
        "counts": np.array([100.0, 40.0, 20.0, 7.0, 3.0]),
    }
    arrays["positive"][2] = 0  # an image without any label
    # float32 beforehand, so that both sides compute with the same numbers.
    for name in ("logits", "weights", "pos_weight"):
        arrays[name] = arrays[name].astype(np.float32).astype(np.float64)
    for name, loss in cases(arrays).items():
        logits = torch.from_numpy(arrays["logits"]).requires_grad_()
        value = loss(logits)
        value.backward()
        arrays[f"{name}/loss"] = value.detach().numpy()
        arrays[f"{name}/grad"] = logits.grad.numpy()
    np.savez_compressed(HERE / "losses.npz", **arrays)


if __name__ == "__main__":
    main()
