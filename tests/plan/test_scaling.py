"""Tests of extrapolating deep models from shallow ones."""

import jax
import pytest

from vit_jax.plan import scaling, topology
from vit_jax.plan.compiled import Bytes, Measurement
from vit_jax.plan.cost_model.estimate import Estimate
from vit_jax.train.setup import set_up


@pytest.fixture
def measured(monkeypatch):
    """The depths that were compiled; memory and time are linear in the depth."""
    depths = []

    def measure(setup, topology):
        depth = setup.architecture.depth
        depths.append(depth)
        peak = 1000 + 300 * depth
        times = Estimate(1 + 0.5 * depth, 2 + depth, 0, {}, 0)
        fits = peak <= topology.usable_bytes
        return Measurement(Bytes(peak, 0, 0, 0), fits, "", 1.0, 0.0, times)

    monkeypatch.setattr(scaling, "measure_step", measure)
    return depths


def test_deep_model_is_extrapolated_from_two_shallow_ones(tiny_config, measured):
    setup = set_up(tiny_config(**{"model.depth": 12}))
    found = scaling.predict(setup, topology(), "")
    assert measured == [2, 4]
    assert (found.peak_bytes, found.extrapolated) == (1000 + 300 * 12, True)
    assert found.seconds == pytest.approx((7, 14))
    assert found.fits


def test_shallow_models_and_scans_are_not_extrapolated(tiny_config, measured):
    for values in ({"model.depth": 3}, {"model.depth": 6, "model.scan": True}):
        setup = set_up(tiny_config(**values))
        found = scaling.predict(setup, topology(), "")
        depth = values["model.depth"]
        assert measured.pop() == depth and measured == []
        assert (found.peak_bytes, found.extrapolated) == (1000 + 300 * depth, False)


@pytest.mark.parametrize(
    ("values", "depths"),
    [
        ({"train_only": "head,norms"}, [2, 4]),
        ({"freeze": "blocks_0[01]/.*"}, [6]),
        ({"train_only": "blocks_05/.*,head"}, [6]),
        ({"groups": "blocks_05/.*: lr=2"}, [6]),
    ],
)
def test_models_whose_blocks_are_trained_differently_are_compiled_as_they_are(
    values, depths, tiny_config, measured
):
    setup = set_up(tiny_config(**values, **{"model.depth": 6}))
    found = scaling.predict(setup, topology(), "")
    assert measured == depths
    assert found.extrapolated == (depths == [2, 4])


def test_time_is_not_extrapolated_without_estimates(tiny_config, monkeypatch):
    def refuse(setup, _):
        return Measurement(
            Bytes(setup.architecture.depth, 0, 0, 0), True, "", 1, 0, None
        )

    monkeypatch.setattr(scaling, "measure_step", refuse)
    setup = set_up(tiny_config(**{"model.depth": 12}))
    found = scaling.predict(setup, topology(), "")
    assert (found.peak_bytes, found.seconds) == (12, None)


@pytest.mark.parametrize("offload", [False, True])
def test_at_depth_changes_only_the_blocks(tiny_config, offload):
    values = {"weight_decay": 0.1, "total_epochs": None, "offload_optimizer": offload}
    setup = set_up(tiny_config(**{"model.depth": 5, **values}))
    shallow = scaling.at_depth(setup, 2)
    expected = set_up(tiny_config(**{"model.depth": 2, **values})).abstract_state()
    assert jax.tree.map(str, shallow.abstract_state()) == jax.tree.map(str, expected)
    # The optimiser is made for these parameters: the step can be traced.
    shallow.lower()
