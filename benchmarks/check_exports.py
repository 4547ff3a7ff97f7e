"""A check that timm and transformers compute the same as we do with our exports.

    python benchmarks/check_exports.py write DIR
    python benchmarks/check_exports.py check DIR

The first half needs vit_jax: it writes small random models of every kind that timm's
and Hugging Face's formats can express to new directories DIR/FORMAT/MODEL, and our
outputs to DIR/FORMAT/MODEL.npz. The second needs timm and transformers, but not
vit_jax: it loads each model as users do (timm's with transformers too), prints how far
its outputs are from ours, and whether labels, preprocessing and the meaning of the
outputs arrived. Its exit status is 1 if an output is off by more than 1e-5 or anything
else differs.

In float32, rounding errors in a ResNet trunk can exceed this, in the library too. If
they do, our result in float64 must be that close to the library's in float64.
"""

import argparse
import json
import math
import pathlib
import sys
from typing import Any

TOLERANCE = 1e-5
CLASSES = ("ape", "bat", "cat", "dög", "emu")
# Fields of `Architecture`; each model below changes some of them.
SIZES = {"patch_size": (4, 4), "image_size": (16, 16), "num_classes": len(CLASSES)}
PLAIN = SIZES | {"width": 16, "depth": 2, "mlp_dim": 30, "num_heads": 4}
HEADLESS, DISTILLED = {"num_classes": 0}, {"distillation_token": True}
DEIT = DISTILLED | {"distillation_head": False}
BARE = {"class_token": False, "class_token_position": False}
GAP, MAP, AFTER = {"pooling": "gap"}, {"pooling": "map"}, {"norm": "after_pool"}
SINCOS = {"posemb": "sincos2d", "class_token_position": False}
DINOV2, BESIDE = {"layer_scale": True, "mlp_dim": 32}, {"pooling": "cls_gap"}
REGISTERS = {"registers": 3, "register_positions": True}
TRUNK = {"trunk_numerics": "timm", "patch_size": (32, 32), "image_size": (64, 96)}
TRUNK_16 = TRUNK | {"patch_size": (16, 16)}
BOTH = {
    "vit": {},
    "vit_exact_gelu": {"gelu": "exact"},
    "vit_rectangles": {"image_size": (8, 24), "patch_size": (4, 8)},
    "vit_grey": {"channels": 1},
    "vit_no_qkv_bias": {"qkv_bias": False},
    "vit_no_head": HEADLESS,
    "vit_one_class": {"num_classes": 1},
    "distilled": DISTILLED,
    "distilled_rectangle": DISTILLED | {"image_size": (8, 16)},
}
TIMM = {
    "norm_after_pool": AFTER,
    "no_position_of_class_token": {"class_token_position": False},
    "sincos_positions": SINCOS,
    "layer_scale": {"layer_scale": True},
    "gap": GAP | BARE,
    "gap_class_token": GAP,
    "gap_norm_after_pool": GAP | AFTER,
    "map": MAP | BARE,
    "map_class_token": MAP,
    "map_norm_after_pool": MAP | AFTER | BARE,
    "registers": {"registers": 3, "class_token_position": False},
    "registers_positions": REGISTERS,
    "registers_gap": REGISTERS | GAP | BARE,
    "distilled_no_head": DISTILLED | HEADLESS,
    "distilled_layer_scale": DISTILLED | {"layer_scale": True},
    "trunk_root": TRUNK_16 | {"trunk": ()},
    "trunk_r26": TRUNK | {"trunk": (2, 2, 2, 2)},
    "trunk_r50_3_stages": TRUNK_16 | {"trunk": (3, 4, 9)},
    "trunk_r50_4_stages": TRUNK | {"trunk": (3, 4, 6, 3)},
}
HUGGING_FACE = {
    "vit_epsilon": {"layernorm_epsilon": 1e-12},
    "vit_pooler": HEADLESS | {"pre_logits": 9},
    "deit": DEIT,
    "deit_no_head": DEIT | HEADLESS,
    "deit_pooler": DEIT | HEADLESS | {"pre_logits": 7},
    "dinov2": DINOV2 | HEADLESS,
    "dinov2_classifier": DINOV2 | BESIDE,
    "dinov2_no_qkv_bias": DINOV2 | BESIDE | {"qkv_bias": False},
    "dinov2_rectangular_patches": DINOV2 | HEADLESS | {"patch_size": (4, 8)},
    "dinov2_registers": DINOV2 | HEADLESS | {"registers": 3},
    "dinov2_registers_classifier": DINOV2 | BESIDE | {"registers": 2},
    "ijepa": GAP | BARE | HEADLESS,
    "ijepa_classifier": GAP | BARE | {"layernorm_epsilon": 1e-12},
    "ijepa_sincos_rectangle": GAP | BARE | SINCOS | {"image_size": (8, 16)},
    "siglip": MAP | BARE | HEADLESS,
    "siglip_exact_gelu": MAP | BARE | HEADLESS | {"gelu": "exact"},
}
MODELS = {"timm": BOTH | TIMM, "huggingface": BOTH | HUGGING_FACE}
# (keeps the aspect, size before the crop over the model's, interpolation, mean, std);
# the models of a format use them in turn.
PREPROCESSING = (
    (False, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    (True, 1.25, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    (False, 1.5, "bicubic", (0.3, 0.2, 0.1), (0.7, 0.8, 0.9)),
)
# What the outputs mean, and the word of transformers, which has none for its default;
# also in turn.
PROBLEM_TYPES = {
    "independent": "multi_label_classification",
    "exclusive": None,
    "numbers": "regression",
}


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", choices=("write", "check"))
    parser.add_argument("directory", type=pathlib.Path)
    arguments = parser.parse_args()
    return {"write": write, "check": check}[arguments.half](arguments.directory)


def write(directory: pathlib.Path) -> int:
    """Writes all models."""
    for format, models in MODELS.items():
        for turn, (name, fields) in enumerate(models.items()):
            _write(directory / format / name, format, PLAIN | fields, turn)
            print(f"wrote {format}/{name}")
    return 0


def _write(path: pathlib.Path, format: str, fields: dict[str, Any], turn: int) -> None:
    import numpy as np

    from vit_jax import api
    from vit_jax.config import default_config, to_plain
    from vit_jax.data.preprocessing import Preprocessing
    from vit_jax.models import Architecture, abstract_params, build
    from vit_jax.models.outputs import readable

    a = Architecture(**fields)
    outputs = readable([*PROBLEM_TYPES][turn % len(PROBLEM_TYPES)], a.num_classes)
    expected = _expected(a, turn) | {
        "problem_type": PROBLEM_TYPES[outputs] if a.num_classes else None
    }
    names, mean, std = (expected[key] for key in ("labels", "mean", "std"))
    chain = _chain(expected, format)
    preprocessing = Preprocessing(a.image_size, a.channels, chain, mean, std)
    rng, config = np.random.default_rng(turn), to_plain(default_config())
    params = _random_params(abstract_params(a), rng)
    model = api.Model(build(a), params, preprocessing, names, config, 0, outputs)
    api.save(model, path, format)

    images = rng.uniform(-1, 1, (2, *a.image_size, a.channels)).astype(np.float32)
    types = ("float32", "float64") if a.trunk is not None else ("float32",)
    np.savez(
        path.with_name(f"{path.name}.npz"),
        allow_pickle=False,
        images=images,
        expected=json.dumps(expected),
        **{dtype: _outputs(build, a, params, images, dtype) for dtype in types},
    )


def _random_params(shapes, rng):
    """Draws float32 numbers with which every parameter has an effect."""
    import jax

    def draw(path, leaf):
        name = path[-1].key
        # Kernels preserve the scale of their input; scales are around 1.
        spread = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if name == "kernel" else 0.3
        around = float(name.startswith(("scale", "layer_scale")))
        return rng.normal(around, spread, leaf.shape).astype("float32")

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _outputs(build, architecture, params, images, dtype: str):
    import jax

    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        apply = jax.jit(build(architecture, dtype=jax.numpy.dtype(dtype)).apply)
        return jax.device_get(apply({"params": params}, images.astype(dtype)))


def _expected(a, turn: int) -> dict[str, Any]:
    """Returns the metadata that the library should report, in JSON's types."""
    keeps, scale, interpolation, mean, std = PREPROCESSING[turn % len(PREPROCESSING)]
    return {
        # transformers keeps it only if the result is square.
        "keeps_aspect": keeps and a.image_size[0] == a.image_size[1],
        "resize": [int(size * scale) for size in a.image_size],
        "input": [a.channels, *a.image_size],
        "interpolation": interpolation,
        "mean": list(mean[: a.channels]),
        "std": list(std[: a.channels]),
        "labels": list(CLASSES[: a.num_classes]),
    }


def _chain(expected: dict[str, Any], format: str) -> str:
    """Returns the chain for `Preprocessing`, rounded as the library rounds."""
    size = f"{tuple(expected['resize'])}, '{expected['interpolation']}_antialias'"
    keeps = expected["keeps_aspect"]
    resize = f"resize_small({size}, 'down')" if keeps else f"resize({size})"
    rounding = {"timm": "nearest", "huggingface": "down"}[format]
    return f"{resize}|central_crop(rounding='{rounding}')"


def check(directory: pathlib.Path) -> int:
    """Prints one row per model; returns 1 if any is wrong, else 0."""
    import timm
    import transformers

    loaders = (timm, _load_timm), (transformers, _load_huggingface)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    wrong = 0
    print(f"{'model':38} {'library':20} {'difference':>10}  state")
    for (format, models), (library, load) in zip(MODELS.items(), loaders, strict=True):
        version = f"{library.__name__} {library.__version__}"
        for name in models:
            path = directory / format / name
            try:
                difference, notes, problems = _compare(path, load)
            # Anything that the library raises is reported for this model.
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                difference, notes, problems = math.nan, [], [why]
            wrong += bool(problems)
            state = "; ".join(["WRONG" if problems else "ok", *problems, *notes])
            print(f"{f'{format}/{name}':38} {version:20} {difference:10.1e}  {state}")
    print(f"{wrong} of {sum(map(len, MODELS.values()))} models are wrong")
    return int(wrong > 0)


def _compare(path: pathlib.Path, load) -> tuple[float, list[str], list[str]]:
    """Returns the largest difference of outputs, notes on it, and problems."""
    import numpy as np
    import torch

    ours = dict(np.load(path.with_name(f"{path.name}.npz")))
    expected = json.loads(str(ours["expected"]))
    images = torch.from_numpy(ours["images"]).permute(0, 3, 1, 2)
    module, compute, seen, notes = load(path)
    module.eval()

    @torch.inference_mode()
    def difference(dtype: str) -> float:
        kind = getattr(torch, dtype)
        theirs = compute(module.to(kind), images.to(kind)).numpy()
        if theirs.shape != ours[dtype].shape:
            raise ValueError(f"outputs {theirs.shape}, expected {ours[dtype].shape}")
        return float(np.abs(theirs - ours[dtype]).max())

    found = difference("float32")
    wrong = [key for key, value in expected.items() if seen[key] != value]
    problems = [f"{key} is {seen[key]!r}, not {expected[key]!r}" for key in wrong]
    if not found <= TOLERANCE and "float64" in ours:
        exact = difference("float64")
        says = f"in float64 the difference is {exact:.1e}"
        (notes if exact <= TOLERANCE else problems).append(says)
    elif not found <= TOLERANCE:
        problems.append("the outputs differ")
    return found, notes, problems


def _load_timm(path: pathlib.Path):
    """Returns the model, a function for its outputs, its metadata, and notes."""
    import timm
    import transformers

    module = timm.create_model(f"local-dir:{path}", pretrained=True)
    config = transformers.AutoConfig.from_pretrained(path)
    wrapper = None
    if module.num_classes:
        automatic = transformers.AutoModelForImageClassification
        wrapper = automatic.from_pretrained(path).eval()

    def compute(module, images):
        found = module(images)
        # Models in transformers' wrapper, whose config says what the outputs mean.
        if wrapper and not found.equal(wrapper.to(images.dtype)(images).logits):
            raise ValueError("transformers computes other outputs than timm")
        return found

    data = timm.data.resolve_data_config(model=module)
    seen = {
        "keeps_aspect": {"center": True, "squash": False}[data["crop_mode"]],
        "resize": [int(size / data["crop_pct"]) for size in data["input_size"][1:]],
        "input": list(data["input_size"]),
        "interpolation": data["interpolation"],
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "labels": list(module.pretrained_cfg.get("label_names") or ()),
        "problem_type": config.problem_type,
    }
    if wrapper and [*wrapper.config.id2label.values()] != seen["labels"]:
        raise ValueError(f"transformers has the labels {wrapper.config.id2label}")
    return module, compute, seen, []


def _load_huggingface(path: pathlib.Path):
    """Loads with the automatic class, which must be the one that the config names.

    Returns:
      The model, a function for its outputs, its metadata, and notes.
    """
    import transformers
    from PIL import Image

    config = transformers.AutoConfig.from_pretrained(path)
    (kind,) = config.architectures
    headless = kind.endswith("Model")
    name = "AutoModel" if headless else "AutoModelForImageClassification"
    automatic = getattr(transformers, name)
    module, info = automatic.from_pretrained(path, output_loading_info=True)
    if type(module).__name__ != kind:
        raise TypeError(f"loaded as {type(module).__name__} instead of {kind}")
    missing = set(info.pop("missing_keys"))
    untrained = headless and missing == {"pooler.dense.weight", "pooler.dense.bias"}
    if any(info.values()) or (missing and not untrained):
        raise ValueError(f"missing {missing}, {info}")
    notes = ["the library adds an untrained pooler"] if untrained else []

    processor = transformers.AutoImageProcessor.from_pretrained(path)
    crop = processor.crop_size if processor.do_center_crop else processor.size

    def pair(size):
        return [size.height or size.shortest_edge, size.width or size.shortest_edge]

    seen = {
        "keeps_aspect": bool(processor.size.shortest_edge),
        "resize": pair(processor.size),
        "input": [config.num_channels, *pair(crop)],
        "interpolation": Image.Resampling(processor.resample).name.lower(),
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "labels": [] if headless else [*config.id2label.values()],
        "problem_type": config.problem_type,
    }

    def compute(module, images):
        found = module(images)
        if not headless:
            return found.logits
        if config.model_type == "ijepa":
            return found.last_hidden_state.mean(1)
        return found.last_hidden_state[:, 0] if untrained else found.pooler_output

    return module, compute, seen, notes


if __name__ == "__main__":
    sys.exit(main())
