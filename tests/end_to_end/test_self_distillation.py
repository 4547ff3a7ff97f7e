"""Self-distillation as a run: killed, resumed, loaded, evaluated, fine-tuned from."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vit_jax
from vit_jax.checkpoints.reading import load_checkpoint, load_params
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.config import default_config
from vit_jax.train import loop
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up
from vit_jax.train.start import initial_state

VALUES = {
    "name": "dino",
    "dataset": "digits",
    "train_split": "train[:64]",
    "eval_split": "test[:64]",
    "image_size": (8,),
    "batch_size": 16,
    "eval_batch_size": 64,
    "total_steps": 6,
    "log_every": 1,
    "checkpoint_every": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "grad_clip_norm": 0.0,
    "grad_clip_parameter_norm": 3.0,
    "model.variant": "Ti/4",
    "model.width": 16,
    "model.depth": 1,
    "model.mlp_dim": 32,
    "model.num_heads": 2,
    "model.channels": 1,
    "model.attention": "xla",
    "loader_threads": 2,
    "mesh.data": 1,
}
OPTIONS = {
    "out_dim": 24,
    "hidden_dim": 16,
    "bottleneck_dim": 8,
    "momentum_teacher": 0.5,
    "local_crops_number": 2,
    "local_crops_size": 4,
}


def config_of(**values):
    config = default_config()
    config.update_from_flattened_dict(VALUES | values)
    return config


def distilling():
    config = config_of(objective="self_distillation")
    config.objective_options = ConfigDict(OPTIONS)
    row = {"kind": "knn", "every": 3, "k": 5}
    config.evaluators = ConfigDict({"knn": row})
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    numbers = train_and_evaluate(distilling(), str(workdir))
    return workdir, numbers


def state_of(workdir):
    """Returns all parts of the newest checkpoint, on the devices."""
    setup = set_up(distilling())
    with Checkpoints(workdir, keep=1) as checkpoints:
        return setup, jax.device_get(initial_state(setup, checkpoints, None))


def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    whole, tmp_path, stopping_before
):
    workdir = tmp_path / "killed"
    stopping_before(4, "train", lambda: train_and_evaluate(distilling(), str(workdir)))
    train_and_evaluate(distilling(), str(workdir))
    name = "metrics.jsonl"
    assert (workdir / name).read_bytes() == (whole[0] / name).read_bytes()
    (_, ours), (_, theirs) = state_of(workdir), state_of(whole[0])
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_teacher_is_what_is_evaluated_and_loaded(whole, read_metrics):
    workdir, numbers = whole
    setup, state = state_of(workdir)
    teacher, student = state.objective["model"], load_params(workdir)
    assert np.any(teacher["cls"] != student["cls"])
    _, served, _ = load_checkpoint(workdir)
    assert served.keys() == student.keys()
    assert np.array_equal(served["cls"], teacher["cls"])
    model = vit_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, teacher)
    assert model.architecture.num_classes == 0

    lines = [x for x in read_metrics(workdir) if x["step"] == 6]
    found = {line["split"]: line for line in lines}
    assert found.keys() == {"train", "eval", "eval_student"}
    assert found["eval"]["knn/top1"] == numbers["knn/top1"]
    evaluated = setup.evaluated(state)
    jax.tree.map(np.testing.assert_array_equal, evaluated["eval"], teacher)
    trained = {name: student[name] for name in teacher}
    jax.tree.map(np.testing.assert_array_equal, evaluated["eval_student"], trained)
    train = found["train"]
    assert 0 < train["teacher_entropy"] <= np.log(24) + 1e-6
    assert train["teacher_temp"] == pytest.approx(0.04)
    assert 0.9 < train["teacher_momentum"] < 1


def test_fine_tuning_begins_with_the_teacher(whole, tmp_path, monkeypatch):
    started = {}
    fit = loop.fit_weights

    def recording(*arguments, **named):
        found = fit(*arguments, **named)
        started.update(found)
        return found

    monkeypatch.setattr(loop, "fit_weights", recording)
    config = config_of(pretrained=str(whole[0]), total_steps=1, weight_decay=0.0)
    config.weight_decay_end = None
    numbers = train_and_evaluate(config, str(tmp_path / "fine"))
    assert numbers["examples"] == 64
    _, state = state_of(whole[0])
    for name, value in state.objective["model"].items():
        jax.tree.map(np.testing.assert_array_equal, started[name], value)
    assert "head" in started
