"""A reference in NumPy and float64 for Vision Transformers of PyTorch's libraries.

Each function follows the library's own forward pass (torchvision 0.29, mmpretrain 1.2)
and reads the file's tensors by the library's names. It uses nothing of vit_jax.
"""

import numpy as np
from scipy.special import erf


def torchvision_logits(tensors, images, heads):
    """Computes logits [b, k] as torchvision.models.VisionTransformer does.

    Args:
      tensors: the file's arrays by name.
      images: [b, h, w, c], normalised.
      heads: number of attention heads.
    """
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    x = embed(t["conv_proj.weight"], t["conv_proj.bias"], images)
    cls = np.broadcast_to(t["class_token"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([cls, x], axis=1) + t["encoder.pos_embedding"]
    i = 0
    while f"encoder.layers.encoder_layer_{i}.ln_1.weight" in t:
        layer = f"encoder.layers.encoder_layer_{i}"
        y = norm(t, f"{layer}.ln_1", x)
        qkv = y @ t[f"{layer}.self_attention.in_proj_weight"].T
        y = attend(qkv + t[f"{layer}.self_attention.in_proj_bias"], heads)
        x = x + linear(t, f"{layer}.self_attention.out_proj", y)
        y = gelu(linear(t, f"{layer}.mlp.0", norm(t, f"{layer}.ln_2", x)))
        x = x + linear(t, f"{layer}.mlp.3", y)
        i += 1
    x = norm(t, "encoder.ln", x)[:, 0]
    if "heads.pre_logits.weight" in t:
        x = np.tanh(linear(t, "heads.pre_logits", x))
    return linear(t, "heads.head", x) if "heads.head.weight" in t else x


def mmpretrain_logits(tensors, images, heads):
    """Computes logits [b, k] as mmpretrain's ImageClassifier does; see above."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    p = "backbone"
    stem = f"{p}.patch_embed.projection"
    x = embed(t[f"{stem}.weight"], t[f"{stem}.bias"], images)
    special = [
        np.broadcast_to(t[name], (len(x), 1, x.shape[-1]))
        for name in (f"{p}.cls_token", f"{p}.dist_token")
        if name in t
    ]
    position = t[f"{p}.pos_embed"]
    if position.shape[1] == x.shape[1]:  # DeiT3
        x = np.concatenate([*special, x + position], axis=1)
    else:
        x = np.concatenate([*special, x], axis=1) + position
    i = 0
    while f"{p}.layers.{i}.ln1.weight" in t:
        layer = f"{p}.layers.{i}"
        y = linear(t, f"{layer}.attn.qkv", norm(t, f"{layer}.ln1", x))
        y = linear(t, f"{layer}.attn.proj", attend(y, heads))
        x = x + y * t.get(f"{layer}.attn.gamma1.weight", 1.0)
        y = norm(t, f"{layer}.ln2", x)
        y = gelu(linear(t, f"{layer}.ffn.layers.0.0", y))
        y = linear(t, f"{layer}.ffn.layers.1", y)
        x = x + y * t.get(f"{layer}.ffn.gamma2.weight", 1.0)
        i += 1
    if f"{p}.ln2.weight" in t:  # the mean of the patches
        x = norm(t, f"{p}.ln2", x[:, len(special) :].mean(axis=1))
        return linear(t, "head.layers.head", x)
    x = norm(t, f"{p}.ln1", x)
    first = x[:, 0]
    if "head.layers.pre_logits.weight" in t:
        first = np.tanh(linear(t, "head.layers.pre_logits", first))
    logits = linear(t, "head.layers.head", first)
    if "head.layers.head_dist.weight" in t:
        logits = (logits + linear(t, "head.layers.head_dist", x[:, 1])) / 2
    return logits


def embed(kernel, bias, images):
    """Convolves with stride = kernel: tokens [b, gh·gw, d], row by row."""
    d, _, ph, pw = kernel.shape
    b, h, w, c = images.shape
    cut = np.asarray(images, np.float64).reshape(b, h // ph, ph, w // pw, pw, c)
    tokens = np.einsum("byixjc,dcij->byxd", cut, kernel)
    return tokens.reshape(b, -1, d) + bias


def attend(qkv, heads):
    b, n, d = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.reshape(b, n, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(d // heads)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(b, n, d)


def linear(t, name, x):
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0.0)


def norm(t, name, x):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + 1e-6)
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2
