"""Pretrains a Vision Transformer without labels, by self-distillation (DINO).

Source: "Emerging Properties in Self-Supervised Vision Transformers" (arXiv:2104.14294)
    and the defaults of its published code: 64 images per GPU, here for 16 GPUs, whose
    number is from memory of the paper.
    S/16: the last layer is not normalised, as the code advises. Its teacher's
    temperature rises from 0.04 to 0.07 over 30 epochs; these two numbers are from
    memory of the published runs, not from the code's defaults, which keep 0.04.
    B/16: the code's defaults.
    Other than published:
    - Positions are interpolated to the grid of the small views; the published code adds
      0.1 to its sides before it computes the scale, which moves them a little.
    - The warm-up reaches the peak one step later (there with its last step).
    - An epoch is the number of images over the batch (there rounded down to whole
      batches).
    - Activations are bfloat16 on TPU and GPU (there float16).
Command: python -m vit_jax.main --config=configs/dino.py:S/16
    The argument is VARIANT or VARIANT,DATASET; any other data set is taken with
    ImageNet's row. Two small rows: "digits" trains in minutes on a laptop, "fashion" on
    a folder with the files of Fashion-MNIST, by default that of Debian's
    dataset-fashion-mnist; "fashion,FOLDER" is another.
    The result is the teacher: --config.pretrained=WORKDIR fine-tunes it.
Hardware: the small rows, two CPU cores. For the others nothing is measured yet.
Expected: the evaluator knn reports what the features are worth, the published k-NN
    protocol at 20 neighbours. Not yet measured at full size. The row of Fashion-MNIST:
    70.9 %, from random weights 66.8 %, by the pixels 84.3 % (docs/results.md).
"""

from ml_collections import ConfigDict

from vit_jax.config import default_config

IMAGENET = 1_281_167  # training images

# Prefix of the variant: options of the objective that differ from the defaults.
ROWS = {
    "S": {
        "norm_last_layer": False,
        "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
    },
    "": {},
}

# Crops that leave a small picture readable, without colours; a mirrored digit is
# another symbol, a mirrored shoe a shoe.
CROP = "random_resized_crop(area_min={}, area_max={})"
FASHION = "/usr/share/datasets/fashion-mnist"
# Small row: (data set, image size, variant, width, depth, heads, what follows the crop,
# batch, epochs, options).
REDUCED = {
    "digits": (
        *("digits", 32, "Ti/8", 96, 4, 4),
        *("color_jitter(0.4, 0.4)|blur(prob=0.2)", 64, 40),
        {"out_dim": 1024, "hidden_dim": 256, "bottleneck_dim": 64},
    ),
    "fashion": (
        *(FASHION, 28, "Ti/7", 96, 4, 4),
        *("flip_lr|color_jitter(0.4, 0.4, prob=0.8)|blur(0.1, 1.0, prob=0.2)", 64, 3),
        # Two small views: of more, loading would take longer than the steps.
        {
            **{"out_dim": 1024, "hidden_dim": 256, "bottleneck_dim": 64},
            "local_crops_number": 2,
        },
    ),
}


def get_config(argument="S/16"):
    """Makes the recipe for `VARIANT,DATASET`, or for a small row."""
    variant, _, dataset = argument.partition(",")
    config = default_config()
    config.name = "dino-" + variant.replace("/", "")
    config.objective = "self_distillation"
    config.model.gelu = "exact"
    config.model.stochastic_depth = 0.1
    config.posemb_resize = "bicubic_torch"
    config.optimizer = "adamw"
    config.schedule = "cosine"
    config.weight_decay = 0.04
    config.weight_decay_end = 0.4
    # The published code leaves out biases and whatever has a single dimension. Lengths
    # of the last layer's weights are a column there, which decays.
    config.weight_decay_on = (
        r".*kernel|cls|pos_embed\w*|projection_head/last_layer/scale"
    )
    config.grad_clip_norm = 0.0
    config.grad_clip_parameter_norm = 3.0
    if variant in REDUCED:
        _small(config, variant, dataset)
    else:
        _full(config, variant, dataset)
    return config


def _full(config, variant, dataset):
    config.dataset = dataset or "imagenet2012"
    config.normalization = "imagenet"
    config.model.variant = variant
    options = next(row for prefix, row in ROWS.items() if variant.startswith(prefix))
    config.objective_options = ConfigDict(
        {
            "out_dim": 65_536,
            "norm_last_layer": True,
            "freeze_last_layer": 1,
            "momentum_teacher": 0.996,
            "warmup_teacher_temp": 0.04,
            "teacher_temp": 0.04,
            "warmup_teacher_temp_epochs": 0,
            "global_crops_scale": (0.4, 1.0),
            "local_crops_number": 8,
            "local_crops_scale": (0.05, 0.4),
            **options,
        }
    )
    config.augment.eval = (
        "resize_small(256, 'bicubic_antialias', 'down')"
        "|central_crop(rounding='nearest')"
    )
    config.batch_size = 1024
    config.learning_rate = 5e-4 * 1024 / 256
    config.min_learning_rate = 1e-6
    config.total_epochs = 100.0
    config.warmup_steps = round(10 * IMAGENET / 1024)
    config.evaluators = ConfigDict({"knn": {"kind": "knn", "every": 12_500, "k": 20}})


def _small(config, name, dataset):
    location, side, variant, width, depth, heads, colours, batch, epochs, options = (
        REDUCED[name]
    )
    config.dataset = dataset or location
    config.image_size = (side,)
    config.model.variant = variant
    config.model.width = width
    config.model.depth = depth
    config.model.mlp_dim = 4 * width
    config.model.num_heads = heads
    config.model.channels = 1
    config.objective_options = ConfigDict(
        {
            "norm_last_layer": True,
            "freeze_last_layer": 1,
            # The batch is smaller than the published one, so the teacher is slower.
            "momentum_teacher": 0.99,
            "warmup_teacher_temp": 0.04,
            "teacher_temp": 0.04,
            "warmup_teacher_temp_epochs": 0,
            "local_crops_number": 4,
            "first_chain": f"{CROP.format(0.4, 1.0)}|{colours}",
            "second_chain": f"{CROP.format(0.4, 1.0)}|{colours}",
            "local_chain": f"{CROP.format(0.15, 0.4)}|{colours}",
            **options,
        }
    )
    config.model.stochastic_depth = 0.0
    config.batch_size = batch
    config.eval_batch_size = 500
    config.loader_threads = 1  # more of them contend, when images are this small
    config.learning_rate = 1e-3
    config.min_learning_rate = 1e-6
    config.total_epochs = float(epochs)
    config.warmup_steps = 100
    config.evaluators = ConfigDict({"knn": {"kind": "knn", "every": 0, "k": 20}})
