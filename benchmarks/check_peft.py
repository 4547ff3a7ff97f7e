"""A check that PEFT computes the same as we do with adapters, in both directions.

    python benchmarks/check_peft.py write DIR
    python benchmarks/check_peft.py check DIR
    python benchmarks/check_peft.py back DIR

The first step needs vit_jax: it writes small random models of several kinds, each with
random LoRA adapters, as a base DIR/MODEL/base (of Hugging Face or timm), an adapter
DIR/MODEL/NAMES of PEFT for each library whose names can express it, and our outputs.
The second needs peft, timm and transformers, but not vit_jax: it loads each adapter
onto its base with PEFT, prints how far the outputs are from ours, and lets PEFT make
adapters of its own, DIR/MODEL/made-NAMES, with their outputs. The names of modules
differ between versions 4 and 5 of transformers, so run it with both; it skips those of
the other. The third needs vit_jax, and reads what PEFT made. The exit status is 1 if an
output is off by more than 1e-5.
"""

import argparse
import pathlib
import sys
from typing import Any

TOLERANCE = 1e-5
PLAIN = {
    "patch_size": (4, 4),
    "image_size": (16, 16),
    "num_classes": 5,
    "width": 16,
    "depth": 2,
    "mlp_dim": 32,
    "num_heads": 4,
    "gelu": "exact",
}
GAP = {"pooling": "gap", "class_token": False, "class_token_position": False}
DINOV2 = {"layer_scale": True, "pooling": "cls_gap"}
ATTENTION = ("query", "key", "value", "out")
ALL = (*ATTENTION, "fc1", "fc2")
QUERY_VALUE = ("query", "value")
# Model → format of its base, fields of the architecture, adapted layers, and what is
# trained beside adapters and head.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "vit_query_value": ("huggingface", {}, QUERY_VALUE, ""),
    "vit_all": ("huggingface", {}, ALL, ""),
    "vit_mlp_out": ("huggingface", {}, ("out", "fc1"), "norm/"),
    "vit_last_layer": ("huggingface", {}, ("fc2",), ""),
    "vit_rslora_biases": (
        "huggingface",
        {"lora_rank_stabilized": True},
        QUERY_VALUE,
        "/bias",
    ),
    "vit_no_head": ("huggingface", {"num_classes": 0}, ALL, ""),
    "deit_distilled": ("huggingface", {"distillation_token": True}, QUERY_VALUE, ""),
    "dinov2": ("huggingface", DINOV2, ALL, ""),
    "dinov2_registers": ("huggingface", DINOV2 | {"registers": 3}, QUERY_VALUE, ""),
    "ijepa": ("huggingface", GAP, ATTENTION, ""),
    "timm_query_value": ("timm", {}, QUERY_VALUE, ""),
    "timm_all_rslora": ("timm", {"lora_rank_stabilized": True}, ALL, "norm/"),
    "timm_no_attention": ("timm", {"layer_scale": True}, ("fc1", "fc2"), "/bias"),
    "timm_gap": ("timm", GAP | {"norm": "after_pool"}, ("query", "out"), ""),
}
# For adapters that PEFT makes.
SETTINGS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora_biases": {"r": 3, "use_rslora": True, "bias": "lora_only"},
    "one_block": {"r": 2, "layers_to_transform": [1], "lora_alpha": 16},
}
# Names → modules with adapters, and the name in front of the numbers of blocks.
LAYERS = {
    "transformers5": (["q_proj", "v_proj", "fc1"], "layers?"),
    "transformers4": (["query", "value", "attention.output.dense"], "layers?"),
    "timm": (["qkv", "fc2"], "blocks"),
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("write", "check", "back"))
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    step = {"write": write, "check": check, "back": back}[arguments.step]
    return step(arguments.directory)


def write(directory: pathlib.Path) -> int:
    """Writes all models with their adapters."""
    for turn, name in enumerate(MODELS):
        written = _write(directory / name, name, turn)
        print(f"wrote {name}: {', '.join(written)}")
    return 0


