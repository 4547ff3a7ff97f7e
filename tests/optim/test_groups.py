"""Parameter groups: rows of the table, layer-wise decay, frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.groups import Group, layer_factors, make_groups, parse_rows
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.train.setup import set_up

PARAMS = {
    "patch_embed": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 3))},
}


def groups_of(params=PARAMS, **values):
    config = default_config()
    config.update({"total_steps": 100} | values)
    return make_groups(config, params, OPTIMIZERS).by_path


def decaying(pattern):
    found = groups_of(weight_decay=0.1, weight_decay_on=pattern)
    assert {group.decay for group in found.values()} <= {0.0, 0.1}
    return {path for path, group in found.items() if group.decay}


def test_only_kernels_decay_by_default():
    kernels = {"patch_embed/kernel", "head/kernel"}
    assert decaying(default_config().weight_decay_on) == kernels


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head/.*", {"head/kernel"}),
        (".*/kernel|norm/.*", {"patch_embed/kernel", "norm/scale", "head/kernel"}),
        ("patch_embed/k.*", {"patch_embed/kernel"}),
    ],
)
def test_a_pattern_has_to_match_the_whole_path(pattern, expected):
    assert decaying(pattern) == expected


@pytest.mark.parametrize("pattern", ["kernels", "kernel", "norm", "patch_embed/k"])
def test_decay_that_matches_no_parameter_is_rejected(pattern):
    with pytest.raises(
        UserError, match=rf"'{pattern}' matches no parameter.*head/kernel"
    ):
        decaying(pattern)


def test_the_first_matching_row_counts_and_unset_values_stay():
    found = groups_of(
        weight_decay=0.1,
        groups="head/.*: lr=10, decay=0 ; norm/(?:scale|bias): start=5, rule=sgd;"
        "(head|patch_embed)/.*: frozen",
    )
    assert found == {
        "head/kernel": Group(lr=10.0),
        "norm/scale": Group(start=5, rule="sgd"),
        "patch_embed/kernel": Group(decay=0.1, frozen=True),
        "patch_embed/bias": Group(frozen=True),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head/.*", "expected PATTERN: SETTING"),
        ("head/.*:", "expected PATTERN: SETTING"),
        ("head/(: frozen", "groups: 'head/(: frozen': missing"),
        ("head/.*: freeze", "unknown setting 'freeze'; choose from frozen"),
        ("head/.*: lr=fast", "lr=fast: expected a number of at least 0"),
        ("head/.*: decay=-1", "decay=-1: expected a number of at least 0"),
        ("head/.*: lr=inf", "lr=inf: expected a number"),
        ("head/.*: rule=adan", "rule=adan: choose from adamw, adafactor, sgd"),
        ("heads/.*: frozen", "'heads/.*' matches no parameter"),
        (
            "head/.*: lr=2; head/kernel: frozen",
            "'head/kernel' matches no parameter, or",
        ),
        (".*: frozen", "every parameter is frozen"),
    ],
)
def test_invalid_rows_are_explained(text, message):
    with pytest.raises(UserError) as error:
        groups_of(groups=text)
    assert message in str(error.value)


def test_all_unreadable_rows_are_named():
    with pytest.raises(UserError) as error:
        parse_rows("a: freeze; b: lr=x", OPTIMIZERS)
    assert len(str(error.value).splitlines()) == 2


def test_layer_wise_decay_matches_masked_pretraining():
    """Compares the factors of 12 blocks and 0.75 with MAE's formula."""
    blocks = {f"blocks_{i:02d}": {"mlp": {"fc1": {"bias": 0}}} for i in range(12)}
    params = {
        "patch_embed": {"kernel": 0},
        "cls": 0,
        "pos_embed": 0,
        **blocks,
        "norm": {"scale": 0},
        "head": {"kernel": 0},
    }
    factors = layer_factors(params, 0.75)
    for path, expected in {
        "patch_embed/kernel": 0.023757,
        "cls": 0.023757,
        "pos_embed": 0.023757,
        "blocks_00/mlp/fc1/bias": 0.031676,
        "blocks_05/mlp/fc1/bias": 0.133484,
        "blocks_11/mlp/fc1/bias": 0.75,
        "norm/scale": 1.0,
        "head/kernel": 1.0,
    }.items():
        assert factors[path] == pytest.approx(expected, abs=5e-7), path
    assert set(layer_factors(params, 1.0).values()) == {1.0}


def test_layer_wise_decay_of_masked_pretrainings_base_model():
    """Compares the factors of 12 blocks and 0.65; those of norm and head are 1."""
    params = {f"blocks_{i:02d}": {"norm1": {"scale": 0}} for i in range(12)}
    params |= {"patch_embed": {"kernel": 0}, "pos_embed_prefix": 0}
    params |= {"norm": {"scale": 0}, "head": {"bias": 0}}
    factors = layer_factors(params, 0.65)
    for path, expected in {
        "patch_embed/kernel": 0.003697,
        "pos_embed_prefix": 0.003697,
        "blocks_00/norm1/scale": 0.005688,
        "blocks_05/norm1/scale": 0.049022,
        "blocks_11/norm1/scale": 0.65,
        "norm/scale": 1.0,
        "head/bias": 1.0,
    }.items():
        assert factors[path] == pytest.approx(expected, abs=5e-7), path


