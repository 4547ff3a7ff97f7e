"""Trains a small ViT from scratch on 32 × 32 images: patch 4, width 128, 64 + 1 tokens.

Source: our own; for a first run on real data without pretrained weights.
Command: python -m vit_jax.main --config=configs/cifar.py
    The argument is cifar10 (default), cifar100, or any other dataset name or folder.
Hardware: one GPU. Expected: not yet measured.
"""

from vit_jax.config import default_config


def get_config(dataset="cifar10"):
    """Makes the recipe for a dataset of small images."""
    config = default_config()
    config.name = "cifar"
    config.dataset = dataset
    config.image_size = (32,)
    config.model.variant = "Ti/4"
    config.model.width = 128
    config.model.depth = 8
    config.model.mlp_dim = 512
    config.model.num_heads = 4
    config.model.stochastic_depth = 0.1
    config.augment.train = "inception_crop(area_min=0.4)|flip_lr"
    config.augment.eval = "resize"
    config.batch_size = 512
    config.eval_batch_size = 1000
    config.total_epochs = 200.0
    config.warmup_steps = 500
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.label_smoothing = 0.1
    config.eval_every = 1_000
    return config
