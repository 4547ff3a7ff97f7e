"""Writes mae.npz: Hugging Face's masked autoencoder, its losses and gradients.

    pip install torch==2.14.1 transformers==5.24.0 numpy
    python tests/golden/make_mae_references.py

A small ViTMAEForPreTraining of random weights, in float32. The arrays are "images"
[b, h, w, c], "noise" [b, n], "params/PATH" in this project's names, and for both kinds
of target (KIND is "pixels" or "normalized") "KIND/loss", "KIND/predicted" [b, n, v] and
"KIND/grads/PATH".
"""

import pathlib

import numpy as np
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

HERE = pathlib.Path(__file__).parent
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 48,
    "layer_norm_eps": 1e-6,
    "mask_ratio": 0.75,
}
TOP = {
    "vit.embeddings.cls_token": "cls",
    "vit.embeddings.patch_embeddings.projection": "patch_embed",
    "vit.layernorm": "norm",
    "decoder.mask_token": "decoder/mask_token",
    "decoder.decoder_embed": "decoder/embed",
    "decoder.decoder_norm": "decoder/norm",
    "decoder.decoder_pred": "decoder/pred",
}
BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.q_proj": "attention/query",
    "attention.k_proj": "attention/key",
    "attention.v_proj": "attention/value",
    "attention.o_proj": "attention/out",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
BLOCKS = {"vit.layers.": "blocks_", "decoder.decoder_layers.": "decoder/blocks_"}


def converted(name, value):
    """Returns this project's path and layout of a parameter; None for fixed ones."""
    if name.endswith(("position_embeddings", "decoder_pos_embed")):
        return None
    if name in TOP:
        return TOP[name], value
    module, _, kind = name.rpartition(".")
    ours = TOP.get(module)
    for prefix, block in BLOCKS.items():
        if module.startswith(prefix):
            number, _, inner = module.removeprefix(prefix).partition(".")
            ours = f"{block}{int(number):02d}/{BLOCK[inner]}"
    if kind == "bias":
        return f"{ours}/bias", value
    if value.ndim == 1:
        return f"{ours}/scale", value
    axes = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
    return f"{ours}/kernel", value.transpose(axes)


def positions(width, side):
    """Returns MAE's fixed positions [1, 1 + side², width]: 0 for the class token."""
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    x = np.outer(np.tile(np.arange(side), side), frequencies)
    y = np.outer(np.repeat(np.arange(side), side), frequencies)
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return torch.from_numpy(np.pad(table, ((1, 0), (0, 0)))[None].astype(np.float32))


def main():
    """Writes the file."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    noise = rng.random((3, 16)).astype(np.float32)
    arrays = {"images": images, "noise": noise}
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                scale = name.endswith("weight") and value.ndim == 1
                value.copy_(torch.randn_like(value) * 0.2 + scale)
        # This version of the library begins with positions of 0.
        side = SIZES["image_size"] // SIZES["patch_size"]
        for table in (
            model.vit.embeddings.position_embeddings,
            model.decoder.decoder_pos_embed,
        ):
            table.copy_(positions(table.shape[2], side))
    for name, value in model.named_parameters():
        if pair := converted(name, value.detach().numpy()):
            arrays[f"params/{pair[0]}"] = pair[1]
    for kind in ("pixels", "normalized"):
        model.config.norm_pix_loss = kind == "normalized"
        model.zero_grad()
        out = model(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            noise=torch.from_numpy(noise),
        )
        out.loss.backward()
        arrays[f"{kind}/loss"] = out.loss.detach().numpy()
        arrays[f"{kind}/predicted"] = out.logits.detach().numpy()
        for name, value in model.named_parameters():
            if value.grad is not None and (pair := converted(name, value.grad.numpy())):
                arrays[f"{kind}/grads/{pair[0]}"] = pair[1]
    np.savez_compressed(HERE / "mae.npz", **arrays)


if __name__ == "__main__":
    main()
