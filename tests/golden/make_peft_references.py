"""Writes peft/: adapters that PEFT made, the models below them, and their logits.

    pip install peft==0.21.2 torch==2.14.1 timm==1.0.31 transformers==5.24.0
    python tests/golden/make_peft_references.py
    pip install "transformers==4.57.6"
    python tests/golden/make_peft_references.py

Modules of transformers have other names in its versions 4 and 5, so the adapters of
version 4 are made by the second call, on the models of the first. All weights are
random. For each adapter logits.npz has its logits [2, classes] on `images()`.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from random_weights import random_weight

FOLDER = pathlib.Path(__file__).with_name("peft")
VERSION = int(transformers.__version__.partition(".")[0])
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
DINOV2 = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
# Base → class in transformers, its config, and the fields of that.
BASES = {
    "vit": ("ViTForImageClassification", "ViTConfig", SIZES),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", SIZES),
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        DINOV2 | {"mlp_ratio": 2},
    ),
}
OLD = {
    "query": "query",
    "key": "key",
    "value": "value",
    "out": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
NEW = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
NAMES = {4: OLD, 5: NEW}[VERSION]
ALL = [*NAMES.values()]
HEAD = {"modules_to_save": ["classifier"]}
# Adapter → base, and the fields of LoraConfig.
BOTH = {
    "vit_query_value": (
        "vit",
        {"target_modules": [NAMES["query"], NAMES["value"]], "lora_alpha": 4} | HEAD,
    ),
    "vit_patterns": (
        "vit",
        {
            "target_modules": ALL,
            "use_rslora": True,
            "lora_alpha": 6,
            "rank_pattern": {NAMES["fc1"]: 3, r".*\.0\..*" + NAMES["value"]: 1},
            "alpha_pattern": {NAMES["fc1"]: 5},
            "bias": "lora_only",
        },
    ),
}
ONLY_5 = {
    "vit_layers": (
        "vit",
        {
            "target_modules": ["q_proj", "mlp.fc2"],
            "layers_to_transform": [1],
            "bias": "all",
        }
        | HEAD,
    ),
    "vit_regex": (
        "vit",
        {
            "target_modules": r"vit\.layers\.\d+\.(attention\..*|mlp\.fc1)",
            "exclude_modules": ["k_proj", "vit.layers.0.mlp.fc1"],
            "modules_to_save": ["classifier", "vit.layernorm"],
        },
    ),
    "vit_dora": ("vit", {"target_modules": ["q_proj", "mlp.fc1"], "use_dora": True}),
    "vit_beside": (
        "vit",
        {
            "target_modules": ["v_proj", "mlp.fc1", "projection", "classifier"],
            "lora_bias": True,
        },
    ),
    "deit_query": (
        "deit",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["cls_classifier", "distillation_classifier"],
        },
    ),
    "dinov2_all": ("dinov2", {"target_modules": ALL} | HEAD),
    "timm_all": (
        "timm",
        {"target_modules": ["qkv", "attn.proj", "fc1", "fc2"]}
        | {"modules_to_save": ["head"]},
    ),
}


def images():
    """Returns the images [2, 3, 8, 8]."""
    return torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8) * 2


def fill(module):
    """Sets all parameters to random numbers, and returns the module."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.from_numpy(random_weight(name, tuple(value.shape))))
    return module.eval()


def make_bases():
    """Writes the models."""
    import timm

    for name, (kind, config, fields) in BASES.items():
        config = getattr(transformers, config)(**fields)
        fill(getattr(transformers, kind)(config)).save_pretrained(FOLDER / name)
    module = fill(_timm())
    config = {
        "model_args": _TIMM,
        "pretrained_cfg": {"architecture": "vit_tiny_patch16_224"},
    }
    timm.models.save_for_hf(
        module, FOLDER / "timm", model_config=config, safe_serialization=True
    )


_TIMM = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "num_classes": 3,
}


def _timm():
    import timm

    return timm.create_model("vit_tiny_patch16_224", **_TIMM)


def load_base(name):
    """Loads a model as users do."""
    if name == "timm":
        return fill(_timm())
    kind = getattr(transformers, BASES[name][0])
    return kind.from_pretrained(FOLDER / name, attn_implementation="eager")


def main():
    """Writes everything that the installed version of transformers can."""
    if VERSION == 5:
        shutil.rmtree(FOLDER, ignore_errors=True)
        make_bases()
    logits = {}
    if (FOLDER / "logits.npz").exists():
        logits = dict(np.load(FOLDER / "logits.npz"))
    for name, (base, fields) in (BOTH | (ONLY_5 if VERSION == 5 else {})).items():
        config = LoraConfig(r=2, init_lora_weights=False, **fields)
        model = get_peft_model(load_base(base), config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if value.requires_grad:
                    shape = tuple(value.shape)
                    number = random_weight(f"{name}.{key}", shape)
                    value.copy_(torch.from_numpy(number))
        config.init_lora_weights = True  # as in any adapter that was trained
        name = f"{name}_{VERSION}" if name in BOTH else name
        model.base_model.model.name_or_path = ""
        for one in model.peft_config.values():
            one.base_model_name_or_path = f"../{base}"
        model.eval().save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        with torch.inference_mode():
            found = model(images())
            logits[name] = getattr(found, "logits", found).numpy()
        print(name, logits[name][0])
    np.savez(FOLDER / "logits.npz", **logits)


if __name__ == "__main__":
    main()
