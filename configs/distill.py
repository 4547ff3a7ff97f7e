"""Trains a student to compute the function of a larger teacher (function matching).

Source: "Knowledge distillation: A good teacher is patient and consistent"
    (arXiv:2106.05237), figure 3 and table 4, with the values of big_vision's bit_i1k.py
    (LENGTH "bit"), bigsweep_flowers_pet.py and bigsweep_food_sun.py; for ViTs, those of
    FlexiViT's i1k_deit3_distill.py (arXiv:2212.08013). Labels are not used: the loss is
    T² KL(teacher || student) on the same random crop, of 5 to 100 % of the image, with
    mixup in every step. Other than published:
    - Student and teacher are whatever models this package has (there BiT-R50 and
      BiT-R152x2, and for FlexiViT a DeiT III as both; there too, the student starts
      from the teacher: --config.pretrained=…). The learning rates of "bit" and of the
      small sets suit a BiT; for a ViT, begin with --config.learning_rate=1e-3.
    - FlexiViT's student is a flexible one at 240 pixels.
    - Mixup pairs an image with its neighbour in the whole batch (big_vision: among
      those of the same device).
    - The rows of digits and fashion-mnist are our own.
Command: python -m vit_jax.main --config=configs/distill.py:S/16,imagenet2012 \
        --config.objective_options.teachers=MODEL
    The argument is VARIANT,DATASET,LENGTH. MODEL is whatever --config.pretrained reads
    (README, "Load weights from anywhere"), by default AugReg's B/16 at 384; several are
    separated by ";". A teacher sees images of its own training's size. LENGTH: for
    imagenet2012 90, 300, 600 or 1200 epochs for ViTs, or "bit"; for oxford_flowers102,
    oxford_iiit_pet, food101 and sun397 fast, medium or long. Any other data set gets
    the row of ImageNet. In minutes, with two runs, on a laptop:
    python -m vit_jax.main --config=configs/distill.py:teacher,digits
    python -m vit_jax.main --config=configs/distill.py:student,digits \
        --config.objective_options.teachers=WORKDIR_OF_THE_FIRST
    control,digits is the student without a teacher. The folder of Fashion-MNIST's files
    (.../fashion-mnist) takes the place of digits.
Hardware: as published, 300 epochs of bit_i1k.py took 15 hours on 32 TPUv3 cores; fast
    runs 70 minutes (Flowers), 28 (Pet) and 45 (Food) on 8 TPUv2 cores.
Expected, as published, on ImageNet-2012 at 224: BiT-R50 82.8 % from a teacher of
    83.0 %. Not yet measured at full size with this code. The row of Fashion-MNIST, on
    2,000 images: 73.7 % with a teacher of 81.3 %, 72.5 % without (docs/results.md).
"""

import os

from ml_collections import ConfigDict

from vit_jax.config import default_config

# The teacher if none is named: AugReg's recommended B/16, 85.49 % at 384.
TEACHER = (
    "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    "--imagenet2012-steps_20k-lr_0.03-res_384"
)

# dataset: {length: (epochs, temperature, learning rate, weight decay)}; the first is
# the default. Decay is as published, where the learning rate does not multiply it.
SMALL = {
    "oxford_flowers102": {
        "medium": (100_000, 1.0, 0.001, 1e-4),
        "fast": (10_000, 10.0, 0.003, 3e-4),
        "long": (1_000_000, 1.0, 0.0003, 1e-5),
    },
    "oxford_iiit_pet": {
        "medium": (3_000, 10.0, 0.003, 3e-4),
        "fast": (1_000, 5.0, 0.01, 1e-3),
        "long": (30_000, 2.0, 0.003, 1e-5),
    },
    "food101": {
        "medium": (1_000, 10.0, 0.001, 3e-4),
        "fast": (100, 10.0, 0.01, 1e-3),
        "long": (3_000, 5.0, 0.01, 1e-4),
    },
    "sun397": {
        "medium": (1_000, 10.0, 0.001, 1e-4),
        "fast": (100, 10.0, 0.01, 1e-3),
        "long": (3_000, 10.0, 0.01, 3e-5),
    },
}
# length: (batch size, epochs, learning rate, weight decay).
IMAGENET = {
    "300": (1024, 300, 1e-4, 1e-5),
    "90": (1024, 90, 1e-4, 1e-5),
    "600": (1024, 600, 1e-4, 1e-5),
    "1200": (1024, 1200, 1e-4, 1e-5),
    "bit": (4096, 1200, 0.03, 3e-4),
}
SPLITS = {
    "oxford_flowers102": ("train", "validation"),
    "oxford_iiit_pet": ("train[:90%]", "train[90%:]"),
    "food101": ("train[:90%]", "train[90%:]"),
    "sun397": ("train", "validation"),
    "imagenet2012": ("train[:98%]", "validation"),
}
# Rows that train on two CPU cores: (variant, pixels, channels, crop); the student's
# mixup, for which a short run has no time; for teacher and student (width, depth,
# heads, epochs).
REDUCED = {
    "digits": (
        ("Ti/2", 8, 1, "inception_crop(area_min=0.6, aspect_min=0.8, aspect_max=1.25)"),
        1.0,
        {"teacher": (96, 6, 4, 60.0), "student": (32, 2, 2, 60.0)},
    ),
    "fashion-mnist": (
        ("Ti/4", 28, 1, "random_crop(padding=2)|flip_lr"),
        0.0,
        {"teacher": (96, 6, 4, 5.0), "student": (48, 3, 3, 5.0)},
    ),
}


