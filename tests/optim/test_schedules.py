"""Schedules against the published formulas."""

import numpy as np
import pytest

from vit_jax.config import default_config
from vit_jax.optim.schedules import make_schedule


def recipe(**values):
    config = default_config()
    config.total_steps = 100
    config.update(values)
    return config


def test_cosine_schedule_of_published_fine_tuning():
    config = recipe(total_steps=20_000, warmup_steps=500, learning_rate=0.03)
    schedule = make_schedule(config)
    expected = {0: 0.0, 250: 0.015, 500: 0.03, 10_250: 0.015, 20_000: 0.0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_cosine_schedule_of_published_pretraining():
    config = recipe(total_steps=111_477, warmup_steps=10_000, learning_rate=1e-3)
    schedule = make_schedule(config)
    expected = {5000: 5e-4, 10_000: 1e-3, 60_738: 5e-4, 111_477: 0.0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_cosine_ends_at_the_given_rate():
    """Follows the published schedule of DINO: from its peak to 1e-6, step by step."""
    schedule = make_schedule(
        recipe(warmup_steps=20, learning_rate=2e-3, min_learning_rate=1e-6)
    )
    steps = np.arange(81)
    expected = 1e-6 + 0.5 * (2e-3 - 1e-6) * (1 + np.cos(np.pi * steps / 80))
    found = [float(schedule(step)) for step in 20 + steps]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert float(schedule(10)) == pytest.approx(1e-3)


def test_linear_ends_at_the_given_rate():
    schedule = make_schedule(
        recipe(schedule="linear", warmup_steps=20, end_learning_rate=1e-5)
    )
    expected = {10: 5e-4, 20: 1e-3, 60: (1e-3 + 1e-5) / 2, 100: 1e-5}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_rsqrt_with_cooldown():
    schedule = make_schedule(
        recipe(schedule="rsqrt", warmup_steps=10, rsqrt_timescale=30, cooldown_steps=20)
    )
    expected = {
        5: 0.5e-3,
        10: 1e-3,
        40: 1e-3 / np.sqrt(2),
        80: 1e-3 / np.sqrt(1 + 70 / 30),
        90: 0.5e-3 / np.sqrt(1 + 80 / 30),
        100: 0.0,
    }
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-12)


def test_constant_without_warm_up_starts_at_the_rate():
    schedule = make_schedule(recipe(schedule="constant"))
    assert [float(schedule(step)) for step in (0, 50, 100)] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize(
    ("first", "last"), [(1e-6, 1e-5), (0.0, 1e-6), (1e-3, 0.0), (0.0, 0.0)]
)
def test_cosine_between_two_rates_after_a_warm_up_from_another(first, last):
    """Compares with the formulas of DeiT III (from 1e-6, to 1e-5) and of MAE (1e-6)."""
    config = recipe(warmup_steps=20, warmup_learning_rate=first, min_learning_rate=last)
    schedule = make_schedule(config)
    steps = np.arange(101)
    warm = first + (1e-3 - first) * steps / 20
    cosine = last + (1e-3 - last) * 0.5 * (1 + np.cos(np.pi * (steps - 20) / 80))
    found = [float(schedule(step)) for step in steps]
    expected = np.where(steps < 20, warm, cosine)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_other_schedules_warm_up_from_a_rate_too():
    for name in ("constant", "linear", "rsqrt"):
        schedule = make_schedule(
            recipe(schedule=name, warmup_steps=10, warmup_learning_rate=5e-4)
        )
        found = [float(schedule(step)) for step in (0, 5, 10)]
        assert found == pytest.approx([5e-4, 7.5e-4, 1e-3], rel=1e-5)
