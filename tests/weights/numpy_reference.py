"""A reference in NumPy and float64 for the models in Google's and big_vision's files.

It follows the published names and shapes and the papers (arXiv:2010.11929,
arXiv:2105.01601, arXiv:2106.04560), and uses nothing of vit_jax.
"""

import numpy as np
from scipy.ndimage import zoom

EPSILON = 1e-6


def logits(arrays, images):
    """Computes the logits [b, k] of the model in a file.

    Args:
      arrays: the file's arrays by name, without an outer prefix.
      images: [b, h, w, c] in the model's value range.
    """
    tree = nest({k: np.asarray(v, np.float64) for k, v in arrays.items()})
    mixer = "Mixer" in tree or "MixerBlock_0" in tree
    of_image = mixer_logits if mixer else vit_logits
    return np.stack([of_image(tree, np.asarray(x, np.float64)) for x in images])


def resized_positions(table, new):
    """Resizes positions [1, n, d] of a square grid (n a square, or one more) to `new`.

    This follows the published code: the class token's row stays, the others are zoomed.
    """
    side = int(np.sqrt(table.shape[1]))
    first, rest = np.split(np.asarray(table, np.float64)[0], [len(table[0]) - side**2])
    factors = (new[0] / side, new[1] / side, 1)
    grid = zoom(rest.reshape(side, side, -1), factors, order=1)
    return np.concatenate([first, grid.reshape(new[0] * new[1], -1)])[None]


def nest(arrays):
    tree = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def vit_logits(tree, image):
    if "conv_root" in tree:
        image = resnet(tree, image)
    x, grid = patches(tree["embedding"], image)
    encoder, cls = tree["Transformer"], tree.get("cls")
    table = tree.get("pos_embedding", encoder.get("pos_embedding"))
    if table is None and "posembed_input" in encoder:
        table = encoder["posembed_input"]["pos_embedding"]
    table = sincos(*grid, x.shape[-1]) if table is None else table[0]
    if len(table) == len(x) + 1:  # the original paper: class token first
        x = np.concatenate([cls[0], x]) + table
    else:  # big_vision: positions first
        x = x + table
        if cls is not None:
            x = np.concatenate([cls[0], x])
    for block in blocks(encoder, "encoderblock"):
        norm1, norm2 = of_kind(block, "LayerNorm")
        (heads,), (mlp_block,) = of_kind(block, "Multi"), of_kind(block, "Mlp")
        y = layer_norm(norm1, x)
        x = x + attention(heads, y, y)
        x = x + mlp(mlp_block, layer_norm(norm2, x))
    x = layer_norm(encoder["encoder_norm"], x)
    map_head = tree.get("MAPHead_0", tree if "probe" in tree else None)
    if map_head is not None:
        (heads,), (norm,), (mlp_block,) = (
            of_kind(map_head, kind) for kind in ("Multi", "LayerNorm", "Mlp")
        )
        x = attention(heads, map_head["probe"][0], x)
        x = (x + mlp(mlp_block, layer_norm(norm, x)))[0]
    else:
        x = x.mean(axis=0) if cls is None else x[0]
    if "pre_logits" in tree:
        x = np.tanh(dense(tree["pre_logits"], x))
    return dense(tree["head"], x) if "head" in tree else x


def mixer_logits(tree, image):
    old = tree.get("Mixer")
    x, _ = patches(tree["embedding" if old else "stem"], image)
    for block in blocks(old, "encoderblock") if old else blocks(tree, "MixerBlock"):
        norm1, norm2 = of_kind(block, "LayerNorm")
        tokens, channels = (
            old_mixing(block[f"{kind}_mixing_phase_0"])
            if old
            else block[f"{kind}_mixing"]
            for kind in ("token", "channel")
        )
        x = x + mlp(tokens, layer_norm(norm1, x).T).T
        x = x + mlp(channels, layer_norm(norm2, x))
    norm = old["encoder_norm"] if old else tree["pre_head_layer_norm"]
    return dense(tree["head"], layer_norm(norm, x).mean(axis=0))


def old_mixing(params):
    return {
        f"Dense_{i}": {
            "kernel": params[f"kernel{i + 1}"].squeeze(),
            "bias": params[f"bias{i + 1}"].squeeze(),
        }
        for i in range(2)
    }


