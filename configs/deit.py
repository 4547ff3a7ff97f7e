"""Trains a ViT from scratch on ImageNet-2012 alone, as DeiT did.

Source: "Training data-efficient image transformers" (arXiv:2012.12877), table 9, and
    the defaults of its published code. Other than published:
    - Initialisation: there normal with deviation 0.02, truncated, for linear layers,
      positions and tokens, and PyTorch's default for the patches; here Xavier's for
      linear layers, LeCun's for the patches, and zeros for the class token and the
      head.
    - Images are scaled to [−1, 1] (there by ImageNet's mean and deviation), so random
      erasing fills with noise of 128 grey levels (there 57).
    - Mixup or CutMix is drawn once per step, for images of the whole batch (there once
      per GPU, for its images: 8 or 16 draws per step).
    - The batch has 1,008 images (there 1,024) at the same rate of 1e-3, which its rule
      of 5e-4 for 512 would make 9.84e-4.
    - The warm-up takes 6,250 steps from 0 (there 5 epochs from 1e-6, which are 6,355
      steps of 1,008), and the cosine ends at 0 (there 1e-5).
    - No average of the weights is tracked (there one of decay 0.99996, which its
      published numbers do not use): --config.ema_decay=0.99996.
    - Activations are bfloat16 on TPU and GPU (there float16).
    Fine-tuning at 384: batches of 504 images (there 512), and a warm-up of 12,710 steps
    from 0 (there 5 epochs from 1e-6). The published code takes no teacher here.
    Distillation: the published teacher, RegNetY-16GF (82.9 %), is a convolutional
    network, which this package does not load; it saw the student's images in the
    student's value range and size, here each teacher sees its own.
Command: python -m vit_jax.main --config=configs/deit.py:S/16
    The argument is VARIANT,DATASET and options, in any order after these:
    teacher=MODEL: distillation with a second token and head (DeiT's hard kind); MODEL
        is whatever --config.pretrained reads, and has the classes of the data. The soft
        kind, with the values of the paper: --config.objective_options.kind=soft
        --config.objective_options.alpha=0.1 --config.objective_options.temperature=3.0
    384: fine-tuning at 384 of the run that --config.pretrained names; with teacher=, of
        a distilled run.
    Two small rows: "digits" trains in minutes on a laptop, at 24 pixels and with the
    option 32 at 32; "fashion" on a folder with the files of Fashion-MNIST, by default
    that of Debian's dataset-fashion-mnist, at 20 and with the option 28 at 28.
    For example: --config=configs/deit.py:B/16,imagenet2012,teacher=runs/large and then
    --config=configs/deit.py:B/16,imagenet2012,teacher=runs/large,384
    --config.pretrained=WORKDIR_OF_THE_FIRST
Hardware: as published, 8 V100 for 53 hours (B/16 at 224).
Expected, as published, on ImageNet-2012 at 224: Ti/16 72.2 %, S/16 79.8 %, B/16 81.8 %;
    B/16 at 384 83.1 %. Distilled: Ti/16 74.5 %, S/16 81.2 %, B/16 83.4 %; B/16 at 384
    84.5 %. Not yet measured with this code.
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

# Small row: (data set, low and high resolution, variant, width, depth, heads, crop,
# epochs of training and of fine-tuning).
CROP = "random_resized_crop(area_min=0.6, aspect_min=0.8, aspect_max=1.25)"
FASHION = "/usr/share/datasets/fashion-mnist"
REDUCED = {
    # A mirrored digit is another symbol: no flips.
    "digits": ("digits", (24, 32), "Ti/8", 96, 4, 4, CROP, (60, 10)),
    "fashion": (FASHION, (20, 28), "Ti/4", 96, 6, 4, f"{CROP}|flip_lr", (6, 2)),
}


def get_config(argument="S/16"):
    """Makes the recipe for `VARIANT,DATASET,OPTION,…`, or for a small row."""
    variant, dataset, *options = [*argument.split(","), ""]
    config = default_config()
    config.name = "deit-" + variant.replace("/", "")
    config.model.gelu = "exact"
    config.model.stochastic_depth = 0.1

    config.augment.repeats = 3
    config.mixing.form = "timm"
    config.mixing.mixup_alpha = 0.8
    config.mixing.cutmix_alpha = 1.0
    config.mixing.erasing_prob = 0.25
    config.label_smoothing = 0.1

    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.05
    config.grad_clip_norm = 0.0
    config.schedule = "cosine"
    if variant in REDUCED:
        _small(config, variant, dataset)
        resolution = str(REDUCED[variant][1][1])
    else:
        _full(config, variant, dataset)
        resolution = "384"
    for option in filter(None, options):
        name, _, value = option.partition("=")
        if name == "teacher" and value:
            _distil(config, value)
        elif option == resolution:
            _finetune(config, option)
            (_finetune_small if variant in REDUCED else _finetune_full)(config, variant)
        else:
            raise ValueError(
                f"option {option!r}: choose from teacher=MODEL, {resolution}"
            )
    return config


def _full(config, variant, dataset):
    config.dataset = dataset or "imagenet2012"
    config.model.variant = variant
    config.augment.train = (
        "random_resized_crop|flip_lr|timm_randaugment('rand-m9-mstd0.5-inc1')"
    )
    config.augment.eval = (
        "resize_small(256, 'bicubic_antialias', 'down')"
        "|central_crop(rounding='nearest')"
    )
    # The published rate is 5e-4 for 512 images; 3 repeats need a batch divisible by 3.
    config.batch_size = 1008
    config.warmup_steps = 6_250
    config.total_epochs = 300.0
    config.eval_every = 5_000


def _small(config, name, dataset):
    location, (low, _), variant, width, depth, heads, crop, (epochs, _) = REDUCED[name]
    config.dataset = dataset or location
    config.image_size = (low,)
    config.model.variant = variant
    config.model.width = width
    config.model.depth = depth
    config.model.mlp_dim = 4 * width
    config.model.num_heads = heads
    config.model.channels = 1
    config.augment.train = crop
    config.batch_size = 120
    config.eval_batch_size = 500
    config.loader_threads = 1  # more of them contend, when images are this small
    config.warmup_steps = 60
    config.total_epochs = float(epochs)


def _distil(config, teacher):
    """Adds the second token and its loss, with the defaults of the published code."""
    config.name += "-distilled"
    config.model.distillation_token = True
    config.objective = "distillation"
    config.objective_options = ConfigDict({"teachers": teacher, "kind": "hard"})


def _finetune(config, resolution):
    """Changes to the higher resolution; the heads are kept."""
    config.name += f"-{resolution}"
    config.image_size = (int(resolution),)
    config.pretrained = "runs/deit"
    config.reset_head = False
    config.posemb_resize = "bicubic_torch"


def _finetune_full(config, variant):
    del variant
    config.augment.eval = (
        "resize_small(438, 'bicubic_antialias', 'down')"
        "|central_crop(rounding='nearest')"
    )
    config.batch_size = 504
    config.learning_rate = 5e-6
    config.weight_decay = 1e-8
    config.schedule = "constant"
    config.warmup_steps = 12_710
    config.total_epochs = 30.0


def _finetune_small(config, variant):
    *_, (_, epochs) = REDUCED[variant]
    config.learning_rate = 3e-4
    config.warmup_steps = 20
    config.total_epochs = float(epochs)
