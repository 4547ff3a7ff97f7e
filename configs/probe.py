"""Trains a linear head on the frozen features of any weights: a linear probe.

Source: our own, after the linear evaluation of DINO (arXiv:2104.14294, section 4.1) and
    others: no weight decay, a cosine. Other than there, images are only mirrored, and
    the optimiser is AdamW, whose rate suits features of every size. For the probe of
    MAE, with normalised features, see mae.py.
Command: python -m vit_jax.main --config=configs/probe.py:DATA,WEIGHTS
    DATA is imagenet2012 (default), or any other dataset name or folder of images.
    WEIGHTS is whatever --config.pretrained accepts (README, "Load weights from
    anywhere"); the model is that of the weights. Without WEIGHTS it is B/16 of AugReg,
    pretrained on ImageNet-21k. For weights of another size than 224 pixels, set
    --config.image_size. To train more than the head: --config.train_only=head,norms.
    A small one for a CPU, after the pretraining of mae.py:
    python -m vit_jax.main --config=configs/mae.py:pretrain,digits --workdir=mae-digits
    python -m vit_jax.main --config=configs/probe.py:digits,mae-digits
Hardware: one accelerator; memory is that of inference (docs/memory.md).
Expected: not yet measured at full size.
"""

from vit_jax.config import default_config

WEIGHTS = "vit_base_patch16_224.augreg_in21k"


def get_config(argument="imagenet2012"):
    """Makes the recipe for `DATA` or `DATA,WEIGHTS`."""
    dataset, _, weights = argument.partition(",")
    config = default_config()
    config.name = "probe"
    config.dataset = dataset
    # The model of given weights is whatever they say.
    config.model.variant = "" if weights else "B/16"
    config.pretrained = weights or WEIGHTS

    config.train_only = "head"
    config.augment.train = "resize|flip_lr"
    config.augment.eval = "resize"
    config.batch_size = 256
    config.total_epochs = 50.0
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.schedule = "cosine"
    config.grad_clip_norm = 0.0
    config.eval_every = 1_000
    if dataset == "digits":
        _small(config)
    return config


def _small(config):
    config.image_size = (32,)
    config.augment.train = "resize"  # a mirrored digit is another symbol
    config.batch_size = 128
    config.eval_batch_size = 500
    config.learning_rate = 1e-2
    config.loader_threads = 1  # more of them contend, when images are this small
