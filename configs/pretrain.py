"""Pretrains a ViT on a large labelled collection, with one yes-or-no loss per class.

Source: "An Image is Worth 16x16 Words" (arXiv:2010.11929), table 3. The details that it
    leaves open (sigmoid loss, tanh layer before the head, head bias −10, linear decay
    to 1e-5) follow its authors' explanations in google-research/vision_transformer
    issues 2, 34 and 62.
Command: python -m vit_jax.main --config=configs/pretrain.py:B/16,imagenet2012
    The argument is VARIANT,DATASET. The paper has rows for jft300m, imagenet21k and
    imagenet2012; any other name or folder gets the row DEFAULT below.
Hardware: ViT-L/16 on ImageNet-21k took about 30 days on 8 TPUv3 cores.
Expected, as published, on ImageNet-2012 after fine-tuning at 384: B/16 84.0 % from
    ImageNet-21k, 77.9 % from ImageNet-2012 alone. Not yet measured with this code.
"""

from vit_jax.config import default_config

# dataset: ({prefix of the variant's name: (epochs, learning rate)}, of which the first
# match applies; (decay, weight decay, dropout, gradient clipping)).
ROWS = {
    "jft300m": (
        {
            "H": (14, 3e-4),
            "L/16": (14, 4e-4),
            "L": (7, 6e-4),
            "R50+L/32": (7, 2e-4),
            "": (7, 8e-4),
        },
        ("linear", 0.1, 0.0, 0.0),
    ),
    "imagenet21k": ({"": (90, 1e-3)}, ("linear", 0.03, 0.1, 0.0)),
    "imagenet2012": ({"": (300, 3e-3)}, ("cosine", 0.3, 0.1, 1.0)),
}
# For any other dataset: ImageNet-2012's regularisation, a lower learning rate, and a
# length in steps, since its size is unknown.
DEFAULT = ("cosine", 0.3, 0.1, 1.0)
DEFAULT_STEPS, DEFAULT_RATE = 100_000, 1e-3

SPLITS = {"imagenet2012": ("train[:99%]", "validation")}


def get_config(argument="B/16,imagenet2012"):
    """Makes the recipe for `VARIANT,DATASET`."""
    variant, _, dataset = argument.partition(",")
    config = default_config()
    config.name = "pretrain-" + variant.replace("/", "")
    config.dataset = dataset or "imagenet2012"
    config.train_split, config.eval_split = SPLITS.get(config.dataset, ("", ""))
    if config.dataset in ROWS:
        lengths, row = ROWS[config.dataset]
        epochs, config.learning_rate = next(
            length for prefix, length in lengths.items() if variant.startswith(prefix)
        )
        config.total_epochs = float(epochs)
    else:
        row = DEFAULT
        config.total_steps, config.learning_rate = DEFAULT_STEPS, DEFAULT_RATE
    schedule, decay, dropout, clip = row
    config.schedule, config.end_learning_rate = schedule, 1e-5
    config.weight_decay, config.grad_clip_norm = decay, clip

    config.model.variant = variant
    config.model.dropout_rate = dropout
    config.model.pre_logits = -1
    config.model.head_bias = -10.0
    config.loss = "sigmoid"
    config.image_size = (224,)
    config.augment.train = "inception_crop|flip_lr"
    config.augment.eval = "resize_small(256)|central_crop"
    config.batch_size = 4096
    config.optimizer = "adamw"
    config.warmup_steps = 10_000
    config.eval_every = 10_000
    config.checkpoint_every = 1_000
    return config