def test_what_an_objective_freezes_comes_before_the_rows_of_the_config():
    config = default_config()
    config.groups = ".*: lr=3"
    params = {"norm": {"scale": 0}, "head": {"bias": 0}}
    groups = make_groups(config, params, OPTIMIZERS, {r"(?!head/).*": {"frozen": True}})
    assert groups.by_path["norm/scale"] == Group(frozen=True)
    assert groups.by_path["head/bias"] == Group(lr=3.0)
    config.groups = "norm/.*: lr=3"
    with pytest.raises(UserError, match="row matches or that the objective freezes;"):
        make_groups(config, params, OPTIMIZERS, {r"(?!head/).*": {"frozen": True}})


def run(config, steps=2):
    setup = set_up(config)
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(
        lambda x: draw(0, 0.1, x.shape).astype(np.float32), setup.param_shapes
    )
    state = jax.device_put(setup.new_state(params), sharding.replicated(setup.mesh))
    step, shapes = setup.train_step(), setup.abstract_batch()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = {
            "image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
            "label": rng.integers(0, 10, shapes["label"].shape, np.int32),
            "mask": np.ones(shapes["mask"].shape, np.float32),
            "bad": np.zeros(shapes["bad"].shape, np.int32),
        }
        state, metrics = step(state, sharding.place(batch, setup.mesh))
    return setup, params, jax.device_get(state), metrics


def test_frozen_parameters_keep_their_bits_and_have_no_state(tiny_config):
    frozen = ("patch_embed", "pos_embed", "blocks_00")
    config = tiny_config(
        ema_decay=0.9,
        weight_decay=0.1,
        groups="patch_embed/.*|pos_embed|blocks_00/.*: frozen",
        **{"mesh.data": 1, "model.depth": 2},
    )
    setup, before, state, _ = run(config)
    for name in before:
        same = [
            np.array_equal(x, y)
            for x, y in zip(
                jax.tree.leaves(before[name]),
                jax.tree.leaves(state.params[name]),
                strict=True,
            )
        ]
        assert all(same) if name in frozen else not all(same), name
    for name in frozen:
        jax.tree.map(np.testing.assert_array_equal, before[name], state.ema[name])
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(state.opt_state)
    ]
    assert any("blocks_01" in path for path in paths)
    assert not [path for path in paths if set(frozen) & set(path.split("/"))]
    # Seven products compute gradients of kernels there: one for the patches, six for
    # the block. Activations keep their gradients, because the class token is trained.
    free = tiny_config(**{"mesh.data": 1, "model.depth": 2})
    products = [
        set_up(config).lower().as_text().count("dot_general")
        for config in (free, setup.config)
    ]
    assert products[0] - products[1] == 7


def test_factors_start_and_rules(tiny_config):
    """One step of plain gradient descent shows the factors themselves."""
    values = {"optimizer": "sgd", "momentum": 0.0, "grad_clip_norm": 0.0}
    values |= {"schedule": "constant", "mesh.data": 1, "model.depth": 1}
    _, before, plain, _ = run(tiny_config(**values), steps=1)
    text = "head/.*: lr=3; norm/.*: start=1; blocks_00/mlp/.*: rule=adamw"
    _, _, changed, _ = run(tiny_config(groups=text, **values), steps=1)
    moved = jax.tree.map(lambda x, y: y - x, before, plain.params)
    other = jax.tree.map(lambda x, y: y - x, before, changed.params)
    np.testing.assert_allclose(
        other["head"]["kernel"], 3 * moved["head"]["kernel"], rtol=1e-3, atol=1e-8
    )
    assert not np.any(other["norm"]["scale"])
    assert np.any(moved["norm"]["scale"])
    # Adam's first step has the size of the learning rate, whatever the gradient.
    sizes = np.abs(other["blocks_00"]["mlp"]["fc1"]["kernel"])
    assert np.median(sizes) == pytest.approx(tiny_config().learning_rate, rel=1e-2)
    np.testing.assert_allclose(
        other["patch_embed"]["kernel"],
        moved["patch_embed"]["kernel"],
        rtol=1e-3,
        atol=1e-8,
    )


def test_rows_with_default_settings_do_not_change_the_state():
    config = default_config()
    config.update({"total_steps": 10, "weight_decay": 0.1})
    paths = []
    for text in ("", "head/.*: lr=2"):
        config.groups = text
        state = make_optimizer(config, PARAMS).init(PARAMS)
        paths.append([str(path) for path, _ in jax.tree.leaves_with_path(state)])
    assert paths[0] == paths[1]
