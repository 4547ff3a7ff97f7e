"""Pretrains a masked autoencoder (MAE), and fine-tunes or probes its encoder.

Source: "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377), tables 8
    to 11, with the values of its published code where both differ: fine-tuning of B
    with a rate of 5e-4 for 256 images and a decay per layer of 0.65, stochastic depth
    of 0.1, 0.2 and 0.3, random erasing. Other than published:
    - Mixup or CutMix is drawn once per step (there once per GPU, for its images).
    - Activations are bfloat16 on TPU and GPU (there float16; in the paper float32).
Command: python -m vit_jax.main --config=configs/mae.py:pretrain,B --workdir=mae-B
    python -m vit_jax.main --config=configs/mae.py:finetune,B \
        --config.pretrained=mae-B
    python -m vit_jax.main --config=configs/mae.py:probe,B --config.pretrained=mae-B
    The argument is MODE,SIZE or MODE,SIZE,DATASET. Sizes are B, L, H, and two small
    ones for a CPU: "digits", and "fashion", whose data set is a folder with the files
    of Fashion-MNIST, by default that of Debian's dataset-fashion-mnist. These pretrain
    with --workdir=mae-digits and =mae-fashion, where the other modes look for them. The
    warm-up of B, L and H is that of ImageNet-2012: for other data, set
    --config.warmup_steps.
    To fine-tune from the class token and the pretrained norm, as in the paper's TPU
    runs, add --config.model.pooling=cls --config.model.norm=before_pool. To probe the
    mean of the patches: --config.model.pooling=gap --config.model.class_token=on.
Weights: without --config.pretrained, fine-tuning and probing of B, L and H start from
    the published encoders. Their licence is CC-BY-NC 4.0: no commercial use.
Hardware, as published: L, 800 epochs of pretraining, 42 hours on 64 V100; fine-tuning
    of B 7 hours and of L 9 hours on 32 V100, of H 13 hours on 64; probing of B 2 hours
    20 minutes on 32.
Expected, as published, on ImageNet-2012 at 224, after 1600 epochs: fine-tuned B 83.6 %,
    L 85.9 %, H 86.9 %; probed B 68.0 %, L 75.8 %, H 76.6 %. L after 800 epochs: 85.4 %.
    This code: not yet measured at full size. The row of Fashion-MNIST: after 4 epochs
    without labels and 15 on 2,000 labels 77.6 %, from random weights 59.4 %
    (docs/results.md).
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

IMAGENET = 1_281_167  # training images

# Size: (variant, published encoder, fine-tuning: (epochs, rate for 256 images, decay
# per layer, stochastic depth), epochs of probing).
SIZES = {
    "B": ("B/16", "vit_base_patch16_224.mae", (100, 5e-4, 0.65, 0.1), 90),
    "L": ("L/16", "vit_large_patch16_224.mae", (50, 1e-3, 0.75, 0.2), 50),
    "H": ("H/14", "vit_huge_patch14_224.mae", (50, 1e-3, 0.75, 0.3), 50),
}
# Small size: (data set, image size, variant, width, depth, heads, crop, epochs of
# pretraining, fine-tuning and probing).
CROP = "random_resized_crop(area_min=0.6, aspect_min=0.8, aspect_max=1.25)"
FASHION = "/usr/share/datasets/fashion-mnist"
REDUCED = {
    # A mirrored digit is another symbol: no flips.
    "digits": ("digits", 32, "Ti/8", 96, 4, 4, CROP, (60, 20, 20)),
    "fashion": (FASHION, 28, "Ti/4", 96, 6, 4, f"{CROP}|flip_lr", (4, 5, 5)),
}


def get_config(argument="pretrain,B"):
    """Makes the recipe for `MODE,SIZE` or `MODE,SIZE,DATASET`."""
    mode, _, rest = argument.partition(",")
    size, _, dataset = rest.partition(",")
    size = size or "B"
    if mode not in MODES:
        raise ValueError(f"mae.py:{argument}: choose from {', '.join(MODES)}")
    if size not in {**SIZES, **REDUCED}:
        sizes = ", ".join({**SIZES, **REDUCED})
        raise ValueError(f"mae.py:{argument}: choose a size from {sizes}")
    config = default_config()
    config.name = f"mae-{mode}-{size}"
    config.model.gelu = "exact"
    config.grad_clip_norm = 0.0
    config.schedule = "cosine"
    full, small = MODES[mode]
    if size in SIZES:
        config.dataset = dataset or "imagenet2012"
        config.model.variant = SIZES[size][0]
        config.normalization = "imagenet"
        config.augment.eval = (
            "resize_small(256, 'bicubic_antialias', 'down')"
            "|central_crop(rounding='nearest')"
        )
        full(config, size)
        config.eval_every = 5_000
    else:
        _small_model(config, size, dataset)
        small(config, size)
    return config


def _pretrain(config, **decoder):
    config.objective = "masked_autoencoding"
    config.objective_options = ConfigDict(
        {"mask_ratio": 0.75, "normalize_pixels": True, **decoder}
    )
    config.model.posemb = "sincos2d"
    config.model.sincos_denominator = "mae"
    config.optimizer = "adamw"
    config.b2 = 0.95
    config.weight_decay = 0.05
    # The published code leaves out only what has a single dimension.
    config.weight_decay_on = ".*kernel|cls|decoder/mask_token"


def _pretrain_full(config, size):
    del size
    _pretrain(config)
    config.augment.train = "random_resized_crop(area_min=0.2)|flip_lr"
    _length(config, epochs=800, warmup=40, batch_size=4096)
    config.learning_rate = 1.5e-4 * 4096 / 256


def _pretrain_small(config, size):
    *_, crop, (epochs, _, _) = REDUCED[size]
    _pretrain(config, decoder_width=64, decoder_depth=2, decoder_heads=4)
    config.augment.train = crop
    config.learning_rate = 2e-3
    config.warmup_steps = 60
    config.total_epochs = float(epochs)
    # How good the features are without a head, at the end.
    config.evaluators = ConfigDict({"knn": {"kind": "knn", "every": 0}})


def _finetune(config):
    # Positions begin with the fixed values and are trained too. The head reads the mean
    # of the patches, through a new norm.
    config.model.pooling = "gap"
    config.model.class_token = "on"
    config.model.norm = "after_pool"
    config.model.head_std = 2e-5
    config.posemb_resize = "bicubic_torch"
    config.optimizer = "adamw"
    config.weight_decay = 0.05
    config.mixing.form = "timm"
    config.mixing.mixup_alpha = 0.8
    config.mixing.cutmix_alpha = 1.0
    config.label_smoothing = 0.1
    config.min_learning_rate = 1e-6


def _finetune_full(config, size):
    _, config.pretrained, row, _ = SIZES[size]
    epochs, rate, config.layer_decay, config.model.stochastic_depth = row
    _finetune(config)
    config.mixing.erasing_prob = 0.25
    config.augment.train = (
        "random_resized_crop|flip_lr|timm_randaugment('rand-m9-mstd0.5-inc1')"
    )
    _length(config, epochs=epochs, warmup=5, batch_size=1024)
    config.learning_rate = rate * 1024 / 256


def _finetune_small(config, size):
    *_, crop, (_, epochs, _) = REDUCED[size]
    _finetune(config)
    config.pretrained = f"mae-{size}"
    config.augment.train = crop
    # So short a run has no time to profit from mixed images.
    config.mixing.mixup_alpha = config.mixing.cutmix_alpha = 0.0
    config.layer_decay = 0.75
    config.learning_rate = 2e-3
    config.warmup_steps = 40
    config.total_epochs = float(epochs)


def _probe(config):
    config.objective = "linear_probe"
    config.model.head_std = 0.01
    config.posemb_resize = "bicubic_torch"
    config.momentum = 0.9


def _probe_full(config, size):
    _, config.pretrained, _, epochs = SIZES[size]
    _probe(config)
    config.optimizer = "lars"
    config.augment.train = "random_resized_crop(retry=False)|flip_lr"
    _length(config, epochs=epochs, warmup=10, batch_size=16_384)
    config.learning_rate = 0.1 * 16_384 / 256


def _probe_small(config, size):
    *_, crop, (_, _, epochs) = REDUCED[size]
    _probe(config)
    config.pretrained = f"mae-{size}"
    config.augment.train = crop
    config.optimizer = "sgd"  # LARS is for large batches
    config.learning_rate = 0.3
    config.warmup_steps = 20
    config.total_epochs = float(epochs)


def _length(config, epochs, warmup, batch_size):
    """Sets batch and length; the warm-up in steps is that of ImageNet-2012."""
    config.batch_size = batch_size
    config.total_epochs = float(epochs)
    config.warmup_steps = round(warmup * IMAGENET / batch_size)


def _small_model(config, size, dataset):
    location, side, variant, width, depth, heads, *_ = REDUCED[size]
    config.dataset = dataset or location
    config.image_size = (side,)
    config.model.variant = variant
    config.model.width = width
    config.model.depth = depth
    config.model.mlp_dim = 4 * width
    config.model.num_heads = heads
    config.model.channels = 1
    config.batch_size = 128
    config.eval_batch_size = 500
    config.loader_threads = 1  # more of them contend, when images are this small


# Mode: (recipe of B, L and H, recipe of the small sizes).
MODES = {
    "pretrain": (_pretrain_full, _pretrain_small),
    "finetune": (_finetune_full, _finetune_small),
    "probe": (_probe_full, _probe_small),
}
