"""Five of the ways to train, made so small that 20 steps take seconds.

benchmarks/same_bits.py compares what two versions make of them; reduced_losses.json
keeps their losses.
"""

import pathlib

GOLDEN = pathlib.Path(__file__).parent

COMMON = {
    "image_size": 8,
    "batch_size": 48,
    "eval_batch_size": 360,
    "total_steps": 20,
    "warmup_steps": 4,
    # More than the recipes have: so few steps must go somewhere.
    "learning_rate": 0.01,
    "eval_every": 10,
    "checkpoint_every": 10,
    "log_every": 1,
    "loader_threads": 2,
    "augment.eval": "resize",
    "model.variant": "Ti/4",
    "model.width": 32,
    "model.depth": 2,
    "model.mlp_dim": 64,
    "model.num_heads": 2,
}
# name: (recipe, the keys that differ besides). What is not named is as in the recipe.
RECIPES = {
    "google_npz": (
        "b16.py:digits",
        {
            "pretrained": GOLDEN / "reduced_google.npz",
            "image_size": 12,
            "learning_rate": 0.3,
            "accum_steps": 2,
        },
    ),
    "sigmoid": ("pretrain.py:Ti/4,digits", {}),
    "deit": ("deit.py:Ti/4,digits", {}),
    # Without RandAugment: OpenCV's versions round a rotation differently.
    "mixup": (
        "augreg.py:Ti/4,digits,medium2",
        {"augment.train": "inception_crop|flip_lr"},
    ),
    "ema_accum": (
        "cifar.py:digits",
        {"accum_steps": 3, "ema_decay": 0.9, "ema_warmup": "true"},
    ),
}


def command_line(name: str, tree: pathlib.Path) -> list[str]:
    """The arguments of `vit_jax.main` that train one, with a checkout's recipes."""
    recipe, keys = RECIPES[name]
    values = COMMON | keys
    keys_file = tree / "vit_jax" / "config" / "keys.py"  # later than version 0.1
    if keys_file.exists() and "data.rules" in keys_file.read_text(encoding="utf-8"):
        # The digits are so small that later rules would draw other crops.
        values["data.rules"] = 1
    return [
        f"--config={tree / 'configs' / recipe}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]
