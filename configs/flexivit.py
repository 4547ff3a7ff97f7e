"""Trains one ViT for many patch sizes (FlexiViT).

Source: "FlexiViT: One Model for All Patch Sizes" (arXiv:2212.08013) and big_vision's
    configs/proj/flexivit. Images of 240 pixels are cut into patches of 48, 40, 30, 24,
    20, 16, 15, 12, 10 or 8 pixels; every step draws one size, all equally often. The
    kernel of the patch embedding is stored at one size and resized in every step by
    pseudo-inverse, the positions (7 × 7) linearly.
    - distill (i1k_deit3_distill.py): function matching on ImageNet-2012, without
      labels. Student and teacher begin as the same DeiT III; the teacher keeps its
      patches of 16 pixels and sees 384 pixels, the student 240. Mixup in every step.
    - supervised (i21k_sup.py): from scratch on ImageNet-21k, with the sigmoid loss.
    Other than published:
    - Weight decay is the published one divided by the learning rate, which multiplies
      it here.
    - Mixup pairs an image with its neighbour in the whole batch (big_vision: among
      those of the same device).
    - supervised: batch, length and warm-up are our own choice.
    - The row of digits is our own.
Command: python -m vit_jax.main --config=configs/flexivit.py:distill,B,90
    The argument is distill,VARIANT,EPOCHS (B or L; 90, 300, 600 or 1200),
    supervised,VARIANT (B or L) or digits, each with or without ,DATASET. Distillation
    begins with published weights, which are downloaded. The result is a model for every
    patch size: python -m vit_jax.evaluate --checkpoint=WORKDIR --patch_size=12, or
    vit_jax.load(WORKDIR, patch_size=12). --config.flexible.patch_sizes=… trains others.
Hardware: not published with the code.
Expected: not yet measured at full size with this code. digits (449 steps, minutes on
    two CPU cores): 90.0 %, 88.1 % and 88.3 % at patches of 4, 8 and 16 pixels; trained
    at 8 alone and resized, 61.7 %, 95.3 % and 18.1 %.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

SIDES = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)  # patches along 240 pixels
EPOCHS = ("90", "300", "600", "1200")
VARIANTS = ("B", "L")


def get_config(argument="distill,B,300"):
    """Makes the recipe for `KIND,VARIANT,EPOCHS,DATASET`, or for `digits`."""
    kind, variant, *rest = [*argument.split(","), "", ""]
    if kind not in KINDS:
        raise ValueError(f"flexivit.py:{argument}: choose from {', '.join(KINDS)}")
    config = default_config()
    config.optimizer = "adamw"
    config.grad_clip_norm = 1.0
    config.schedule = "cosine"
    config.model.class_token_position = "off"
    config.flexible.grid = (7,)
    if kind == "digits":
        config.name = "flexivit-digits"
        config.dataset = variant or "digits"
        _digits(config)
        return config
    variant = variant or "B"
    if variant not in VARIANTS:
        raise ValueError(
            f"flexivit.py:{argument}: choose a variant from {', '.join(VARIANTS)}"
        )
    config.image_size = (240,)
    config.flexible.patch_sizes = tuple(240 // side for side in SIDES)
    config.flexible.eval_patch_sizes = (48, 30, 24, 20, 12, 8)
    config.model.variant = f"{variant}/16"
    config.momentum_dtype = "bfloat16"
    config.augment.eval = "resize_small(256)|central_crop"
    KINDS[kind](config, argument, variant, *rest)
    return config


def _distill(config, argument, variant, epochs="", dataset="", *_):
    epochs = epochs or "300"
    if epochs not in EPOCHS:
        raise ValueError(
            f"flexivit.py:{argument}: choose a number of epochs from "
            f"{', '.join(EPOCHS)}"
        )
    config.name = f"flexivit-distill-{variant}-{epochs}"
    config.dataset = dataset or "imagenet2012"
    if not dataset:
        config.train_split, config.eval_split = "train[:98%]", "validation"
    config.augment.train = "inception_crop|flip_lr"
    config.flexible.kernel = (16,)
    teacher = f"deit3_{variant}_384_1k"
    config.pretrained, config.reset_head = teacher, False
    config.objective = "distillation"
    config.objective_options = ConfigDict(
        {
            "teachers": teacher,
            "kind": "matching",
            "distance": "kl",
            "temperature": 1.0,
        }
    )
    config.mixing.mixup_alpha = 1.0
    config.batch_size = 1024
    config.learning_rate, config.weight_decay = 1e-4, 1e-5 / 1e-4
    config.warmup_steps = 5_000
    config.total_epochs = float(epochs)
    config.eval_every = 5_000


def _supervised(config, argument, variant, dataset="", *_):
    del argument
    config.name = f"flexivit-supervised-{variant}"
    config.dataset = dataset or "imagenet21k"
    config.augment.train = "inception_crop|flip_lr|randaugment(2, 10)"
    config.flexible.kernel = (8,)
    config.loss = "sigmoid"
    config.model.head_bias = -10.0
    config.mixing.mixup_alpha = 0.2
    config.batch_size = 4096
    config.learning_rate, config.weight_decay = 1e-3, 1e-4 / 1e-3
    config.warmup_steps = 10_000
    config.total_epochs = 90.0
    config.eval_every = 5_000


def _digits(config):
    config.image_size = (32,)
    config.augment.train = (
        "inception_crop(area_min=0.6, aspect_min=0.8, aspect_max=1.25)"
    )
    config.model.variant, config.model.channels = "Ti/8", 1
    config.model.width, config.model.depth = 64, 3
    config.model.mlp_dim, config.model.num_heads = 256, 4
    config.flexible.patch_sizes = (4, 8, 16)
    config.flexible.eval_patch_sizes = (4, 16)
    config.flexible.kernel, config.flexible.grid = (8,), (4,)
    config.batch_size = 64
    config.eval_batch_size = 360
    config.loader_threads = 1  # more of them contend, when images are this small
    config.learning_rate, config.weight_decay = 2e-3, 0.05
    config.warmup_steps = 50
    config.total_epochs = 20.0


KINDS = {"distill": _distill, "supervised": _supervised, "digits": None}
