"""Pretrains on handwritten digits, then fine-tunes, in minutes on a laptop.

Source: the settings of "An Image is Worth 16x16 Words" (arXiv:2010.11929), tables 3 and
    4, scaled down to scikit-learn's 1,797 digits.
Command: make quickstart, or one part alone:
    python -m vit_jax.main --config=configs/quickstart.py:pretrain
    python -m vit_jax.main --config=configs/quickstart.py:finetune \
        --config.pretrained=WORKDIR_OF_THE_FIRST
    python -m vit_jax.main --config=configs/quickstart.py:control
Hardware: two CPU cores.
"""

from vit_jax.config import default_config


def get_config(part="pretrain"):
    """Makes the recipe for one part of the quickstart.

    pretrain: Adam, from scratch, 32 × 32. finetune: SGD, 40 × 40. control: the same as
    finetune, from random weights.
    """
    if part not in PARTS:
        raise ValueError(f"quickstart.py:{part}: choose from {', '.join(PARTS)}")
    config = default_config()
    config.name = f"quickstart-{part}"
    config.dataset = "digits"
    config.eval_batch_size = 360
    # 4 × 4 patches of 8 pixels at 32 × 32, 5 × 5 at 40 × 40.
    config.model.variant = "Ti/8"
    config.model.width = 96
    config.model.depth = 4
    config.model.mlp_dim = 192
    config.model.num_heads = 4
    config.checkpoint_every = 250
    PARTS[part](config)
    return config


# Crops that leave a digit readable, and no flips: a mirrored digit is another symbol.
CROP = "inception_crop(area_min={}, aspect_min={}, aspect_max={})"


def _pretrain(config):
    config.image_size = (32,)
    config.model.pre_logits = -1
    config.model.head_bias = -2.0
    config.loss = "sigmoid"
    config.augment.train = CROP.format(0.6, 0.8, 1.25)
    config.batch_size = 64
    config.optimizer = "adamw"
    config.learning_rate = 3e-3
    config.weight_decay = 0.1
    config.schedule = "linear"
    config.end_learning_rate = 1e-5
    config.warmup_steps = 100
    config.total_steps = 1500


def _finetune(config):
    config.image_size = (40,)
    config.augment.train = CROP.format(0.9, 0.9, 1.1)
    config.batch_size = 64
    config.optimizer = "sgd"
    config.momentum = 0.9
    config.learning_rate = 0.03
    config.schedule = "cosine"
    config.warmup_steps = 20
    config.total_steps = 250
    config.pretrained = "runs/quickstart/pretrain"


def _control(config):
    _finetune(config)
    config.pretrained = ""


PARTS = {"pretrain": _pretrain, "finetune": _finetune, "control": _control}
