"""Self-distillation: DINO's losses, gradients, schedules, and thirty steps."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.errors import UserError
from vit_jax.objectives import self_distillation as dino
from vit_jax.objectives.protocol import Context
from vit_jax.train.setup import set_up

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "dino.npz"
HEAD = dino.HEAD
CONFIG = {
    "objective": "self_distillation",
    "train_split": "train[:40]",  # ten steps of four images are an epoch
    "batch_size": 4,
    "total_steps": 30,
    "image_size": (16,),
    "eval_every": 0,
    "posemb_resize": "bicubic_torch",
    "augment.train": None,
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 24,
    "model.num_heads": 2,
    "model.channels": 3,
    "model.variant": "Ti/4",
    "model.gelu": "exact",
    "mesh.data": 1,
}
OPTIONS = {
    "out_dim": 24,
    "hidden_dim": 20,
    "bottleneck_dim": 8,
    "local_crops_number": 2,
    "local_crops_size": 8,
}
VIEWS = ("global_0", "global_1", "local_0", "local_1")
# The published optimiser, as in the golden file.
ADAMW = {
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-6,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "weight_decay_on": rf".*kernel|cls|pos_embed\w*|{HEAD}/last_layer/scale",
    "grad_clip_norm": 0.0,
    "grad_clip_parameter_norm": 0.3,
}
PUBLISHED = {
    "norm_last_layer": False,
    "teacher_temp": 0.07,
    "warmup_teacher_temp_epochs": 2,
    "momentum_teacher": 0.9,
}


@pytest.fixture
def setup_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**CONFIG, **dict(values)})
        config.objective_options = ConfigDict({**OPTIONS, **options})
        return set_up(config)

    return make


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def batch_of(arrays, step):
    rows = arrays["rows"][step]
    counts = {
        "mask": np.ones(len(rows), np.float32),
        "bad": np.zeros(len(rows), np.int32),
    }
    return {name: arrays[name][rows] for name in VIEWS} | counts


def placed(setup, params):
    where = jax.tree.map(lambda x: x.sharding, setup.abstract_state())
    return jax.device_put(setup.new_state(jax.tree.map(jnp.asarray, params)), where)


def random_params(setup):
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        setup.param_shapes,
    )


def assert_close(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=name)


def gradient(objective, params, batch):
    state = objective.init_state(params)

    def loss(params):
        context = Context((), state, jnp.int32(0), None)
        sums, additive = objective.loss(params, batch, jax.random.key(0), context)
        total, weight = sums["loss"]
        return total / weight, additive

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("fixed", [False, True])
def test_loss_and_gradients_are_those_of_torch(setup_of, golden, fixed, tree):
    objective = setup_of(norm_last_layer=fixed).objective
    params, expected = tree(golden, "params/"), tree(golden, "grads/")
    if fixed:  # all lengths are 1 in the file
        del params[HEAD]["last_layer"]["scale"], expected[HEAD]["last_layer"]["scale"]
    (value, _), grads = gradient(
        objective, *jax.tree.map(jnp.asarray, (params, batch_of(golden, 0)))
    )
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-6)
    assert_close(grads, expected, 1e-5)


def test_thirty_steps_are_those_of_torch(setup_of, golden, tree):
    """Compares losses, centres, student and teacher; the biases of keys are left out.

    They change no output, so their gradients are rounding errors, which AdamW enlarges.
    An update that is skipped then leaves teacher and centre as they are.
    """
    setup = setup_of(ADAMW | {"bad_update": "skip"}, **PUBLISHED)
    state = placed(setup, tree(golden, "params/"))
    step = setup.lower().compile()
    losses, centres = [], []
    for number in range(30):
        batch = sharding.place(batch_of(golden, number), setup.mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        centres.append(np.asarray(state.objective["centre"]))
    np.testing.assert_allclose(losses, golden["curve/loss"], rtol=1e-4)
    np.testing.assert_allclose(np.stack(centres), golden["curve/center"], atol=1e-4)
    kept = jax.device_get(state.objective)
    broken = batch_of(golden, 0) | {"mask": np.array([1, np.nan, 1, 1], np.float32)}
    state, metrics = step(state, sharding.place(broken, setup.mesh))
    assert (metrics["skipped_updates"], state.step) == (1, 31)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.objective), kept)
    teacher = {**kept["model"], HEAD: kept[HEAD]}
    for name, found in (("student", state.params), ("teacher", teacher)):
        expected = tree(golden, f"after/{name}/")
        for block in ("blocks_00", "blocks_01"):
            for both in (found, expected):
                del both[block]["attention"]["key"]["bias"]
        assert_close(jax.device_get(found), expected, 1e-4)


def test_published_numbers_of_loss_and_centre():
    """Two images, two large views and a small one, three outputs."""
    rows = jnp.array
    teacher = rows([[[0.2, 0, -0.1], [0, 0.2, 0.1]], [[0.1, 0.3, 0], [0.3, -0.1, 0.2]]])
    student = rows(
        [
            [[0.1, 0.2, 0], [0.2, 0, 0.1], [0.05, 0, 0.15]],
            [[0, 0.1, 0.3], [0.1, 0.1, -0.2], [0.2, 0.1, 0]],
        ]
    )
    centre = rows([0.1, 0.05, 0])
    losses = dino.pair_losses(
        jax.nn.log_softmax((teacher - centre[None, None]) / 0.04),
        jax.nn.log_softmax(student / 0.1),
    )
    assert losses.shape == (2,)
    assert float(losses.mean()) == pytest.approx(1.202694, abs=1e-6)


def test_centre_is_moved_by_the_mean_of_all_outputs(setup_of):
    objective = setup_of(out_dim=3).objective
    state = {"model": {}, HEAD: {}, "centre": jnp.array([0.1, 0.05, 0])}
    sums = {"outputs": jnp.array([0.6, 0.4, 0.2]), "count": jnp.float32(4)}
    found = objective.after(state, sums, {HEAD: {}}, jnp.int32(0))["centre"]
    np.testing.assert_allclose(found, [0.105, 0.055, 0.005], atol=1e-7)
    # If no example counts, there is no mean.
    nothing = jax.tree.map(jnp.zeros_like, sums)
    kept = objective.after(state, nothing, {HEAD: {}}, jnp.int32(0))["centre"]
    np.testing.assert_array_equal(kept, state["centre"])


def test_teacher_temperature_changes_from_epoch_to_epoch(setup_of):
    # Two epochs and a third of 30 images in batches of 4: they begin at 8, 15, 23.
    objective = setup_of(
        {"train_split": "train[:30]", "total_steps": 40},
        warmup_teacher_temp=0.04,
        teacher_temp=0.07,
        warmup_teacher_temp_epochs=3,
    ).objective
    found = [float(objective.temperature(jnp.int32(step))) for step in range(30)]
    expected = [0.04] * 8 + [0.055] * 7 + [0.07] * 15
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    constant = setup_of(teacher_temp=0.05).objective
    assert float(constant.temperature(jnp.int32(0))) == pytest.approx(0.05)


def test_teacher_momentum_is_the_published_cosine(setup_of):
    objective = setup_of(momentum_teacher=0.996).objective
    found = [1 - float(objective.pace(jnp.int32(step))) for step in (0, 15, 29)]
    expected = 1 - 0.002 * (1 + np.cos(np.pi * np.array([0, 15, 29]) / 30))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_teacher_moves_by_the_momentum_of_the_step(setup_of):
    objective = setup_of(momentum_teacher=0.9).objective
    state = {
        "model": {"norm": {"scale": jnp.ones(2)}},
        HEAD: {"fc1": {"bias": jnp.zeros(2)}},
        "centre": jnp.zeros(24),
    }
    params = {"norm": {"scale": jnp.zeros(2)}, HEAD: {"fc1": {"bias": jnp.ones(2)}}}
    sums = {"outputs": jnp.zeros(24), "count": jnp.float32(8)}
    found = objective.after(state, sums, params, jnp.int32(15))  # momentum 0.95
    np.testing.assert_allclose(found["model"]["norm"]["scale"], 0.95, rtol=1e-6)
    np.testing.assert_allclose(found[HEAD]["fc1"]["bias"], 0.05, rtol=1e-5)


def test_last_layer_rests_for_the_given_epochs_and_then_begins_like_new(setup_of):
    setup = setup_of(ADAMW, freeze_last_layer=2, norm_last_layer=False)
    begins = {
        path: group.begin for path, group in setup.groups.by_path.items() if group.begin
    }
    assert begins == {
        f"{HEAD}/last_layer/kernel": 20,
        f"{HEAD}/last_layer/scale": 20,
    }
    own = setup_of({"groups": f"{HEAD}/.*: begin=3"})
    assert {group.begin for group in own.groups.by_path.values()} == {0, 3}
    assert not setup_of(freeze_last_layer=0).groups.values("begin") - {0}


def test_what_decays_is_what_the_published_code_lets_decay(setup_of):
    groups = setup_of(ADAMW, norm_last_layer=False).groups.by_path
    decaying = {path for path, group in groups.items() if group.decay}
    others = set(groups) - decaying
    assert {path.rpartition("/")[2] for path in others} == {"bias", "scale"}
    assert f"{HEAD}/last_layer/scale" in decaying
    assert {"cls", "pos_embed", "pos_embed_prefix"} <= decaying


def test_only_the_student_is_trained_with_stochastic_depth(setup_of):
    objective = setup_of({"model.stochastic_depth": 0.9}).objective
    plain = setup_of().objective
    params = random_params(setup_of())
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.integers(0, 256, (4, *column.shape), np.uint8))
        for name, column in plain.inputs.items()
    } | {"mask": jnp.ones(4)}
    found = []
    for one in (objective, plain):
        context = Context((), one.init_state(params), jnp.int32(0), None)
        loss = functools.partial(one.loss, params, batch, context=context)
        found.append(jax.jit(loss)(key=jax.random.key(5)))
    (dropped, sums), (whole, their_sums) = found
    np.testing.assert_allclose(sums["outputs"], their_sums["outputs"], rtol=1e-6)
    assert abs(float(dropped["loss"][0] - whole["loss"][0])) > 1e-4


def test_initial_parameters_have_the_published_distributions(setup_of):
    objective = setup_of({"model.width": 64}, hidden_dim=64).objective
    params = jax.jit(objective.init)(jax.random.key(0))
    state = objective.init_state(params)
    jax.tree.map(
        np.testing.assert_array_equal, {**state["model"], HEAD: state[HEAD]}, params
    )
    block, head = params["blocks_00"], params[HEAD]
    for kernel in (
        block["attention"]["query"]["kernel"],
        block["mlp"]["fc1"]["kernel"],
        head["fc1"]["kernel"],
        params["pos_embed"],
        params["cls"],
    ):
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.25)
    for bias in (block["mlp"]["fc1"]["bias"], head["fc2"]["bias"]):
        assert not np.any(bias)
    assert np.all(block["norm1"]["scale"] == 1)
    assert 0.9 / np.sqrt(48) < np.abs(params["patch_embed"]["kernel"]).max()
    assert np.abs(params["patch_embed"]["bias"]).max() <= 1 / np.sqrt(48)
    last = head["last_layer"]["kernel"]
    assert 0.9 / np.sqrt(8) < np.abs(last).max() <= 1 / np.sqrt(8)


WAYS = ({"mesh.data": 1}, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})


def test_devices_and_microbatches_do_not_change_the_training(setup_of):
    """Compares the first loss and gradient, and student, teacher, centre at the end."""
    rate = 0.15  # larger ones let rounding grow to 1e-5 within 30 steps
    plain = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "grad_clip_norm": 0.0,
        "schedule": "rsqrt",
        "rsqrt_timescale": 1,
        "learning_rate": rate,
        "batch_size": 16,
        "model.depth": 1,
    }
    rng = np.random.default_rng(1)
    starts, ends, losses = [], [], []
    sides = dict(zip(VIEWS, (16, 16, 8, 8), strict=True))
    shapes = {name: (3, 16, side, side, 3) for name, side in sides.items()}
    images = {name: rng.integers(0, 256, x, np.uint8) for name, x in shapes.items()}
    # One example does not count, and one counts half.
    mask = np.array([1.0] * 14 + [0.0, 0.5], np.float32)
    counts = {"mask": mask, "bad": np.zeros(16, np.int32)}
    for way, parts in zip(WAYS, (1, 2), strict=True):
        setup = setup_of(
            plain | way | {"accum_steps": parts},
            freeze_last_layer=0,
            norm_last_layer=False,
            momentum_teacher=0.9,
        )
        params = random_params(setup)
        state = placed(setup, params)
        step = setup.lower().compile()
        for number in range(30):
            batch = {name: x[number % 3] for name, x in images.items()} | counts
            batch = sharding.place(batch, setup.mesh)
            state, metrics = step(state, batch)
            if number == 0:
                after = jax.device_get(state.params)
                starts.append(jax.tree.map(lambda p, q: (p - q) / rate, params, after))
                losses.append(float(metrics["loss"]))
        ends.append(jax.device_get((state.params, state.objective)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    for both, tolerance in ((starts, 1e-6), (ends, 1e-5)):
        largest = max(np.abs(x).max() for x in jax.tree.leaves(both[0]))
        assert_close(both[1], both[0], tolerance * largest)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            {},
            {"local_crops_size": 2},
            "local_crops_size=2: .*patches of 4×4.*such as 4",
        ),
        ({}, {"local_crops_size": (8, 11)}, r"crops_size=\(8, 11\): .*\(8, 12\)"),
        ({}, {"local_crops_number": -1}, "local_crops_number=-1: give the number"),
        ({}, {"local_crops_scale": (0.4, 0.2)}, r"local_crops_scale=\(0.4, 0.2\): "),
        ({}, {"global_crops_scale": (0, 2)}, r"global_crops_scale=\(0, 2\): "),
        ({}, {"local_chain": "flip"}, "local_chain: .*no operation 'flip'"),
        ({}, {"second_chain": "resize(8)"}, "second_chain: .*makes images of 8×8"),
        ({}, {"out_dim": 1}, "out_dim=1: give a whole number from 2"),
        ({}, {"nlayers": 10}, "nlayers=10: give a whole number from 1 to 9"),
        ({}, {"teacher_temp": 0.0}, "teacher_temp=0.0: give a number above 0"),
        ({}, {"momentum_teacher": 1.5}, "momentum_teacher=1.5: give a number from 0"),
        ({}, {"freeze_last_layer": 3}, "freeze_last_layer=3: the run ends .*3 epochs"),
        ({}, {"warmup_teacher_temp_epochs": 4}, "temp_epochs=4: the run ends before"),
        ({}, {"warmup_teacher_temp_epochs": -1}, "temp_epochs=-1: give a number of ep"),
        ({}, {"centre": 0.5}, "SelfDistillation does not take centre"),
        ({"dataset": "nowhere"}, {}, r"has 1 problem\(s\):\n.*'nowhere'"),
        ({"ema_decay": 0.9}, {}, "the teacher of self-distillation is the averaged"),
        ({"model.variant": "R26+S/32", "image_size": (32,)}, {}, "no hybrids"),
        ({"image_size": (18,)}, {}, "image height 18 is not a multiple of the patch"),
        (
            {"augment.train": "random_resized_crop"},
            {"first_chain": "resize", "second_chain": "resize"},
            "first_chain and second_chain replace augment.train",
        ),
    ],
)
def test_impossible_options_are_refused_before_anything_is_compiled(
    setup_of, values, options, message
):
    with pytest.raises(UserError, match=message):
        _ = setup_of(values, **options).objective


def test_all_problems_are_named_at_once(setup_of):
    with pytest.raises(UserError) as error:
        setup_of({"ema_decay": 0.5}, out_dim=0, local_crops_size=3, first_chain="x")
    lines = str(error.value).splitlines()
    assert lines[0] == "the config has 4 problem(s):"
    assert len(lines) == 5


def test_a_mixer_is_refused(tiny_config):
    config = tiny_config(
        **{"objective": "self_distillation", "model.variant": "Mixer-S/4"},
        **{"model.num_heads": 0, "eval_every": 0, "augment.train": None},
    )
    with pytest.raises(UserError, match=r"needs a Vision Transformer.*found Mixer"):
        set_up(config)
