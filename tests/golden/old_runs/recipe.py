"""The runs of version 0.1 that are kept here; make_old_runs.py trained them.

Each argument is a folder beside this file. The recipe must read as it did then: it is
the command line with which such a run is continued.
"""

from vit_jax.config import default_config

RUNS = {
    "adamw": {
        "optimizer": "adamw",
        "grad_clip_norm": 0.5,
        "weight_decay": 0.1,
        "model.dropout_rate": 0.1,
        "model.pre_logits": -1,
    },
    # Judged by the mean loss of the last hundred updates, so there must be a hundred.
    "sgd": {
        "optimizer": "sgd",
        "momentum_dtype": "bfloat16",
        "learning_rate": 3e-3,
        "schedule": "constant",
        "bad_update": "skip",
        "max_loss_spike": 1.01,
        "batch_size": 8,
        "total_steps": 120,
        "checkpoint_every": 110,
    },
    "adafactor": {"optimizer": "adafactor", "weight_decay": 0.03, "loss": "sigmoid"},
    "ema": {
        "ema_decay": 0.9,
        "ema_warmup": True,
        "accum_steps": 2,
        "model.pooling": "gap",
    },
}


def get_config(name):
    """The recipe of one run: a very small Vision Transformer on the digits."""
    config = default_config()
    values = {
        "name": f"old-{name}",
        "dataset": "digits",
        "image_size": (8,),
        "batch_size": 16,
        "eval_batch_size": 360,
        "total_steps": 12,
        "warmup_steps": 2,
        "checkpoint_every": 8,
        "log_every": 1,
        "learning_rate": 1e-2,
        "augment.train": "resize(10)|random_crop",
        "model.variant": "Ti/4",
        "model.width": 32,
        "model.depth": 1,
        "model.mlp_dim": 64,
        "model.num_heads": 2,
        "loader_threads": 2,
    }
    config.update_from_flattened_dict(values | RUNS[name])
    return config
