"""The recipe of masked autoencoders: published values, and its parts together."""

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models.positions import sincos2d
from vit_jax.train.setup import set_up

IMAGENET = 1_281_167
SHALLOW = "--config.model.depth=1"  # one block is like another


@pytest.mark.parametrize(
    ("size", "variant", "epochs", "rate", "layer_decay", "depth"),
    [
        ("B", "B/16", 100, 2e-3, 0.65, 0.1),
        ("L", "L/16", 50, 4e-3, 0.75, 0.2),
        ("H", "H/14", 50, 4e-3, 0.75, 0.3),
    ],
)
def test_published_fine_tuning(size, variant, epochs, rate, layer_decay, depth, load):
    config = load("mae", f"finetune,{size}")
    assert (config.model.variant, config.total_epochs) == (variant, epochs)
    assert config.learning_rate == pytest.approx(rate)
    assert (config.layer_decay, config.model.stochastic_depth) == (layer_decay, depth)
    assert config.model.stochastic_depth_form == "linear"
    assert (config.batch_size, config.weight_decay) == (1024, 0.05)
    assert (config.b1, config.b2, config.min_learning_rate) == (0.9, 0.999, 1e-6)
    assert config.warmup_steps == round(5 * IMAGENET / 1024)
    assert (config.model.head_std, config.grad_clip_norm) == (2e-5, 0.0)
    mixing = config.mixing
    assert (mixing.form, mixing.mixup_alpha, mixing.cutmix_alpha) == ("timm", 0.8, 1.0)
    assert (mixing.erasing_prob, config.label_smoothing) == (0.25, 0.1)
    architecture = set_up(config).architecture
    assert (architecture.pooling, architecture.norm) == ("gap", "after_pool")
    assert architecture.class_token and architecture.class_token_position
    assert (architecture.gelu, architecture.posemb) == ("exact", "learned")


def test_published_pretraining(load):
    config = load("mae", "pretrain,L")
    assert (config.batch_size, config.total_epochs) == (4096, 800)
    assert config.learning_rate == pytest.approx(2.4e-3)
    assert (config.b1, config.b2, config.weight_decay) == (0.9, 0.95, 0.05)
    assert config.warmup_steps == round(40 * IMAGENET / 4096)
    assert config.min_learning_rate == 0
    assert config.augment.train == "random_resized_crop(area_min=0.2)|flip_lr"
    setup = set_up(config)
    assert setup.preprocessing.mean == (0.485, 0.456, 0.406)
    decays = {path for path, group in setup.groups.by_path.items() if group.decay}
    shapes = jax.tree.leaves_with_path(setup.param_shapes)
    paths = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in shapes}
    # As the published code: everything but biases and what has a single dimension.
    assert decays == {path for path, x in paths.items() if x.ndim > 1}
    decoder = setup.objective.decoder.architecture
    assert (decoder.width, decoder.depth, decoder.num_heads) == (512, 8, 16)


@pytest.mark.parametrize(("size", "epochs"), [("B", 90), ("L", 50), ("H", 50)])
def test_published_linear_probe(size, epochs, load):
    config = load("mae", f"probe,{size}")
    assert (config.optimizer, config.momentum, config.weight_decay) == ("lars", 0.9, 0)
    assert (config.batch_size, config.total_epochs) == (16_384, epochs)
    assert config.learning_rate == pytest.approx(6.4)
    assert config.warmup_steps == round(10 * IMAGENET / 16_384)
    assert (config.model.head_std, config.model.pooling) == (0.01, "cls")
    assert config.augment.train == "random_resized_crop(retry=False)|flip_lr"
    setup = set_up(config)
    assert not setup.architecture.pre_logits
    trained = {p for p, group in setup.groups.by_path.items() if not group.frozen}
    assert trained == {"head/kernel", "head/bias"}


@pytest.mark.parametrize("argument", ["train,B", "pretrain,XL"])
def test_other_arguments_are_refused(argument, load):
    with pytest.raises(UserError, match=f"mae.py:{argument}: choose "):
        load("mae", argument)


@pytest.mark.parametrize("size", ["B", "digits"])
@pytest.mark.parametrize("mode", ["finetune", "probe"])
def test_fine_tuning_and_probing_start_from_pretraining(mode, size, load, fitted):
    params, fitting, lines = fitted(
        load("mae", f"pretrain,{size}", SHALLOW), load("mae", f"{mode},{size}", SHALLOW)
    )
    _, gh, gw, width = fitting["pos_embed"].shape
    np.testing.assert_allclose(
        fitting["pos_embed"], sincos2d((gh, gw), width, "mae"), atol=1e-6
    )
    assert not fitting["pos_embed_prefix"].any()
    new = {"pos_embed", "pos_embed_prefix", "head"}
    new |= {"norm"} if mode == "finetune" else set()
    assert fitting.keys() - params.keys() == new - {"norm"}
    for name in params.keys() - new:
        jax.tree.map(np.testing.assert_array_equal, fitting[name], params[name])
    if mode == "finetune":
        assert np.all(fitting["norm"]["scale"] == 1)
    assert len(lines) == (5 if mode == "finetune" else 3)
    deviation = {"finetune": 2e-5, "probe": 0.01}[mode]
    assert fitting["head"]["kernel"].std() == pytest.approx(deviation, rel=0.05)


def test_the_class_token_and_its_norm_may_be_fine_tuned(load, fitted):
    ways = [SHALLOW, "--config.model.pooling=cls", "--config.model.norm=before_pool"]
    params, fitting, _ = fitted(
        load("mae", "pretrain,B", SHALLOW), load("mae", "finetune,B", *ways)
    )
    np.testing.assert_array_equal(fitting["norm"]["scale"], params["norm"]["scale"])