def blocks(tree, kind):
    """Lists the blocks in order; slices them if they are stacked."""
    if kind in tree:
        stack = tree[kind]
        return [cut(stack, i) for i in range(len(stack["LayerNorm_0"]["scale"]))]
    return [tree[f"{kind}_{i}"] for i in range(sum(kind in name for name in tree))]


def cut(tree, i):
    return {k: cut(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def of_kind(tree, kind):
    """Lists the layers of one kind in the order of their numbers, in any numbering."""
    names = [name for name in tree if name.startswith(kind)]
    return [tree[n] for n in sorted(names, key=lambda name: int(name.split("_")[-1]))]


def patches(params, image):
    """Embeds non-overlapping patches as tokens [gh·gw, d]."""
    ph, pw, c, d = params["kernel"].shape
    gh, gw = image.shape[0] // ph, image.shape[1] // pw
    cut_up = image.reshape(gh, ph, gw, pw, c).transpose(0, 2, 1, 3, 4)
    tokens = cut_up.reshape(gh * gw, -1) @ params["kernel"].reshape(-1, d)
    return tokens + params["bias"], (gh, gw)


def sincos(height, width, d):
    omega = 10000.0 ** (-np.arange(d // 4) / (d // 4 - 1))
    rows = [
        [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
        for y in range(height)
        for x in range(width)
    ]
    return np.array(rows).reshape(height * width, d)


def attention(params, x, source):
    query, key, value = (
        np.einsum("nd,dhk->hnk", tokens, params[name]["kernel"])
        + params[name]["bias"][:, None]
        for name, tokens in (("query", x), ("key", source), ("value", source))
    )
    scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    out = params["out"]
    return np.einsum("hnk,hkd->nd", weights @ value, out["kernel"]) + out["bias"]


def mlp(params, x):
    x = dense(params["Dense_0"], x)
    x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return dense(params["Dense_1"], x)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * params["scale"] + params["bias"]


def resnet(tree, x):
    x = convolve(tree["conv_root"], x, stride=2)
    x = pool(np.maximum(group_norm(tree["gn_root"], x), 0))
    for i in range(1, 1 + sum(name.startswith("block") for name in tree)):
        stage = tree[f"block{i}"]
        for j in range(1, 1 + len(stage)):
            x = bottleneck(stage[f"unit{j}"], x, stride=2 if i > 1 and j == 1 else 1)
    return x


def bottleneck(unit, x, stride):
    def normed(number, x, stride=1):
        y = convolve(unit[f"conv{number}"], x, stride)
        return group_norm(unit[f"gn{number}"], y)

    shortcut = normed("_proj", x, stride) if "conv_proj" in unit else x
    x = np.maximum(normed(1, x), 0)
    x = np.maximum(normed(2, x, stride), 0)
    return np.maximum(shortcut + normed(3, x), 0)


def convolve(params, x, stride):
    """Convolves with SAME padding and weights standardised per output channel."""
    kernel = params["kernel"]
    mean, std = kernel.mean(axis=(0, 1, 2)), kernel.std(axis=(0, 1, 2))
    kernel = (kernel - mean) / (std + 1e-5)
    return np.einsum("yxcij,ijco->yxo", windows(x, kernel.shape[:2], stride, 0), kernel)


def pool(x):
    return windows(x, (3, 3), 2, -np.inf).max(axis=(3, 4))


def windows(x, size, stride, fill):
    """Cuts windows [oh, ow, c, kh, kw]; the smaller half of the padding comes first."""
    padding = []
    for length, kernel in zip(x.shape, size, strict=False):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        padding.append((total // 2, total - total // 2))
    x = np.pad(x, [*padding, (0, 0)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, size, (0, 1))[::stride, ::stride]


def group_norm(params, x):
    h, w, c = x.shape
    groups = x.reshape(h, w, 32, c // 32)
    mean = groups.mean(axis=(0, 1, 3), keepdims=True)
    variance = groups.var(axis=(0, 1, 3), keepdims=True)
    normed = ((groups - mean) / np.sqrt(variance + EPSILON)).reshape(h, w, c)
    return normed * params["scale"].reshape(c) + params["bias"].reshape(c)
