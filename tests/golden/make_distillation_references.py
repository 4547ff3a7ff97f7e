"""Writes distillation.npz: the published losses in PyTorch, and curves of 30 steps.

    pip install torch==2.14.1 timm==1.0.31 numpy
    python tests/golden/make_distillation_references.py

"logits/student" and "logits/teacher" [b, k] have for each DISTANCE "DISTANCE/values"
[b] and "DISTANCE/gradients" [b, k], those of the sum. In the runs, a small DeiT with
two heads ("student/PATH") learns from a ViT ("teacher/PATH") of another normalisation,
from "images" uint8 [b, h, w, c] and "labels"; for each KIND, "KIND/losses" are those of
30 steps of SGD with momentum on the same batch, and "KIND/gradients/PATH" the first.
"""

import pathlib

import numpy as np
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

HERE = pathlib.Path(__file__).parent
SIZES = {
    **{"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": 5},
    **{"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS, RATE, MOMENTUM = 30, 0.02, 0.9
NAMES = {
    "patch_embed.proj": "patch_embed",
    "norm": "norm",
    "head": "head",
    "head_dist": "head_distillation",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention/out",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}


def kl(student, teacher, t):
    """Returns T² KL(teacher ‖ student), as function matching defines it."""
    wanted = functional.softmax(teacher / t, -1)
    cross = -(wanted * functional.log_softmax(student / t, -1)).sum(-1)
    return t**2 * (cross + (wanted * wanted.clamp(min=1e-8).log()).sum(-1))


def hard(student, teacher, smoothing=0.0):
    """Returns the KL to the teacher's class, smoothed over the K - 1 others."""
    classes = teacher.shape[-1]
    one = functional.one_hot(teacher.argmax(-1), classes).float()
    wanted = (1 - smoothing) * one + smoothing / (classes - 1) * (1 - one)
    return (
        wanted * (wanted.clamp(min=1e-8).log() - functional.log_softmax(student, -1))
    ).sum(-1)


def euclidean(student, teacher):
    """Returns the root of the summed squares and 1e-12."""
    return (((student - teacher) ** 2).sum(-1) + 1e-12).sqrt()


def sigmoid_kl(student, teacher, t):
    """Returns T² KL of each class's yes or no, summed over the classes."""
    yes, no = (torch.distributions.Bernoulli(logits=x / t) for x in (teacher, student))
    return t**2 * torch.distributions.kl_divergence(yes, no).sum(-1)


DISTANCES = {
    **{f"kl_{t}": lambda s, x, t=t: kl(s, x, t) for t in (1, 2, 3)},
    "hard": hard,
    "hard_smoothed": lambda s, x: hard(s, x, 0.1),
    "l2": lambda s, x: ((s - x) ** 2).sum(-1),
    "euclidean": euclidean,
    "logsoftmax_euclidean": lambda s, x: euclidean(
        functional.log_softmax(s, -1), functional.log_softmax(x, -1)
    ),
    "sigmoid_kl_2": lambda s, x: sigmoid_kl(s, x, 2),
}


def soft_of_deit(student, teacher, t):
    """Returns DeiT's distance of a batch: T² KL, divided by images and classes."""
    log_p, log_q = (
        functional.log_softmax(student / t, 1),
        functional.log_softmax(teacher / t, 1),
    )
    total = functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return total * t * t / log_p.numel()


def smooth(labels, classes, amount=0.1):
    """Returns timm's smoothed targets: amount / K everywhere, the rest on the label."""
    targets = torch.full((len(labels), classes), amount / classes)
    targets[torch.arange(len(labels)), labels] += 1 - amount
    return targets


def deit(kind, base, alpha=0.5, t=1.0):
    """Returns DeiT's loss as a function of both heads, teacher and targets."""

    def loss(heads, teacher, targets):
        of_labels = base(heads[0], targets)
        if kind == "hard":
            of_teacher = functional.cross_entropy(heads[1], teacher.argmax(1))
        else:
            of_teacher = soft_of_deit(heads[1], teacher, t)
        return of_labels * (1 - alpha) + of_teacher * alpha

    return loss


KINDS = {
    "hard": deit("hard", functional.cross_entropy),
    "hard_bce": deit("hard", functional.binary_cross_entropy_with_logits),
    "soft": deit("soft", functional.cross_entropy, alpha=0.1, t=3.0),
    "matching": lambda heads, teacher, _: kl(sum(heads) / 2, teacher, 2.0).mean(),
}


def converted(name, value):
    """Yields this project's paths and layouts of a parameter."""
    module, _, leaf = name.rpartition(".")
    if name == "pos_embed":
        prefix = value.shape[1] - 4
        yield "pos_embed_prefix", value[:, :prefix]
        yield "pos_embed", value[:, prefix:].reshape(1, 2, 2, -1)
        return
    if name in ("cls_token", "dist_token"):
        yield {"cls_token": "cls", "dist_token": "distillation"}[name], value
        return
    block = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        block = f"blocks_{int(number):02d}/"
    kind = leaf if leaf == "bias" else "scale" if value.ndim == 1 else "kernel"
    if value.ndim > 1:
        value = value.transpose((2, 3, 1, 0) if value.ndim == 4 else (1, 0))
    if module == "attn.qkv":
        for part, piece in zip(
            ("query", "key", "value"), np.split(value, 3, axis=-1), strict=True
        ):
            yield f"{block}attention/{part}/{kind}", piece
        return
    yield f"{block}{NAMES[module]}/{kind}", value


def ours(model, prefix, gradients=False):
    """Returns a model's parameters or gradients in this project's names."""
    return {
        f"{prefix}{path}": np.array(array)
        for name, x in model.named_parameters()
        for path, array in converted(
            name, (x.grad if gradients else x).detach().numpy().copy()
        )
    }


def drawn(model, seed):
    """Sets all parameters to random values, large enough to matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            scale = name.endswith("weight") and x.ndim == 1
            x.copy_(torch.randn_like(x) * 0.3 + float(scale))
    return model


def run(kind, arrays, pixels, labels):
    """Trains a student from its first parameters; adds what is compared."""
    student = drawn(VisionTransformerDistilled(**SIZES), 1)
    student.set_distilled_training(True)
    teacher = drawn(VisionTransformer(**SIZES), 2).eval()
    arrays |= ours(student, "student/") | ours(teacher, "teacher/")
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        answers = teacher((x - mean) / std)
    targets = smooth(torch.from_numpy(labels), 5, 0.0 if kind == "matching" else 0.1)
    optimizer = torch.optim.SGD(student.parameters(), RATE, MOMENTUM)
    losses = []
    for step in range(STEPS):
        loss = KINDS[kind](student((x - 0.5) / 0.5), answers, targets)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            arrays |= ours(student, f"{kind}/gradients/", gradients=True)
        optimizer.step()
        losses.append(loss.item())
    arrays[f"{kind}/losses"] = np.array(losses)


def main():
    """Writes the file."""
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "labels": rng.integers(0, 5, 8),
    }
    student, teacher = (3 * rng.normal(size=(6, 5)).astype(np.float32) for _ in "ab")
    arrays |= {"logits/student": student, "logits/teacher": teacher}
    for name, distance in DISTANCES.items():
        logits = torch.tensor(student, requires_grad=True)
        values = distance(logits, torch.tensor(teacher))
        values.sum().backward()
        arrays[f"{name}/values"] = values.detach().numpy()
        arrays[f"{name}/gradients"] = logits.grad.numpy()
    for kind in KINDS:
        run(kind, arrays, arrays["images"], arrays["labels"])
        print(kind, *(f"{x:.4f}" for x in arrays[f"{kind}/losses"][::10]))
    np.savez_compressed(HERE / "distillation.npz", **arrays)


if __name__ == "__main__":
    main()
