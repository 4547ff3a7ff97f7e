"""The valid values of config keys, each from the table that implements them.

`vit_jax.config` checks values against these without importing the tables.
"""

from collections.abc import Collection, Mapping

from vit_jax.data.loading.batches import EVAL_POLICIES, TRAIN_POLICIES
from vit_jax.data.loading.order import SAMPLING
from vit_jax.data.preprocessing import NORMALIZATIONS
from vit_jax.models import architecture
from vit_jax.models.attention.formulations import IMPLEMENTATIONS
from vit_jax.models.dropout import DEPTH_FORMS
from vit_jax.models.encoder import REMAT
from vit_jax.models.positions import METHODS
from vit_jax.objectives.losses import LOSSES
from vit_jax.objectives.mixing import FILLS, FORMS
from vit_jax.optim.chain import MOMENTUM_DTYPES
from vit_jax.optim.guard import BAD_UPDATES
from vit_jax.optim.layers import FORMS as LAYER_FORMS
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.optim.schedules import SCHEDULES
from vit_jax.train.model_from_config import SWITCHES

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
SAVE_FROZEN = ("auto", "yes", "no")

CHOICES: Mapping[str, Collection[str]] = {
    "bad_images": TRAIN_POLICIES,
    "eval_bad_images": EVAL_POLICIES,
    "bad_update": BAD_UPDATES,
    "sampling": SAMPLING,
    "normalization": ("", *NORMALIZATIONS),
    "mixing.form": FORMS,
    "mixing.erasing_mode": FILLS,
    "model.pooling": architecture.CHOICES["pooling"],
    "model.class_token": SWITCHES,
    "model.class_token_position": SWITCHES,
    "model.norm": architecture.CHOICES["norm"],
    "model.posemb": architecture.CHOICES["posemb"],
    "model.sincos_denominator": architecture.CHOICES["sincos_denominator"],
    "model.gelu": architecture.CHOICES["gelu"],
    "model.stochastic_depth_form": DEPTH_FORMS,
    "model.attention": IMPLEMENTATIONS,
    "model.remat": REMAT,
    "posemb_resize": METHODS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "layer_decay_form": LAYER_FORMS,
    "momentum_dtype": MOMENTUM_DTYPES,
    "schedule": SCHEDULES,
    "compute_dtype": COMPUTE_DTYPES,
    "save_frozen": SAVE_FROZEN,
}
