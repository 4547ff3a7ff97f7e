"""Writes mae_huggingface.npz, mae_meta.pth and mae_meta.npz: files with decoders.

    pip install torch==2.14.1 transformers==5.24.0 timm==1.0.31 numpy
    python tests/golden/make_mae_files.py

The first is a small ViTMAEForPreTraining with every tensor drawn from a normal
distribution, positions too. It holds "file/NAME", the arrays that `save_pretrained`
writes; "config", its config.json; "memory", the names in memory in the order of the
sorted names in the file; "images" [b, h, w, c], "noise" [b, n], "mask" [b, n], and for
both kinds of target (KIND is "pixels" or "normalized") "KIND/loss" and "logits".

The second is a file with the names of facebookresearch/mae, whose module is written
here anew from the paper and from timm's blocks, on a grid that is not a square, with
the fixed positions and everything else random. The third has its "images", "noise",
"loss" (the target is plain pixels) and "predicted".
"""

import functools
import json
import pathlib
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
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
    "decoder_intermediate_size": 40,
    "layer_norm_eps": 1e-6,
}
IMAGE, PATCH = (8, 12), (4, 2)


def channels_first(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def huggingface():
    """Writes the first file."""
    rng = np.random.default_rng(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, norm_pix_loss=True)).eval()
    for value in model.parameters():
        value.data = torch.from_numpy(rng.normal(0, 0.3, value.shape).astype("float32"))
    images = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    noise = rng.random((3, 16)).astype(np.float32)
    arrays = {"images": images, "noise": noise}
    for kind in ("pixels", "normalized"):
        model.config.norm_pix_loss = kind == "normalized"
        with torch.no_grad():
            out = model(channels_first(images), noise=torch.from_numpy(noise))
        arrays[f"{kind}/loss"] = out.loss.numpy()
    arrays |= {"logits": out.logits.numpy(), "mask": out.mask.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        saved = load_file(pathlib.Path(folder) / "model.safetensors")
    memory = {name: x.numpy() for name, x in model.state_dict().items()}
    names = []
    for name in sorted(saved):
        same = [n for n, x in memory.items() if np.array_equal(x, saved[name])]
        assert len(same) == 1
        names += same
    arrays |= {f"file/{name}": x for name, x in saved.items()}
    np.savez_compressed(
        HERE / "mae_huggingface.npz",
        allow_pickle=False,
        config=json.dumps(config),
        memory=np.array(names),
        **arrays,
    )


def sincos(grid, width):
    """Returns fixed positions [1, 1 + n, width], zeros first."""
    frequencies = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    rows = [[0.0] * width]
    for y in range(grid[0]):
        for x in range(grid[1]):
            parts = [f(p * frequencies) for p in (x, y) for f in (np.sin, np.cos)]
            rows.append(np.concatenate(parts))
    return torch.tensor(np.array(rows)[None], dtype=torch.float32)


class Masked(torch.nn.Module):
    """A masked autoencoder with the published names."""

    def __init__(self, width=32, heads=4, decoder_width=32, decoder_heads=16):
        super().__init__()
        grid = IMAGE[0] // PATCH[0], IMAGE[1] // PATCH[1]
        norm, parameter = torch.nn.LayerNorm, torch.nn.Parameter

        def block(width, heads):
            how = {"qkv_bias": True, "norm_layer": functools.partial(norm, eps=1e-6)}
            return Block(width, heads, **how)

        self.patch_embed = PatchEmbed(IMAGE, PATCH, 3, width)
        self.cls_token = parameter(torch.zeros(1, 1, width))
        self.pos_embed = parameter(sincos(grid, width), requires_grad=False)
        self.blocks = torch.nn.ModuleList(block(width, heads) for _ in range(2))
        self.norm = norm(width, 1e-6)
        self.decoder_embed = torch.nn.Linear(width, decoder_width)
        self.mask_token = parameter(torch.zeros(1, 1, decoder_width))
        fixed = sincos(grid, decoder_width)
        self.decoder_pos_embed = parameter(fixed, requires_grad=False)
        self.decoder_blocks = torch.nn.ModuleList([block(decoder_width, decoder_heads)])
        self.decoder_norm = norm(decoder_width, 1e-6)
        values = PATCH[0] * PATCH[1] * 3
        self.decoder_pred = torch.nn.Linear(decoder_width, values)

    def forward(self, images, noise, ratio=0.75):
        """Returns the loss over the masked patches, and the prediction for all."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        b, n, width = x.shape
        order = noise.argsort(dim=1)
        kept = order[:, : int(n * (1 - ratio))]
        x = x.gather(1, kept[..., None].expand(-1, -1, width))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        full = self.mask_token.repeat(b, n, 1)
        full = full.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])
        x = torch.cat([x[:, :1], full], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        (ph, pw), (h, w) = PATCH, images.shape[2:]
        cut = images.reshape(b, 3, h // ph, ph, w // pw, pw)
        target = cut.permute(0, 2, 4, 3, 5, 1).reshape(b, n, -1)
        hidden = torch.ones(b, n).scatter(1, kept, 0.0)
        error = ((predicted - target) ** 2).mean(-1)
        return (error * hidden).sum() / hidden.sum(), predicted


def meta():
    """Writes the other two files."""
    rng = np.random.default_rng(1)
    model = Masked().eval()
    for value in model.parameters():
        if value.requires_grad:
            drawn = rng.normal(0, 0.3, value.shape)
            value.data = torch.from_numpy(drawn.astype("float32"))
    images = rng.normal(size=(2, *IMAGE, 3)).astype(np.float32)
    noise = rng.random((2, 12)).astype(np.float32)
    with torch.no_grad():
        loss, predicted = model(channels_first(images), torch.from_numpy(noise))
    state = {name: value.detach() for name, value in model.state_dict().items()}
    torch.save({"model": state}, HERE / "mae_meta.pth")
    np.savez_compressed(
        HERE / "mae_meta.npz",
        images=images,
        noise=noise,
        loss=loss.numpy(),
        predicted=predicted.numpy(),
    )


if __name__ == "__main__":
    huggingface()
    meta()
