"""The reason for a refusal is the true one."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.errors import UserError
from vit_jax.weights.loading import load_weights

ONE = np.ones((2, 2), np.float32)
# Kind of model → (some names of its tensors, words of the reason).
OTHERS = {
    "ConvNeXt": (
        ["stages.0.blocks.0.conv_dw.weight", "stages.0.blocks.0.mlp.fc1.weight"],
        "a ConvNeXt, EfficientNet or another model with depthwise",
    ),
    "LeViT": (
        [f"stages.{i}.blocks.0.attn.qkv.linear.weight" for i in range(3)],
        "names are not those of a known format",
    ),
    "ConvNeXt of torchvision": (
        ["features.1.0.block.0.weight", "classifier.2.weight"],
        "a ConvNeXt",
    ),
    "EfficientNet": (
        ["blocks.0.0.conv_dw.weight", "blocks.0.0.bn1.running_mean"],
        "EfficientNet",
    ),
    "ResNet": (["conv1.weight", "layer1.0.conv1.weight"], "a convolutional network"),
    "Swin of torchvision": (
        ["features.1.0.attn.relative_position_bias_table"],
        "a Swin Transformer",
    ),
    "Swin of timm": (
        [
            "patch_embed.proj.weight",
            "layers.0.blocks.0.attn.qkv.weight",
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ],
        "stages of several resolutions",
    ),
    "Swin of Hugging Face": (
        [
            "swin.embeddings.patch_embeddings.projection.weight",
            "swin.encoder.layers.0.blocks.0.attention.self.query.weight",
        ],
        "stages of several resolutions",
    ),
    "CLIP": (
        ["visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"],
        "a CLIP or SigLIP model in a layout",
    ),
    "CLIP of Hugging Face": (
        ["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
        "a CLIP or SigLIP model",
    ),
    "a text tower": (
        ["text_model.embeddings.token_embedding.weight"],
        "a text encoder or language model",
    ),
    "vit-pytorch": (["to_patch_embedding.1.weight"], "the package vit-pytorch"),
    "LoRA": (
        [
            "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight"
        ],
        "a LoRA adapter",
    ),
    "LoRA in a model": (
        [
            "patch_embed.proj.weight",
            "blocks.0.attn.qkv.base_layer.weight",
            "blocks.0.attn.qkv.lora_A.default.weight",
        ],
        "a LoRA adapter",
    ),
    "quantized": (
        [
            "patch_embed.proj.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.qkv.SCB",
        ],
        "quantized weights",
    ),
    "only an optimizer": (["optimizer.exp_avg.a", "opt.mu.b"], "the state of an optim"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_file_holds_instead_is_said(kind, tmp_path):
    names, words = OTHERS[kind]
    save_file(dict.fromkeys(names, ONE), tmp_path / "x.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "x.safetensors")
    message = str(error.value)
    assert words in message and "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_weights_of_whole_numbers_are_called_quantized(kind, golden, tmp_path):
    arrays = {
        name: array.astype(kind) if array.ndim == 2 else array
        for name, array in golden("timm/vit").arrays.items()
    }
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds quantized weights") as error:
        load_weights(tmp_path / "x.safetensors")
    assert np.dtype(kind).name in str(error.value)
    assert "before quantization" in str(error.value)


def test_weights_of_eight_bits_are_named(tmp_path):
    weights = {"patch_embed.proj.weight": ONE.astype(ml_dtypes.float8_e4m3fn)}
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"of type F8_E4M3\. Convert it to one of F64,"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, "the state of an optimizer and"),
        (
            {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
            "the state of an",
        ),
        ({"config": {"depth": 3}}, r"a dict without tensors \('config'\)"),
    ],
)
def test_a_checkpoint_without_weights(saved, words, write_torch, tmp_path):
    write_torch(tmp_path / "x.pth", saved)
    with pytest.raises(UserError, match=f"it holds {words}"):
        load_weights(tmp_path / "x.pth")


def test_a_video_model_is_refused_for_its_patches(golden, tmp_path):
    arrays = dict(golden("timm/vit").arrays)
    arrays["patch_embed.proj.weight"] = np.ones((16, 3, 2, 4, 4), np.float32)
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="patches that span several frames"):
        load_weights(tmp_path / "x.safetensors", num_heads=4)
