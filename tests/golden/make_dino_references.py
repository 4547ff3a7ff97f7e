"""Writes dino.npz: DINO in PyTorch, one loss with its gradients, and thirty steps.

    pip install torch==2.14.1 numpy
    python tests/golden/make_dino_references.py

Written from the definitions of the method (arXiv:2104.14294) and of its published
optimiser settings; a small Vision Transformer of random weights, in float32. The arrays
are

- "global_0", "global_1", "local_0", "local_1": uint8 [8, h, w, 3], views of 8 images,
- "rows": int [30, 4], the images of each step's batch,
- "params/PATH": the weights at the start, in this project's names,
- "loss", "grads/PATH": the first step's,
- "curve/NAME": float [30, ...], "loss" of each step, and after it "center", [30, 24],
- "after/student/PATH", "after/teacher/PATH": the weights after all steps.
"""

import math
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = pathlib.Path(__file__).parent
WIDTH, HEADS, DEPTH, MLP, PATCH = 16, 2, 2, 24, 4
HIDDEN, BOTTLENECK, OUTPUTS = 20, 8, 24
STEPS, EPOCH = 30, 10  # an epoch has ten steps
RATE, END_RATE, DECAY, END_DECAY = 1e-3, 1e-6, 0.04, 0.4
CLIP, MOMENTUM, CENTER_MOMENTUM = 0.3, 0.9, 0.9
STUDENT_TEMP, TEACHER_TEMPS = 0.1, (0.04, 0.07, 0.07)  # warm-up of two epochs


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP), nn.Linear(MLP, WIDTH)

    def forward(self, x):
        b, n, d = x.shape
        heads = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, d // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1)) * (d // HEADS) ** -0.5
        mixed = (weights.softmax(-1) @ value).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(mixed)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed(images)
        side = x.shape[-1]
        positions = self.pos_embed[:, 1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
        if side != 4:
            positions = functional.interpolate(positions, (side, side), mode="bicubic")
        x = (x + positions).flatten(2).transpose(1, 2)
        first = (self.cls + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, BOTTLENECK)
        last = nn.Linear(BOTTLENECK, OUTPUTS, bias=False)
        # Two parameters: weight_g [outputs, 1] and weight_v [outputs, bottleneck].
        self.last_layer = nn.utils.weight_norm(last)

    def forward(self, x):
        x = functional.gelu(self.fc2(functional.gelu(self.fc1(x))))
        return self.last_layer(functional.normalize(self.fc3(x), dim=-1, p=2))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), Head()

    def forward(self, views):
        """Takes a list of views; those of one size go through together."""
        sizes = sorted({view.shape[-1] for view in views}, reverse=True)
        features = [
            self.backbone(torch.cat([v for v in views if v.shape[-1] == size]))
            for size in sizes
        ]
        return self.head(torch.cat(features))


def loss_of(student_outputs, teacher_outputs, center, temperature):
    student = (student_outputs / STUDENT_TEMP).log_softmax(-1).chunk(4)
    teacher = ((teacher_outputs - center) / temperature).softmax(-1).detach().chunk(2)
    terms = [
        -(q * p).sum(-1).mean()
        for i, q in enumerate(teacher)
        for j, p in enumerate(student)
        if i != j
    ]
    return sum(terms) / len(terms)


def cosine(begin, end, step):
    return end + 0.5 * (begin - end) * (1 + math.cos(math.pi * step / STEPS))