def get_config(argument="S/16,imagenet2012"):
    """Makes the recipe for `VARIANT,DATASET,LENGTH`, or for `PART,DATASET`."""
    variant, dataset, length = [*argument.split(","), "", ""][:3]
    config = default_config()
    config.name = "distill-" + variant.replace("/", "")
    config.dataset = dataset or "imagenet2012"
    config.augment.train = "inception_crop|flip_lr"
    config.optimizer = "adamw"
    config.grad_clip_norm = 1.0
    config.schedule = "cosine"
    reduced = REDUCED.get(os.path.basename(config.dataset.rstrip("/")))
    if variant in ("teacher", "student", "control"):
        if reduced is None:
            raise ValueError(
                f"{variant} is a part of {' and '.join(REDUCED)}, not of {dataset}; "
                "name a variant, such as S/16"
            )
        _reduced(config, variant, *reduced)
    else:
        config.model.variant = variant
        _full(config, length)
    return config


def _full(config, length):
    dataset = config.dataset
    config.train_split, config.eval_split = SPLITS.get(dataset, ("", ""))
    rows = SMALL.get(dataset, IMAGENET)
    length = length or next(iter(rows))
    if length not in rows:
        raise ValueError(f"length {length!r}: choose from {', '.join(rows)}")
    if dataset in SMALL:
        epochs, temperature, rate, decay = rows[length]
        config.image_size = (128,)
        config.augment.eval = "resize_small(160)|central_crop"
        config.batch_size, config.warmup_steps = 512, 1_500
        config.eval_every = 500
    else:
        config.batch_size, epochs, rate, decay = rows[length]
        temperature = 1.0
        config.augment.eval = "resize_small(256)|central_crop"
        config.warmup_steps = 5_000
        config.eval_every = 1_000
    config.momentum_dtype = "bfloat16"
    config.learning_rate, config.total_epochs = rate, float(epochs)
    config.weight_decay = decay / rate  # here, the learning rate multiplies it
    _match(config, TEACHER, temperature)


def _reduced(config, part, data, mixup, sizes):
    variant, side, channels, crop = data
    width, depth, heads, epochs = sizes["teacher" if part == "teacher" else "student"]
    config.image_size = (side,)
    config.augment.train = crop
    config.model.variant, config.model.channels = variant, channels
    config.model.width, config.model.depth = width, depth
    config.model.mlp_dim, config.model.num_heads = 4 * width, heads
    config.batch_size = 240 if side > 8 else 64
    config.eval_batch_size = 500
    config.loader_threads = 1  # more of them contend, when images are this small
    config.total_epochs, config.warmup_steps = epochs, 100
    config.learning_rate, config.weight_decay = 2e-3, 0.05
    config.eval_every = 0
    if part == "student":
        _match(config, "", 2.0)
        config.mixing.mixup_alpha = mixup
    else:
        config.label_smoothing = 0.1


def _match(config, teachers, temperature):
    config.mixing.mixup_alpha = 1.0
    config.objective = "distillation"
    config.objective_options = ConfigDict(
        {
            "teachers": teachers,
            "kind": "matching",
            "distance": "kl",
            "temperature": temperature,
        }
    )
