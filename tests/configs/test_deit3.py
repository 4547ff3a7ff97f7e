"""The recipe of DeiT III: the published values, and how its parts fit together."""

import jax
import numpy as np
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.schedules import make_schedule
from vit_jax.train.setup import set_up


@pytest.mark.parametrize(
    ("size", "variant", "side", "rate", "depth"),
    [
        ("S", "S/16", 224, 4e-3, 0.05),
        ("B", "B/16", 192, 3e-3, 0.2),
        ("L", "L/16", 192, 3e-3, 0.45),
        ("H", "H/14", 154, 3e-3, 0.6),
    ],
)
def test_published_pretraining(size, variant, side, rate, depth, load):
    config = load("deit3", f"pretrain,{size},800")
    assert (config.model.variant, config.image_size) == (variant, (side,))
    assert (config.learning_rate, config.model.stochastic_depth) == (rate, depth)
    assert config.model.stochastic_depth_form == "constant"
    assert (config.total_epochs, config.weight_decay) == (800, 0.05)
    assert (config.warmup_learning_rate, config.min_learning_rate) == (1e-6, 1e-5)
    assert (config.optimizer, config.b1, config.b2) == ("lamb", 0.9, 0.999)
    # As many times the published values as there are classes; see the next test.
    assert (config.grad_clip_norm, config.eps) == (1000.0, pytest.approx(1e-5))
    mixing = config.mixing
    assert (mixing.form, mixing.mixup_alpha, mixing.cutmix_alpha) == ("timm", 0.8, 1.0)
    assert (config.loss, mixing.binary_targets) == ("sigmoid", True)
    assert (config.label_smoothing, mixing.erasing_prob) == (0, 0)
    assert (config.augment.repeats, config.batch_size % 96) == (3, 0)
    assert config.augment.train == (
        "random_resized_crop|flip_lr|three_augment|color_jitter(0.3, 0.3, 0.3)"
    )
    setup = set_up(config)
    architecture = setup.architecture
    assert architecture.class_token and not architecture.class_token_position
    assert (architecture.gelu, architecture.layer_scale) == ("exact", True)
    assert setup.model.layer_scale_init == 1e-4
    assert setup.preprocessing.std == (0.229, 0.224, 0.225)
    rates = make_schedule(setup.config)
    total, warm = setup.config.total_steps, setup.config.warmup_steps
    assert warm == round(5 * 1_281_167 / 2016)
    for step, expected in ((0, 1e-6), (warm, rate), (total, 1e-5)):
        assert float(rates(step)) == pytest.approx(expected, rel=1e-4)


def test_four_hundred_epochs(load):
    rows = {"S": 0.0, "B": 0.1, "L": 0.4, "H": 0.5}
    for size, depth in rows.items():
        config = load("deit3", f"pretrain,{size},400")
        assert (config.total_epochs, config.weight_decay) == (400, 0.02)
        assert config.model.stochastic_depth == depth
        set_up(config)


@pytest.mark.parametrize(
    ("argument", "depth"),
    [
        ("B,224", 0.2),
        ("L,224", 0.45),
        ("H,224", 0.55),
        ("S,384", 0.0),
        ("B,384", 0.15),
        ("L,384", 0.4),
    ],
)
def test_published_fine_tuning(argument, depth, load):
    config = load("deit3", f"finetune,{argument}")
    assert config.image_size == (int(argument[2:]),)
    assert config.model.stochastic_depth == depth
    assert (config.optimizer, config.learning_rate) == ("adamw", 1e-5)
    assert (config.weight_decay, config.batch_size) == (0.1, 512)
    assert (config.total_epochs, config.augment.repeats) == (20, 1)
    assert (config.loss, config.label_smoothing) == ("softmax", 0.1)
    assert not config.reset_head and not config.mixing.binary_targets
    assert "timm_randaugment('rand-m9-mstd0.5-inc1')" in config.augment.train
    assert config.warmup_steps == round(5 * 1_281_167 / 512)
    assert not set_up(config).architecture.class_token_position


@pytest.mark.parametrize(
    "argument",
    ["train,B", "pretrain,XL", "pretrain,B,300", "finetune,S,224", "finetune,H,384"],
)
def test_other_arguments_are_refused(argument, load):
    with pytest.raises(UserError, match=f"deit3.py:{argument}: choose "):
        load("deit3", argument)


def test_a_sum_over_the_classes_has_the_updates_of_the_mean():
    """Clipping and epsilon grow with the gradients, so LAMB's directions are equal."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    found = []
    for classes in (1, 10):
        config = default_config()
        config.update(optimizer="lamb", weight_decay=0.05)
        config.update(grad_clip_norm=1.0 * classes, eps=1e-8 * classes)
        optimizer = make_optimizer(config, params)
        state = optimizer.init(params)
        # Below the limit, far above it, and near epsilon.
        for size in (1e-3, 10.0, 1e-7):
            grads = {name: x * size * classes for name, x in params.items()}
            directions, state = optimizer.update(grads, state, params)
        found.append(directions)
    for name in params:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "grids"),
    [
        ("B,800", "B,224", "12×12 to 14×14"),
        ("S,400", "S,384", "14×14 to 24×24"),
        ("digits", "digits", "3×3 to 4×4"),
    ],
)
def test_fine_tuning_starts_from_pretraining(first, second, grids, load, fitted):
    shallow = "--config.model.depth=1"  # one block is like another
    params, fitting, lines = fitted(
        load("deit3", f"pretrain,{first}", shallow),
        load("deit3", f"finetune,{second}", shallow),
    )
    assert lines == [
        "the pretrained head was trained for a yes or no for each class (sigmoid), and "
        "this run continues it as classes that exclude each other (softmax)",
        f"pretrained weights: position embeddings resized from {grids} (bicubic_torch)",
    ]
    # Even the head stays.
    for name in params.keys() - {"pos_embed"}:
        jax.tree.map(np.testing.assert_array_equal, fitting[name], params[name])