def named(network, values):
    """Yields this project's path and layout of each parameter's value."""
    for (name, _), value in zip(network.named_parameters(), values, strict=True):
        value = value.detach().numpy().copy()
        area, _, rest = name.partition(".")
        if area == "head":
            yield from _linear(f"projection_head/{rest}", value)
        elif rest == "pos_embed":
            yield "pos_embed_prefix", value[:, :1]
            yield "pos_embed", value[:, 1:].reshape(1, 4, 4, WIDTH)
        elif rest == "cls":
            yield "cls", value
        elif rest.startswith("blocks."):
            _, number, module, kind = rest.split(".")
            block = f"blocks_{int(number):02d}"
            if module == "qkv":
                for part, third in zip(
                    ("query", "key", "value"), np.split(value, 3), strict=True
                ):
                    yield from _linear(f"{block}/attention/{part}.{kind}", third)
            else:
                folder = {"out": "attention/", "fc1": "mlp/", "fc2": "mlp/"}
                path = f"{block}/{folder.get(module, '')}{module}.{kind}"
                yield from _linear(path, value)
        else:
            yield from _linear(rest, value)


def _linear(name, value):
    path, _, kind = name.rpartition(".")
    if kind == "weight_g":
        yield f"{path}/scale", value[:, 0]
    elif kind == "bias":
        yield f"{path}/bias", value
    elif value.ndim == 1:
        yield f"{path}/scale", value
    else:
        axes = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
        yield f"{path}/kernel", value.transpose(axes)


def main():
    """Writes the file."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 256, (8, side, side, 3), np.uint8)
        for name, side in (
            *(("global_0", 16), ("global_1", 16)),
            *(("local_0", 8), ("local_1", 8)),
        )
    }
    arrays["rows"] = np.stack([rng.permutation(8)[:4] for _ in range(STEPS)])
    views = [
        torch.from_numpy(arrays[name].transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
        for name in ("global_0", "global_1", "local_0", "local_1")
    ]
    student, teacher = Network(), Network()
    with torch.no_grad():
        for name, value in student.named_parameters():
            value.copy_(torch.randn_like(value) * 0.2)
            if "norm" in name and name.endswith("weight"):
                value += 1
            if name.endswith("weight_g"):
                value.fill_(1)
    teacher.load_state_dict(student.state_dict())
    start = named(student, student.parameters())
    arrays |= {f"params/{path}": value for path, value in start}

    parameters = dict(student.named_parameters())
    decays = [p for name, p in parameters.items() if p.ndim > 1]
    others = [p for name, p in parameters.items() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decays}, {"params": others, "weight_decay": 0.0}]
    )
    center, losses, centers = torch.zeros(1, OUTPUTS), [], []
    for step in range(STEPS):
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = cosine(RATE, END_RATE, step)
            if number == 0:
                group["weight_decay"] = cosine(DECAY, END_DECAY, step)
        batch = [view[arrays["rows"][step]] for view in views]
        with torch.no_grad():
            taught = teacher(batch[:2])
        loss = loss_of(student(batch), taught, center, TEACHER_TEMPS[step // EPOCH])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            arrays["loss"] = loss.detach().numpy()
            grads = named(student, [p.grad for p in student.parameters()])
            arrays |= {f"grads/{path}": value for path, value in grads}
        for parameter in parameters.values():
            factor = CLIP / (parameter.grad.norm() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
        if step < EPOCH:
            for name, parameter in parameters.items():
                if "last_layer" in name:
                    parameter.grad = None
        optimizer.step()
        keep = cosine(MOMENTUM, 1.0, step)
        with torch.no_grad():
            for old, new in zip(
                teacher.parameters(), student.parameters(), strict=True
            ):
                old.mul_(keep).add_((1 - keep) * new)
        center = CENTER_MOMENTUM * center
        center = center + (1 - CENTER_MOMENTUM) * taught.mean(0, keepdim=True)
        centers.append(center[0].numpy())
    arrays["curve/loss"] = np.array(losses, np.float32)
    arrays["curve/center"] = np.stack(centers)
    for name, network in (("student", student), ("teacher", teacher)):
        after = named(network, network.parameters())
        arrays |= {f"after/{name}/{path}": value for path, value in after}
    np.savez_compressed(HERE / "dino.npz", **arrays)


if __name__ == "__main__":
    main()
