"""Pretrains a ViT with chosen augmentation and regularisation, as AugReg did.

Source: "How to train your ViT?" (arXiv:2106.10270), section 3 and appendix B; the
    levels and defaults of each size as in big_vision's vit_i1k.py and vit_i21k.py.
    Other than published:
    - On ImageNet-21k, big_vision pools the mean over the patches; here the head reads
      the class token, as in the published weights: --config.model.pooling=gap.
    - Also there, big_vision trains on full[51200:]; here a tenth of the set's only
      split is held out: --config.train_split=full[51200:] with
      --config.eval_split=full[:51200].
    - Positions start with deviation 0.02 (big_vision: 1/sqrt(width)).
    - Mixup pairs an image with its neighbour in the whole batch (big_vision: among
      those of the same device).
    - On ImageNet-2012, `validation` is evaluated (big_vision also has train[99%:],
      ImageNet-V2 and ReaL, and few-shot accuracy).
Command: python -m vit_jax.main --config=configs/augreg.py:B/16,imagenet2012,medium2
    The argument is VARIANT,DATASET,LEVEL. LEVEL is none, light1, light2, medium1,
    medium2, strong1 or strong2; by default, big_vision's level for the variant.
    For dropout and stochastic depth, which the paper calls regularisation, add
    --config.model.dropout_rate=0.1 --config.model.stochastic_depth=0.1
Hardware: as published, TPUs of 64 cores or more.
Expected, as published, on ImageNet-2012 at 224 after 300 epochs on ImageNet-2012 alone:
    B/16 79.84 %, S/16 79.00 %, Ti/16 72.59 %. Not yet measured with this code.
"""

from vit_jax.config import default_config

# RandAugment's layers and magnitude, mixup's alpha. A magnitude of 0 still has effects.
LEVELS = {
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}
# dataset: (epochs, head bias, tanh layer before the head, splits, {variant: level}).
ROWS = {
    "imagenet2012": (
        300.0,
        -6.9,
        -1,
        ("train[:99%]", "validation"),
        {"Ti/16": "light1", "S/32": "medium1"},
    ),
    "imagenet21k": (
        300.0,
        -10.0,
        0,
        ("", ""),
        {
            "Ti/16": "none",
            "S/32": "none",
            "S/16": "light1",
            "B/32": "light2",
            "B/16": "light2",
        },
    ),
}


def get_config(argument="B/16,imagenet2012"):
    """Makes the recipe for `VARIANT,DATASET,LEVEL`.

    Datasets without a row get the settings of ImageNet-2012.
    """
    variant, dataset, level = [*argument.split(","), "", ""][:3]
    config = default_config()
    config.name = "augreg-" + variant.replace("/", "")
    config.dataset = dataset or "imagenet2012"
    epochs, bias, pre_logits, splits, levels = ROWS.get(
        config.dataset, ROWS["imagenet2012"]
    )
    if config.dataset in ROWS:
        config.train_split, config.eval_split = splits
    level = level or levels.get(variant, "medium2")
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: choose from {', '.join(LEVELS)}")
    layers, magnitude, config.mixing.mixup_alpha = LEVELS[level]
    config.augment.train = "inception_crop|flip_lr" + (
        f"|randaugment({layers}, {magnitude})" if layers else ""
    )
    config.augment.eval = "resize_small(256)|central_crop"

    config.model.variant = variant
    config.model.pre_logits = pre_logits
    config.model.head_bias = bias
    config.loss = "sigmoid"
    config.batch_size = 4096
    config.optimizer = "adamw"
    config.momentum_dtype = "bfloat16"
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.grad_clip_norm = 1.0
    config.schedule = "cosine"
    config.warmup_steps = 10_000
    config.total_epochs = epochs
    config.eval_every = 10_000
    return config
