"""Writes prompts.npz: visual prompt tuning in PyTorch, thirty steps of both kinds.

    pip install torch==2.14.1 numpy
    python tests/golden/make_prompt_references.py

Written from the definition of the method (arXiv:2203.12119, equations 4 to 8) and the
order of tokens in its published code: the class token, the prompts, the patches. With
deep prompts each block's replace those of the block before, whose outputs are dropped.
The backbone, a small Vision Transformer of random weights, does not change; prompts and
head learn by SGD with momentum. The arrays are float32:

- "images": uint8 [12, 8, 8, 3]; "labels": int32 [12], "rows": int32 [30, 6], the
  images of each step's batch,
- "params/PATH": the backbone and the head at the start, in this project's names,
- for each KIND, "shallow" and "deep": "KIND/prompts" [blocks, 4, 16] at the start
  (one block if shallow), "KIND/logits" [12, 10] then, "KIND/loss" [30],
  "KIND/after/prompts" and "KIND/after/head/…" after all steps.
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional

HERE = pathlib.Path(__file__).parent
WIDTH, HEADS, DEPTH, MLP, PATCH, PROMPTS, CLASSES = 16, 2, 3, 24, 4, 4, 10
STEPS, RATE, MOMENTUM = 30, 0.05, 0.9


def backbone(rng):
    """Draws the weights; kernels are [inputs, outputs]."""

    def draw(*shape):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    def dense(path, inputs, outputs):
        return {f"{path}/kernel": draw(inputs, outputs), f"{path}/bias": draw(outputs)}

    def norm(path):
        return {f"{path}/scale": 1 + draw(WIDTH), f"{path}/bias": draw(WIDTH)}

    found = {
        "patch_embed/kernel": draw(PATCH, PATCH, 3, WIDTH),
        "patch_embed/bias": draw(WIDTH),
        "cls": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 2, 2, WIDTH),
        "pos_embed_prefix": draw(1, 1, WIDTH),
        **norm("norm"),
        **dense("head", WIDTH, CLASSES),
    }
    for number in range(DEPTH):
        block = f"blocks_{number:02d}"
        found |= norm(f"{block}/norm1") | norm(f"{block}/norm2")
        for name in ("query", "key", "value", "out"):
            found |= dense(f"{block}/attention/{name}", WIDTH, WIDTH)
        found |= dense(f"{block}/mlp/fc1", WIDTH, MLP)
        found |= dense(f"{block}/mlp/fc2", MLP, WIDTH)
    return found


def linear(params, path, x):
    return x @ params[f"{path}/kernel"] + params[f"{path}/bias"]


def layer_norm(params, path, x):
    scale, bias = params[f"{path}/scale"], params[f"{path}/bias"]
    return functional.layer_norm(x, (WIDTH,), scale, bias, eps=1e-6)


def block(params, path, x):
    b, n, _ = x.shape
    y = layer_norm(params, f"{path}/norm1", x)
    query, key, value = (
        linear(params, f"{path}/attention/{name}", y)
        .reshape(b, n, HEADS, WIDTH // HEADS)
        .transpose(1, 2)
        for name in ("query", "key", "value")
    )
    weights = (query @ key.transpose(-2, -1)) / (WIDTH // HEADS) ** 0.5
    mixed = (weights.softmax(-1) @ value).transpose(1, 2).reshape(b, n, WIDTH)
    x = x + linear(params, f"{path}/attention/out", mixed)
    y = layer_norm(params, f"{path}/norm2", x)
    y = functional.gelu(linear(params, f"{path}/mlp/fc1", y), approximate="tanh")
    return x + linear(params, f"{path}/mlp/fc2", y)


def logits_of(params, prompts, images):
    kernel = params["patch_embed/kernel"].permute(3, 2, 0, 1)
    x = functional.conv2d(images, kernel, params["patch_embed/bias"], stride=PATCH)
    x = x.permute(0, 2, 3, 1) + params["pos_embed"]
    x = x.reshape(len(images), -1, WIDTH)
    cls = params["cls"] + params["pos_embed_prefix"]
    first = cls.expand(len(images), -1, -1)
    of_block = [p.expand(len(images), -1, -1) for p in prompts.split(1)]
    x = torch.cat([first, of_block[0], x], dim=1)
    for number in range(DEPTH):
        if number and len(of_block) > 1:
            x = torch.cat([x[:, :1], of_block[number], x[:, 1 + PROMPTS :]], dim=1)
        x = block(params, f"blocks_{number:02d}", x)
    return linear(params, "head", layer_norm(params, "norm", x)[:, 0])


def main():
    """Writes the file."""
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (12, 8, 8, 3), np.uint8),
        "labels": rng.integers(0, CLASSES, 12).astype(np.int32),
        "rows": np.stack([rng.permutation(12)[:6] for _ in range(STEPS)]).astype("i4"),
    }
    start = backbone(rng)
    arrays |= {f"params/{path}": value for path, value in start.items()}
    pixels = arrays["images"].transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    images, labels = torch.from_numpy(pixels), torch.from_numpy(arrays["labels"]).long()
    for kind, blocks in (("shallow", 1), ("deep", DEPTH)):
        params = {path: torch.from_numpy(value.copy()) for path, value in start.items()}
        drawn = rng.uniform(-0.5, 0.5, (blocks, PROMPTS, WIDTH)).astype(np.float32)
        arrays[f"{kind}/prompts"] = drawn
        prompts = torch.from_numpy(drawn.copy()).requires_grad_()
        head = [params[f"head/{n}"].requires_grad_() for n in ("kernel", "bias")]
        with torch.no_grad():
            arrays[f"{kind}/logits"] = logits_of(params, prompts, images).numpy()
        optimizer = torch.optim.SGD([prompts, *head], lr=RATE, momentum=MOMENTUM)
        losses = []
        for rows in arrays["rows"]:
            logits = logits_of(params, prompts, images[rows])
            loss = functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        arrays[f"{kind}/loss"] = np.array(losses, np.float32)
        arrays[f"{kind}/after/prompts"] = prompts.detach().numpy()
        for name, value in zip(("kernel", "bias"), head, strict=True):
            arrays[f"{kind}/after/head/{name}"] = value.detach().numpy()
    np.savez_compressed(HERE / "prompts.npz", **arrays)


if __name__ == "__main__":
    main()