def _write(path: pathlib.Path, name: str, turn: int) -> list[str]:
    import jax
    import numpy as np

    from vit_jax.checkpoints.description import Description
    from vit_jax.config import default_config, to_plain
    from vit_jax.data.preprocessing import Preprocessing
    from vit_jax.errors import UserError
    from vit_jax.models import Architecture, abstract_params, build
    from vit_jax.weights.adapter_directories import Beside, Peft
    from vit_jax.weights.formats.layout import flatten, unflatten
    from vit_jax.weights.saving import save_weights

    format, fields, targets, trained = MODELS[name]
    lora = {"lora_rank": 4, "lora_alpha": 6.0, "lora_targets": targets}
    plain = {k: v for k, v in fields.items() if not k.startswith("lora")}
    base = Architecture(**(PLAIN | plain))
    adapted = Architecture(**(PLAIN | lora | fields))
    rng = np.random.default_rng(turn)

    def draw(path: str, shape: tuple[int, ...]):
        last = path.rpartition("/")[2]
        spread = 0.3 if last in ("bias", "scale") else max(shape[0], 1) ** -0.5
        around = float(last.startswith(("scale", "layer_scale")))
        return rng.normal(around, spread, shape).astype(np.float32)

    shapes = flatten(abstract_params(adapted))
    params = {p: draw(p, leaf.shape) for p, leaf in shapes.items()}
    below = {p: x for p, x in params.items() if not p.endswith(("lora_a", "lora_b"))}
    paths = {p for p in below if p.startswith("head") or (trained and trained in p)}
    if trained:  # the base has others
        below |= {p: draw(p, below[p].shape) for p in sorted(paths)}

    def describe(a: Architecture) -> Description:
        preprocessing = Preprocessing(
            a.image_size, a.channels, "resize", (0.5,) * 3, (0.5,) * 3
        )
        names = tuple(f"class {i}" for i in range(a.num_classes))
        return Description(a, preprocessing, names, to_plain(default_config()), 0)

    save_weights(describe(base), unflatten(below), path / "base", format)
    beside = Beside(str(path / "base"), "", frozenset(paths))
    written = []
    for names in ("transformers5", "transformers4", "timm"):
        if (names == "timm") != (format == "timm"):
            continue
        peft = Peft(names, expand_rank=True, beside=beside)
        try:
            save_weights(
                describe(adapted), unflatten(params), path / names, "peft", peft
            )
            written.append(names)
        except UserError as error:
            print(f"{name}, {names}: {error}")
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = build(adapted).apply({"params": unflatten(params)}, images)
    np.savez(path / "ours.npz", images=images, outputs=np.asarray(found))
    return written


def check(directory: pathlib.Path) -> int:
    """Prints one row per adapter; returns 1 if any is wrong, else 0."""
    import numpy as np
    import peft
    import torch
    import transformers

    version = int(transformers.__version__.partition(".")[0])
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    print(f"peft {peft.__version__}, transformers {transformers.__version__}")
    wrong = 0
    for name, (format, *_) in MODELS.items():
        path = directory / name
        names = "timm" if format == "timm" else f"transformers{version}"
        ours = np.load(path / "ours.npz")
        images = torch.from_numpy(ours["images"]).permute(0, 3, 1, 2).contiguous()
        try:
            module = peft.PeftModel.from_pretrained(
                _load_base(path / "base", format), str(path / names)
            )
            found = _outputs(module, images)
            difference = float(np.abs(found - ours["outputs"]).max())
        # Anything that a library raises is reported for this model.
        except Exception as error:
            print(f"{name:20} {names:14} {type(error).__name__}: {error}")
            wrong += 1
            continue
        bad = not difference <= TOLERANCE
        wrong += bad
        print(f"{name:20} {names:14} {difference:8.1e} {'WRONG' if bad else 'ok'}")
        for setting in SETTINGS:
            _make(path, format, names, setting, images)
    print(f"{wrong} of {len(MODELS)} adapters are wrong")
    return int(wrong > 0)


def _load_base(path: pathlib.Path, format: str):
    """Loads a model as users do."""
    if format == "timm":
        import timm

        return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    import transformers

    (kind,) = transformers.AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, kind).from_pretrained(path).eval()


def _outputs(module, images):
    import torch

    module.eval()
    with torch.inference_mode():
        found = module(images)
    if hasattr(found, "logits"):
        return found.logits.numpy()
    if hasattr(found, "last_hidden_state"):
        return found.last_hidden_state[:, 0].numpy()
    return found.numpy()


def _make(path, format: str, names: str, setting: str, images) -> None:
    """Lets PEFT make an adapter of random numbers, and writes it with its outputs."""
    import numpy as np
    import peft
    import torch

    torch.manual_seed(0)
    module = _load_base(path / "base", format)
    ends = [name for name, _ in module.named_children()]
    heads = [end for end in ends if "classifier" in end or end.startswith("head")]
    heads = [h for h in heads if getattr(module, h).state_dict()]
    targets, pattern = LAYERS[names]
    settings = SETTINGS[setting]
    if "layers_to_transform" in settings:
        settings = settings | {"layers_pattern": pattern}
    config = peft.LoraConfig(
        target_modules=targets,
        modules_to_save=heads or None,
        init_lora_weights=False,
        **settings,
    )
    module = peft.get_peft_model(module, config)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if value.requires_grad and "lora_" not in key:
                value += 0.3 * torch.randn(value.shape)
    config.init_lora_weights = True
    for one in module.peft_config.values():
        one.base_model_name_or_path = str(path / "base")
    made = path / f"made-{names}-{setting}"
    module.save_pretrained(made)
    np.savez(made / "theirs.npz", outputs=_outputs(module, images))


def back(directory: pathlib.Path) -> int:
    """Reads the adapters that PEFT made; returns 1 if any is wrong, else 0."""
    import jax
    import numpy as np

    from vit_jax import api

    wrong, count = 0, 0
    for name in MODELS:
        images = np.load(directory / name / "ours.npz")["images"]
        for made in sorted((directory / name).glob("made-*")):
            model = api.load(made)
            with jax.default_matmul_precision("highest"):
                found = model.module.apply({"params": model.params}, images)
            theirs = np.load(made / "theirs.npz")["outputs"]
            difference = float(np.abs(np.asarray(found) - theirs).max())
            bad = not difference <= TOLERANCE
            wrong, count = wrong + bad, count + 1
            state = "WRONG" if bad else "ok"
            print(f"{name:20} {made.name:28} {difference:8.1e} {state}")
    print(f"{wrong} of {count} adapters are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
