"""Writes huggingface/: small models of DINOv2, SigLIP and I-JEPA, and their outputs.

    pip install torch==2.14.1 timm==1.0.31 transformers==5.24.0 safetensors==0.8.0 numpy
    python tests/golden/make_hf_families.py

Tests read only the files. Each directory is what transformers writes for a model of
random weights (random_weights.py), with state_dict.json, the names in memory, and
reference.npz: "images" [b, h, w, c] and what the model makes of them in float32,
"tokens" [b, n, d] after the last norm and "logits" [b, k], or the pooled features of a
model without a head. resized.npz is of a rectangle of another size.
"""

import json

import numpy as np
import torch
import transformers
from make_timm_hf import HERE, LABELS, as_torch, emptied, fill, random_images
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTImageProcessor,
)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
CLASSES = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: index for index, label in enumerate(LABELS)},
}
DINOV2 = SIZES | {"mlp_ratio": 2}
VIT = SIZES | {"intermediate_size": 24}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "vocab_size": 12,
    "max_position_embeddings": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BOTH = {"vision_config": VIT, "text_config": TEXT}
REGISTERS = {"num_register_tokens": 3}
MODELS = {
    "dinov2": (Dinov2Model, Dinov2Config(**DINOV2)),
    "dinov2_classifier": (
        Dinov2ForImageClassification,
        Dinov2Config(**DINOV2, **CLASSES, qkv_bias=False),
    ),
    "dinov2_registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**DINOV2, **REGISTERS),
    ),
    "dinov2_registers_classifier": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(**DINOV2, **REGISTERS, **CLASSES),
    ),
    "siglip_vision": (SiglipVisionModel, SiglipVisionConfig(**VIT)),
    "siglip": (SiglipModel, SiglipConfig(**BOTH)),
    "siglip_classifier": (
        SiglipForImageClassification,
        SiglipConfig(**BOTH, **CLASSES),
    ),
    "ijepa": (IJepaModel, IJepaConfig(**VIT)),
    "ijepa_classifier": (IJepaForImageClassification, IJepaConfig(**VIT, **CLASSES)),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "dinov2": BitImageProcessor(
        size={"shortest_edge": 18},
        crop_size={"height": 16, "width": 16},
        resample=3,
        **IMAGENET,
    ),
    "siglip": SiglipImageProcessor(
        size={"height": 16, "width": 16},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=3,
    ),
    "ijepa": ViTImageProcessor(size={"height": 16, "width": 16}),
}


def main():
    for name, (model_class, config) in MODELS.items():
        model = model_class(config).eval()
        fill(model)
        directory = emptied("huggingface", name)
        model.save_pretrained(directory)
        PROCESSORS[name.partition("_")[0]].save_pretrained(directory)
        names = json.dumps([*model.state_dict()])
        (directory / "state_dict.json").write_text(names)
        for file, size in (("reference", (16, 16)), ("resized", (12, 24))):
            images = random_images(size, 3)
            found = outputs(model, as_torch(images), size != (16, 16))
            arrays = {key: value.numpy() for key, value in found.items()}
            np.savez_compressed(directory / f"{file}.npz", images=images, **arrays)
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{name}: {size} bytes")
    print(f"{torch.__version__=} {transformers.__version__=} in {HERE}")


def outputs(model, images, resized):
    """Computes tokens and logits, or tokens and pooled features."""
    dinov2 = "Dinov2" in type(model).__name__
    options = {} if dinov2 else {"interpolate_pos_encoding": resized}
    encoder = getattr(model, "vision_model", getattr(model, model.base_model_prefix, 0))
    found = (encoder or model)(images, **options)
    tokens = found.last_hidden_state
    pooled = tokens.mean(1) if found.pooler_output is None else found.pooler_output
    if hasattr(model, "classifier"):
        pooled = model(images, **options).logits
    return {"tokens": tokens, "logits": pooled}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    main()
