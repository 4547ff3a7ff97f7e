"""A check that we reconstruct what transformers does, and that it reads our exports.

    python benchmarks/check_masked_autoencoders.py write DIR
    python benchmarks/check_masked_autoencoders.py check DIR
    python benchmarks/check_masked_autoencoders.py back DIR

The first and the last part need transformers and torch, but not vit_jax; the second
needs vit_jax alone. `write` makes random models of published sizes or smaller ones as
`save_pretrained` does, with their losses and predictions for a fixed noise. `check`
loads each, compares losses and pixels, and writes it to DIR/NAME-back. `back` loads
that with `from_pretrained` and compares every tensor with those of the first model. The
exit status is 1 if a loss or a pixel is off by more than 1e-5, a name is missing, or a
bit differs.
"""

import argparse
import pathlib
import sys

TOLERANCE = 1e-5
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 8,
    "decoder_intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
MODELS = {
    "small_pixels": SMALL,
    "small_normalized": SMALL | {"norm_pix_loss": True},
    "small_grey": SMALL | {"num_channels": 1, "hidden_act": "gelu_pytorch_tanh"},
    "small_no_qkv_bias": SMALL | {"qkv_bias": False, "layer_norm_eps": 1e-6},
    "base": {},  # the published sizes at 224 pixels
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("write", "check", "back"))
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    part = {"write": write, "check": check, "back": back}[arguments.part]
    return part(arguments.directory)


def write(directory: pathlib.Path) -> int:
    """Writes DIR/NAME and DIR/NAME.npz for every model."""
    import numpy as np
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    for name, sizes in MODELS.items():
        config = ViTMAEConfig(**sizes)
        module = ViTMAEForPreTraining(config).eval()
        with torch.no_grad():
            for value in module.parameters():
                spread = value[0].numel() ** -0.5 if value.ndim == 2 else 0.1
                one = value.ndim == 1 and bool((value == 1).all())
                value.copy_(one + spread * torch.randn_like(value))
            shape = (2, config.num_channels, config.image_size, config.image_size)
            images = torch.randn(shape)
            noise = torch.rand(2, (config.image_size // config.patch_size) ** 2)
            found = module(images, noise=noise)
        module.save_pretrained(directory / name)
        np.savez(
            directory / f"{name}.npz",
            images=images.permute(0, 2, 3, 1).numpy(),
            noise=noise.numpy(),
            loss=found.loss.numpy(),
            predicted=found.logits.numpy(),
        )
        print(f"wrote {name}")
    return 0


def check(directory: pathlib.Path) -> int:
    """Prints one row per model; returns 1 if any is wrong, else 0."""
    import jax
    import numpy as np

    import vit_jax

    wrong = 0
    for name in MODELS:
        with np.load(directory / f"{name}.npz") as file:
            expected = dict(file)
        with jax.default_matmul_precision("highest"):
            model = vit_jax.load(directory / name)
            found = model.reconstruct(expected["images"], noise=expected["noise"])
        assert model.decoder is not None
        loss = abs(float(found.loss.mean()) - float(expected["loss"]))
        a, facts = model.architecture, model.decoder.facts
        pixels = _pixels(expected, a.grid, a.patch_size, facts.normalize_pixels)
        difference = float(np.abs(pixels - found.pixels).max())
        vit_jax.save(model, directory / f"{name}-back", "huggingface")
        ok = max(loss, difference) <= TOLERANCE
        wrong += not ok
        print(f"{name:20} loss {loss:.1e} pixels {difference:.1e} {'' if ok else 'NO'}")
    return int(wrong > 0)


def _pixels(expected, grid, patch_size, normalized):
    """Puts the library's predictions together, as its users do."""
    import numpy as np

    b, height, width, channels = expected["images"].shape
    (gh, gw), (ph, pw) = grid, patch_size
    values = expected["predicted"].reshape(b, gh, gw, ph, pw, channels)
    if normalized:
        true = expected["images"].reshape(b, gh, ph, gw, pw, channels)
        true = true.transpose(0, 1, 3, 2, 4, 5)
        axes = (3, 4, 5)
        variance = true.var(axis=axes, ddof=1, keepdims=True)
        mean = true.mean(axis=axes, keepdims=True)
        values = values * np.sqrt(variance + 1e-6) + mean
    return values.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, channels)


def back(directory: pathlib.Path) -> int:
    """Prints one row per model; returns 1 if an export is not the model, else 0."""
    from transformers import ViTMAEForPreTraining

    wrong = 0
    for name in MODELS:
        expected = ViTMAEForPreTraining.from_pretrained(directory / name)
        path = directory / f"{name}-back"
        found, info = ViTMAEForPreTraining.from_pretrained(
            path, output_loading_info=True
        )
        state = expected.state_dict()
        others = [n for n, x in found.state_dict().items() if not x.equal(state[n])]
        keys = expected.config.to_dict().items()
        config = found.config.to_dict()
        changed = [key for key, value in keys if config.get(key) != value]
        said = [key for key in changed if key != "_name_or_path"]
        ok = not any(info.values()) and not others and not said
        wrong += not ok
        print(f"{name:20} {'the same' if ok else f'NO: {others} {said} {info}'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
