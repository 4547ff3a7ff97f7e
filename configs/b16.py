"""Fine-tunes ViT-B/16, pretrained on ImageNet-21k, at 384 × 384.

Source: "An Image is Worth 16x16 Words" (arXiv:2010.11929), table 4 and appendix B.1.1,
    with the step counts, warm-up and learning rates of the published JAX code.
Command: python -m vit_jax.main --config=configs/b16.py:cifar100
    The argument is cifar10 (default), cifar100, oxford_iiit_pet, oxford_flowers102,
    imagenet2012, or any other dataset name or folder of images; those others get 500
    steps, the paper's schedule for small sets. --config.total_epochs changes it.
Weights: the original ImageNet-21k file: ./ViT-B_16.npz if it exists, else downloaded;
    or whatever --config.pretrained names (README, "Load weights from anywhere").
Hardware: as published, 8 TPU cores or GPUs; ImageNet took 6.5 hours on 8 A100.
Expected, as published for this recipe: CIFAR-10 99.0 %, CIFAR-100 92.1 %, ImageNet
    84.5 %. Not yet measured with this code.
"""

from vit_jax.config import default_config

# dataset: (steps, warm-up, learning rate, training split, evaluation split)
SCHEDULES = {
    "cifar10": (10_000, 500, 0.01, "train[:98%]", "test"),
    "cifar100": (10_000, 500, 0.03, "train[:98%]", "test"),
    "imagenet2012": (20_000, 500, 0.03, "train[:99%]", "validation"),
    "oxford_iiit_pet": (500, 100, 0.03, "train", "test"),
    "oxford_flowers102": (500, 100, 0.03, "train+validation", "test"),
}
OTHER = (500, 100, 0.01, "", "")


def get_config(dataset="cifar10"):
    """Makes the recipe for a dataset: a tensorflow-datasets name or a folder."""
    config = default_config()
    config.name = "b16"
    config.dataset = dataset
    steps, warmup, rate, train_split, eval_split = SCHEDULES.get(dataset, OTHER)
    config.total_steps, config.warmup_steps = steps, warmup
    config.learning_rate = rate
    config.train_split, config.eval_split = train_split, eval_split

    config.model.variant = "B/16"
    config.pretrained = "ViT-B_16.npz"
    config.image_size = (384,)
    # The published code resized positions with align-corners bilinear interpolation.
    config.posemb_resize = "google"
    config.augment.train = "inception_crop|flip_lr"
    config.augment.eval = "resize"

    config.batch_size = 512
    config.accum_steps = 8
    config.loss = "softmax"
    config.optimizer = "sgd"
    config.momentum = 0.9
    config.momentum_dtype = "bfloat16"
    config.schedule = "cosine"
    config.grad_clip_norm = 1.0
    config.eval_every = 500
    config.checkpoint_every = 500
    return config
