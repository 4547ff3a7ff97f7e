"""The choices that the config offers are those that are implemented."""

import pytest

from vit_jax.data.loading.batches import EVAL_POLICIES, TRAIN_POLICIES
from vit_jax.data.loading.order import SAMPLING
from vit_jax.data.preprocessing import NORMALIZATIONS
from vit_jax.models.attention.formulations import IMPLEMENTATIONS
from vit_jax.models.dropout import DEPTH_FORMS
from vit_jax.models.encoder import REMAT
from vit_jax.models.layers import GELU
from vit_jax.models.positions import DENOMINATORS, METHODS
from vit_jax.objectives.losses import LOSSES
from vit_jax.objectives.mixing import FILLS, FORMS
from vit_jax.optim.layers import FORMS as LAYER_FORMS
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.optim.schedules import SCHEDULES
from vit_jax.train.choices import CHOICES
from vit_jax.train.model_from_config import SWITCHES

TABLES = {
    "bad_images": TRAIN_POLICIES,
    "eval_bad_images": EVAL_POLICIES,
    "sampling": SAMPLING,
    "normalization": ["", *NORMALIZATIONS],
    "mixing.form": FORMS,
    "model.class_token": SWITCHES,
    "model.class_token_position": SWITCHES,
    "model.stochastic_depth_form": DEPTH_FORMS,
    "mixing.erasing_mode": FILLS,
    "model.gelu": GELU,
    "model.sincos_denominator": DENOMINATORS,
    "model.attention": IMPLEMENTATIONS,
    "model.remat": REMAT,
    "posemb_resize": METHODS,
    "loss": LOSSES,
    "layer_decay_form": LAYER_FORMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
# Distinguished by branches, so an additional choice would be taken for one of these.
BRANCHES = {
    "bad_update": ["stop", "skip"],  # test_guard.py
    "model.pooling": ["cls", "gap", "map", "cls_gap"],  # test_vit.py
    "model.posemb": ["learned", "sincos2d"],  # test_posemb.py
    "model.norm": ["before_pool", "after_pool"],  # test_vit.py
    "momentum_dtype": ["float32", "bfloat16"],  # test_optimizers.py
    "compute_dtype": ["auto", "float32", "bfloat16"],  # test_setup.py
    "save_frozen": ["auto", "yes", "no"],  # test_adapters.py
}


@pytest.mark.parametrize("key", CHOICES)
def test_the_choices_are_exactly_those_implemented(key):
    assert sorted(CHOICES[key]) == sorted((TABLES | BRANCHES)[key])
