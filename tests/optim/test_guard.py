"""Skipped updates, and the run that continues or stops."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.checkpoints.reading import load_description, load_params
from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim import guard
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up


@pytest.fixture
def tiny_config(tiny_config):
    """Returns a function that makes configs with one block, which is enough here."""
    return lambda **values: tiny_config(**{"model.depth": 1} | values)


def guarded(**values):
    config = default_config()
    config.update(values)
    return guard.guarded(optax.trace(0.9), config)


def run(optimizer, losses, grads):
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    steps = []
    update = jax.jit(optimizer.update)
    for loss, grad in zip(losses, grads, strict=True):
        tree = {"w": jnp.full(3, grad, jnp.float32)}
        directions, state = update(tree, state, params, loss=jnp.float32(loss))
        steps.append((float(directions["w"][0]), int(state.skipped)))
    return steps, state


@pytest.mark.parametrize(
    ("loss", "grad"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, -np.inf)]
)
def test_a_non_finite_update_leaves_no_trace(loss, grad):
    optimizer = guarded(bad_update="skip")
    steps, state = run(optimizer, [1, loss, 1], [1, grad, 2])
    plain, expected = run(optimizer, [1, 1], [1, 2])
    assert steps == [plain[0], (0.0, 1), (plain[1][0], 1)]
    assert jax.tree.all(jax.tree.map(np.array_equal, state.inner, expected.inner))
    assert float(state.mean_loss) == 1.0
    assert int(state.applied) == 2


def test_a_spike_is_relative_to_the_mean_of_a_hundred_losses():
    optimizer = guarded(max_loss_spike=3.0)
    # The first hundred form the mean, and are not judged by it.
    losses = [2.0] * 50 + [90.0] + [2.0] * 300 + [6.5, 5.9, 1e3, 2.0]
    steps, state = run(optimizer, losses, np.ones(len(losses)))
    skipped = [step for step, (direction, _) in enumerate(steps) if direction == 0]
    assert skipped == [351, 353]
    assert int(state.skipped) == 2
    assert float(state.mean_loss) == pytest.approx(2.1, abs=0.1)


def test_without_the_keys_the_step_is_unchanged(tiny_config):
    def state(**values):
        return set_up(tiny_config(**values)).abstract_state().opt_state

    assert guard.skipped_updates(state()) is None
    for values in ({"bad_update": "skip"}, {"max_loss_spike": 2.0}):
        found = state(**values)
        assert isinstance(found, guard.GuardState)
        assert jax.tree.structure(found.inner) == jax.tree.structure(state())


def test_a_spike_must_exceed_the_mean(tiny_config):
    with pytest.raises(UserError, match=r"max_loss_spike=0.5: .* more than 1"):
        set_up(tiny_config(max_loss_spike=0.5))


@pytest.fixture
def bad_step(change_batches):
    """Makes weights, and so loss and gradient, infinite in the given batches."""

    def make_bad(*numbers, stop_at=None):
        def changed(number, batch):
            if number == stop_at:
                raise KeyboardInterrupt
            if number in numbers:
                batch["mask"] = batch["mask"] * np.float32(np.inf)
            return batch

        change_batches(changed)

    return make_bad


def lines(workdir):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in read if line["split"] == "train"}


def test_a_run_skips_a_bad_update_records_it_and_continues(
    tiny_config, tmp_path, bad_step, caplog
):
    config = tiny_config(
        bad_update="skip", **{"mesh.data": 1, "log_every": 4, "total_steps": 8}
    )
    bad_step(2, 4)
    train_and_evaluate(config, str(tmp_path / "run"))
    found = lines(tmp_path / "run")
    # Recorded even at steps that are not logged.
    assert sorted(found) == [3, 4, 5, 8]
    assert found[3]["loss"] == "NaN"
    counts = [found[step]["skipped_updates"] for step in (3, 4, 5, 8)]
    assert counts == [1, 1, 2, 2]
    assert "step 3: the loss is nan" in caplog.text
    assert "the update is skipped, number 2" in caplog.text
    for leaf in jax.tree.leaves(load_params(tmp_path / "run")):
        assert np.isfinite(leaf).all()

    # Stopped and resumed, it continues the count and ends with the same result.
    bad_step(2, 4, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, str(tmp_path / "again"))
    bad_step(2, 4)
    train_and_evaluate(config, str(tmp_path / "again"))
    assert lines(tmp_path / "again") == found


def test_a_run_that_only_skips_stops(tiny_config, tmp_path, bad_step):
    config = tiny_config(
        bad_update="skip", **{"mesh.data": 1, "total_steps": 60, "log_every": 50}
    )
    bad_step(*range(2, 60))
    with pytest.raises(UserError, match=r"step 22: .*: 20 bad updates in a"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert load_description(tmp_path / "run").step in (18, 20)


def test_the_step_that_stops_a_run_is_recorded(tiny_config, tmp_path, bad_step):
    config = tiny_config(**{"mesh.data": 1, "log_every": 100})
    bad_step(2)
    with pytest.raises(UserError, match=r"step 3: the loss is nan .* training stops"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert lines(tmp_path / "run")[3]["loss"] == "NaN"
