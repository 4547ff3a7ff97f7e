"""Setups made from configs: models of every kind, and errors before compilation."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.config import ARCHITECTURE_KEYS, default_config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import (
    Architecture,
    MixerArchitecture,
    MlpMixer,
    VisionTransformer,
    architecture_from_variant,
)
from vit_jax.train.setup import set_up

TINY_MIXER = {
    "model.variant": "Mixer-B/4",
    "model.num_heads": 0,
    "model.tokens_mlp_dim": 6,
}
# Features of a trunk: two tokens of 16 pixels.
TINY_HYBRID = {
    "model.variant": "R50+B/16",
    "image_size": (16, 32),
    "augment.train": "resize",
}
SMALLEST_HYBRID = TINY_HYBRID | {
    "model.variant": "R+Ti/16",
    "image_size": (32,),
}


def test_a_config_can_make_a_hybrid(tiny_config):
    setup = set_up(tiny_config(**TINY_HYBRID, **{"model.pooling": "gap"}))
    architecture = setup.architecture
    assert isinstance(setup.model, VisionTransformer)
    assert (architecture.trunk, architecture.grid) == ((3, 4, 9), (1, 2))
    assert (architecture.width, architecture.depth, architecture.num_heads) == (
        16,
        2,
        2,
    )
    assert not architecture.class_token
    shapes = setup.abstract_state().params
    assert set(shapes["trunk"]["block3"]) == {f"unit{i}" for i in range(1, 10)}
    assert shapes["patch_embed"]["kernel"].shape == (1, 1, 1024, 16)


def test_a_config_can_make_a_mixer(tiny_config):
    values = {"model.scan": True, "model.gelu": "exact", "model.head_bias": -3.0}
    setup = set_up(tiny_config(**TINY_MIXER, **values))
    assert setup.architecture == MixerArchitecture(
        width=16,
        depth=2,
        tokens_mlp_dim=6,
        mlp_dim=32,
        patch_size=(4, 4),
        image_size=(8, 8),
        num_classes=10,
        gelu="exact",
    )
    assert setup.model == MlpMixer(
        setup.architecture, setup.model.dtype, scan=True, head_bias=-3.0
    )


@pytest.mark.parametrize(
    "values", [TINY_MIXER, SMALLEST_HYBRID], ids=["mixer", "hybrid"]
)
def test_two_steps_change_every_kernel(values, tiny_config):
    config = tiny_config(
        **values,
        **{"model.depth": 1, "batch_size": 2, "mesh.data": 1, "weight_decay": 0.1},
    )
    setup = set_up(config)
    # All random: the zero head of a new model stops most gradients.
    rng = np.random.default_rng(0)
    before = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
        setup.abstract_state().params,
    )
    everywhere = sharding.replicated(setup.mesh)
    state = setup.new_state(jax.device_put(before, everywhere))
    step = setup.train_step()
    rows = setup.abstract_batch()["image"].shape
    images = rng.integers(0, 256, rows, dtype=np.uint8)
    ones = np.ones(len(images), np.float32)
    labels = np.arange(len(images), dtype=np.int32)
    batch = {"image": images, "label": labels, "mask": ones, "bad": np.int32(0 * ones)}
    for _ in range(2):
        state, metrics = step(state, sharding.place(batch, setup.mesh))
    assert np.isfinite(metrics["loss"])
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before),
        jax.tree.leaves(jax.device_get(state.params)),
        strict=True,
    ):
        if path[-1].key == "kernel":
            assert np.abs(new - old).max() > 1e-5, jax.tree_util.keystr(path)


def test_keys_that_a_mixer_lacks_are_listed(tiny_config):
    values = {
        "model.num_heads": 2,
        "model.pooling": "gap",
        "model.pre_logits": -1,
        "model.attention": "xla",
        "model.registers": 1,
        "model.remat": "attention",
    }
    with pytest.raises(UserError, match=r"1 problem\(s\)") as error:
        set_up(tiny_config(**(TINY_MIXER | values)))
    message = str(error.value)
    assert "model.remat='attention' (use 'dots' or 'full')" in message
    assert "MlpMixer does not support " in message
    for name, default in (
        ("num_heads=2", "0"),
        ("pooling='gap'", "'cls'"),
        ("pre_logits=-1", "0"),
        ("attention='xla'", "'auto'"),
        ("registers=1", "0"),
    ):
        assert f"model.{name} (leave it at {default})" in message


def test_keys_that_a_vision_transformer_lacks_are_listed(tiny_config):
    with pytest.raises(
        UserError, match=r"VisionTransformer .* model\.tokens_mlp_dim=6 "
    ):
        set_up(tiny_config(**{"model.tokens_mlp_dim": 6}))


def test_an_unknown_variant_and_a_size_that_does_not_fit_are_listed(tiny_config):
    with pytest.raises(UserError, match=r"'R50\+B'.* did you mean 'R50\+B/16', "):
        set_up(tiny_config(**{"model.variant": "R50+B"}))
    with pytest.raises(
        UserError, match=r"image height 8 is not a multiple .* \(nearest: 32"
    ):
        set_up(tiny_config(**{"model.variant": "R+Ti/16"}))


def test_every_field_of_an_architecture_comes_from_its_key(tiny_config):
    values = {
        "width": 24,
        "depth": 3,
        "mlp_dim": 20,
        "num_heads": 3,
        "channels": 1,
        "pooling": "map",
        "class_token": "on",
        "class_token_position": "on",
        "norm": "after_pool",
        "posemb": "sincos2d",
        "sincos_denominator": "mae",
        "registers": 2,
        "gelu": "exact",
        "layernorm_epsilon": 1e-5,
        "layer_scale": 0.1,
    }
    others = {"tokens_mlp_dim", "distillation_token"}
    assert {*values} | others == set(ARCHITECTURE_KEYS)
    config = tiny_config(**{f"model.{key}": value for key, value in values.items()})
    architecture = set_up(config).architecture
    switched = dict.fromkeys(
        ("layer_scale", "class_token", "class_token_position"), True
    )
    for key, value in (values | switched).items():
        assert getattr(architecture, key) == value, key


@pytest.mark.parametrize(
    ("values", "token", "position"),
    [
        ({}, True, True),
        ({"pooling": "gap"}, False, False),
        ({"pooling": "gap", "class_token": "on"}, True, True),
        ({"pooling": "map", "class_token": "off"}, False, False),
        ({"class_token_position": "off"}, True, False),
        ({"posemb": "sincos2d"}, True, False),
        ({"posemb": "sincos2d", "class_token_position": "on"}, True, True),
    ],
)
def test_class_token_and_its_position(values, token, position, tiny_config):
    config = tiny_config(**{f"model.{key}": value for key, value in values.items()})
    setup = set_up(config)
    assert setup.architecture.class_token == token
    assert setup.architecture.class_token_position == position
    params = setup.abstract_state().params
    assert ("cls" in params, "pos_embed_prefix" in params) == (token, position)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.class_token": "off"}, "pooling cls needs class_token"),
        (
            {"objective": "masked_autoencoding", "model.head_std": 0.1},
            "model.head_std=0.1 has no effect: .* the model has no head",
        ),
    ],
)
def test_keys_of_the_model_that_contradict_each_other(values, message, tiny_config):
    with pytest.raises(UserError, match=message):
        set_up(tiny_config(**values))


def test_the_form_of_stochastic_depth_and_the_heads_deviation_reach_every_model(
    tiny_config,
):
    values = {
        "model.head_std": 0.02,
        "model.stochastic_depth": 0.3,
        "model.stochastic_depth_form": "constant",
    }
    for kind in ({}, TINY_MIXER):
        model = set_up(tiny_config(**kind, **values)).model
        assert (model.head_std, model.stochastic_depth) == (0.02, 0.3)
        assert model.stochastic_depth_form == "constant"


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("name", "channels", "mean", "std"),
    [
        ("", 3, (0.5,) * 3, (0.5,) * 3),
        ("symmetric", 3, (0.5,) * 3, (0.5,) * 3),
        ("imagenet", 3, *IMAGENET),
        ("imagenet", 1, (sum(IMAGENET[0]) / 3,), (sum(IMAGENET[1]) / 3,)),
    ],
)
def test_normalisation_without_weights(name, channels, mean, std, tiny_config):
    config = tiny_config(**{"normalization": name, "model.channels": channels})
    preprocessing = set_up(config).preprocessing
    assert (preprocessing.mean, preprocessing.std) == (mean, std)


def test_normalisation_of_weights_decides(tiny_config):
    architecture = set_up(tiny_config()).architecture
    mean, std = IMAGENET
    theirs = Preprocessing((8, 8), 3, mean=mean, std=std)
    description = Description(architecture, theirs, (), {}, 1)
    for name in ("", "imagenet"):
        config = tiny_config(normalization=name, pretrained="x")
        assert set_up(config, pretrained=description).preprocessing.mean == mean
    config = tiny_config(normalization="symmetric", pretrained="x")
    with pytest.raises(UserError) as error:
        set_up(config, pretrained=description)
    assert (
        "- normalization=symmetric, but the pretrained weights expect values less "
        "0.485, 0.456, 0.406 over 0.229, 0.224, 0.225; leave it empty to use theirs"
    ) in str(error.value)
    # Of one channel, the averages are compared.
    description = dataclasses.replace(
        description, preprocessing=theirs.for_images((8, 8), 1)
    )
    config = tiny_config(
        normalization="imagenet", pretrained="x", **{"model.channels": 1}
    )
    set_up(config, pretrained=description)


def test_config_and_architecture_have_the_same_defaults():
    model = default_config().model
    default = Architecture.from_variant("B/16", image_size=(32, 32), num_classes=1)
    for key in (
        *("channels", "pooling", "posemb", "sincos_denominator", "registers"),
        *("gelu", "layernorm_epsilon", "pre_logits", "norm"),
    ):
        assert model[key] == getattr(default, key)


@pytest.mark.parametrize("name", ["Mixer-S/4", "R+Ti/16"])
def test_without_a_variant_the_pretrained_architecture_stays(name, tiny_config):
    fields = {"width": 16, "depth": 1, "mlp_dim": 8, "channels": 1}
    fields |= {} if name.startswith("Mixer") else {"num_heads": 2}
    pretrained = architecture_from_variant(
        name, image_size=(32, 32), num_classes=3, **fields
    )
    description = Description(pretrained, Preprocessing((32, 32), 1), (), {}, 1)
    config = tiny_config(
        **{f"model.{key}": 0 for key in ("width", "depth", "mlp_dim", "num_heads")},
        **{"model.variant": "", "pretrained": "x", "augment.train": "resize(32)"},
        image_size=(32,),
    )
    setup = set_up(config, pretrained=description)
    assert setup.architecture == dataclasses.replace(pretrained, num_classes=10)
    assert setup.preprocessing.channels == 1
    config.model.pre_logits = 5
    if name.startswith("Mixer"):
        with pytest.raises(
            UserError, match=r"MlpMixer does not support model\.pre_logits=5"
        ):
            set_up(config, pretrained=description)
    else:
        assert set_up(config, pretrained=description).architecture.pre_logits == 5


def test_attention_that_cannot_run_here_is_rejected(tiny_config):
    with pytest.raises(UserError) as error:
        set_up(tiny_config(**{"model.attention": "cudnn", "batch_size": 9}))
    assert "has 2 problem(s)" in str(error.value)
    assert (
        "model.attention='cudnn': it runs on NVIDIA GPUs, but the devices are cpu; use "
        "auto"
    ) in str(error.value)
    # On other platforms the TPU kernels fall back to XLA's formulation.
    assert set_up(tiny_config(**{"model.attention": "pallas"})).model.attention
