"""Writes timm/ and huggingface/: small models as these libraries save and compute them.

    pip install torch==2.14.1 timm==1.0.31 transformers==5.23.0 safetensors==0.8.0 numpy
    python tests/golden/make_timm_hf.py

Tests read only the files. Each directory is what the library writes for a model of
random weights (random_weights.py), and reference.npz: "images" [b, h, w, c] and what
the model makes of them in float32, "logits" [b, k]; resized.npz is of images of another
size. Weights too large to keep are drawn again from shapes.json, {name: shape}.
"""

import json
import pathlib
import shutil

import numpy as np
import timm
import torch
import transformers
from random_weights import random_weight
from timm.models._hub import save_for_hf
from timm.models.vision_transformer_hybrid import (
    _create_vision_transformer_hybrid,
    _resnetv2,
)
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

HERE = pathlib.Path(__file__).parent
CLASSES = 5
LABELS = ["abacus", "bagel", "canoe", "daisy", "easel"]

VIT = "vit_tiny_patch16_224"
SMALL = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": CLASSES,
}
GAP = {"global_pool": "avg"}
TIMM = {
    "vit": (VIT, {}),
    "no_embed_class": (VIT, {"no_embed_class": True}),
    "registers": (VIT, {"reg_tokens": 2}),
    "registers_no_embed_class": (VIT, {"reg_tokens": 2, "no_embed_class": True}),
    "registers_gap": (VIT, {"reg_tokens": 2, "class_token": False} | GAP),
    "gap_fc_norm": (VIT, GAP),
    "gap_norm_before": (VIT, {"fc_norm": False} | GAP),
    "gap_no_class_token": (VIT, {"fc_norm": False, "class_token": False} | GAP),
    "map": (VIT, {"global_pool": "map", "class_token": False}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "no_head": (VIT, {"num_classes": 0}),
    "gelu_tanh_grey": (VIT, {"act_layer": "gelu_tanh", "in_chans": 1}),
    "rectangular": (VIT, {"img_size": (8, 24), "patch_size": (4, 8)}),
    "no_qkv_bias": (VIT, {"qkv_bias": False}),
    "hybrid_root": ("vit_tiny_r_s16_p8_224", {"img_size": 32, "patch_size": 4}),
}
RESIZED = (12, 24)  # of "vit", by timm's antialiased bicubic

HF_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: index for index, label in enumerate(LABELS)},
}
HUGGINGFACE = {
    "vit": (ViTForImageClassification, ViTConfig, {}),
    "vit_sharded": (ViTForImageClassification, ViTConfig, {"layer_norm_eps": 1e-6}),
    "vit_rectangular": (
        ViTForImageClassification,
        ViTConfig,
        {"image_size": (8, 16), "hidden_act": "gelu_new", "num_channels": 1},
    ),
    "vit_no_qkv_bias": (ViTForImageClassification, ViTConfig, {"qkv_bias": False}),
    "vit_model": (ViTModel, ViTConfig, {"pooler_output_size": 8}),
    "deit": (DeiTForImageClassification, DeiTConfig, {}),
    "deit_teacher": (DeiTForImageClassificationWithTeacher, DeiTConfig, {}),
    "deit_model": (DeiTModel, DeiTConfig, {}),
}


def main():
    for name, (architecture, options) in TIMM.items():
        model = timm.create_model(architecture, **SMALL | options)
        directory = emptied("timm", name)
        fill(model)
        save_for_hf(
            model,
            directory,
            model_config={"label_names": LABELS} if name == "vit" else {},
            safe_serialization=True,
        )
        images = random_images(model.patch_embed.img_size, model.in_chans)
        save(directory, images, model(as_torch(images)))
    timm_resized()
    timm_hybrid()
    for name, (model_class, config_class, options) in HUGGINGFACE.items():
        huggingface(name, model_class, config_class(**HF_SMALL | options))
    files = [*HERE.glob("timm/*/*"), *HERE.glob("huggingface/*/*")]
    total = sum(file.stat().st_size for file in files)
    print(
        f"{len(files)} files, {total} bytes; {torch.__version__=} "
        f"{timm.__version__=} {transformers.__version__=}"
    )


def timm_resized():
    """The model "vit" with its positions brought to another grid by timm."""
    model = timm.create_model(VIT, **SMALL)
    fill(model)
    model.set_input_size(img_size=RESIZED)
    images = random_images(RESIZED, 3)
    save(HERE / "timm" / "vit", images, model(as_torch(images)), "resized.npz")


def timm_hybrid():
    """A trunk of two stages, one with a unit that has no projection."""
    model = _create_vision_transformer_hybrid(
        "vit_small_r26_s32_224",
        backbone=_resnetv2((2, 1)),
        **SMALL | {"img_size": 32, "patch_size": 2},
    )
    fill(model)
    directory = emptied("timm", "hybrid_seeded")
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    config = {
        "architecture": "vit_small_r26_s32_224",
        "num_classes": CLASSES,
        "global_pool": "token",
        "model_args": {"num_heads": SMALL["num_heads"]},
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "shapes.json").write_text(json.dumps(shapes) + "\n")
    images = random_images((32, 32), 3)
    save(directory, images, model(as_torch(images)))


def huggingface(name, model_class, config):
    model = model_class(config).eval()
    fill(model)
    directory = emptied("huggingface", name)
    sharded = {"max_shard_size": "8KB"} if name == "vit_sharded" else {}
    model.save_pretrained(directory, **sharded)
    size = config.image_size
    size = tuple(size) if isinstance(size, list | tuple) else (size, size)
    processor = ViTImageProcessor(size={"height": size[0], "width": size[1]})
    if "deit" in name:
        processor = DeiTImageProcessor(
            size={"height": 20, "width": 20},
            crop_size={"height": 16, "width": 16},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    processor.save_pretrained(directory)

    def run(size, **options):
        images = random_images(size, config.num_channels)
        output = model(as_torch(images), **options)
        found = getattr(output, "logits", None)
        return images, output.pooler_output if found is None else found

    save(directory, *run(size))
    if name == "vit":
        # The names of the module's own parameters, which are not those of the file.
        (directory / "state_dict.json").write_text(json.dumps([*model.state_dict()]))
        resized = run((24, 12), interpolate_pos_encoding=True)
        save(directory, *resized, "resized.npz")


def emptied(*parts) -> pathlib.Path:
    directory = HERE.joinpath(*parts)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def fill(model: torch.nn.Module):
    model.eval()
    weights = {
        name: torch.from_numpy(random_weight(name, tuple(x.shape)))
        for name, x in model.state_dict().items()
    }
    model.load_state_dict(weights)


def random_images(size, channels) -> np.ndarray:
    return random_weight(f"images {size}", (2, *size, channels))


def as_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def save(directory, images, logits, file="reference.npz"):
    np.savez_compressed(directory / file, images=images, logits=logits.numpy())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    main()
