"""Losses of class labels: published values and gradients, and common properties."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.config import default_config
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.models import outputs
from vit_jax.objectives.losses import LOSSES, to_targets
from vit_jax.objectives.training_loss import TrainingLoss

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "losses.npz"
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(3 * RNG.normal(size=(6, 5)), jnp.float32)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def training_loss(name, options, *, several, counts):
    config = default_config()
    config.loss, config.loss_options = name, ConfigDict(options)
    info = DatasetInfo(
        *("data", len(counts), {"train": 200}, None, "train", ""), multi_label=several
    )
    return TrainingLoss(config, info, lambda: np.asarray(counts))


# Case of the golden file → row, options, whether images have several labels.
CASES = {
    "asymmetric": ("asymmetric", {}, True),
    "asymmetric_no_gradient": (
        "asymmetric",
        {"gamma_pos": 0, "gradient_of_focus": False},
        True,
    ),
    "asymmetric_unclipped": (
        "asymmetric",
        {"gamma_neg": 2, "gamma_pos": 1.5, "clip": 0},
        True,
    ),
    "asymmetric_weighted": (
        "asymmetric",
        {"class_weights": "weights", "pos_weight": "pos_weight"},
        True,
    ),
    "sigmoid_focal": ("sigmoid_focal", {}, True),
    "sigmoid_focal_without_alpha": ("sigmoid_focal", {"alpha": -1, "gamma": 1.5}, True),
    "sigmoid_pos_weight": ("sigmoid", {"pos_weight": "pos_weight"}, True),
    "sigmoid_weighted": ("sigmoid", {"class_weights": "weights"}, True),
    "sigmoid_of_one_label_weighted": ("sigmoid", {"class_weights": "weights"}, False),
    "softmax_weighted": ("softmax", {"class_weights": "weights"}, False),
    "softmax_weighted_smoothed": ("softmax", {"class_weights": "weights"}, False),
    "softmax_adjusted": ("softmax", {"logit_adjustment": 1.5}, False),
    "softmax_focal": ("softmax_focal", {}, False),
    "softmax_focal_weighted": (
        "softmax_focal",
        {"class_weights": "weights", "gamma": 0.5},
        False,
    ),
}


def test_every_published_case_is_compared(golden):
    assert {name.removesuffix("/loss") for name in golden if "/loss" in name} == {
        *CASES
    }


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_published_ones(golden, case):
    name, options, several = CASES[case]
    given = {
        key: golden[value].tolist() if isinstance(value, str) else value
        for key, value in options.items()
    }
    loss = training_loss(name, given, several=several, counts=golden["counts"])
    targets = jnp.asarray(golden["positive"] if several else golden["labels"])
    targets = to_targets(targets, 5)
    smooth = 0.8 * targets + 0.2 / 5 if "smoothed" in case else None

    def mean(logits):
        losses, weights = loss(logits, targets, smooth)
        return losses.sum() / (len(losses) if weights is None else weights.sum())

    logits = jnp.asarray(golden["logits"], jnp.float32)
    value, grad = jax.value_and_grad(mean)(logits)
    np.testing.assert_allclose(value, golden[f"{case}/loss"], rtol=1e-6)
    np.testing.assert_allclose(grad, golden[f"{case}/grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(name):
    first, second = (
        jax.nn.one_hot(jnp.array(labels), 5) for labels in ([0] * 6, [3, 1, 4, 2, 0, 2])
    )
    loss = LOSSES[name]
    found = loss(LOGITS, 0.3 * first + 0.7 * second)
    expected = 0.3 * loss(LOGITS, first) + 0.7 * loss(LOGITS, second)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_outputs_have_finite_losses_and_gradients(name):
    loss = LOSSES[name]
    powers = [x for x in inspect.signature(loss).parameters if x.startswith("gamma")]
    logits = jnp.array([[-200.0, 0.0, 200.0], [60.0, -60.0, -60.0]])
    for power in (0.0, 0.5, 3.0):
        options = dict.fromkeys(powers, power)
        for label in range(3):
            targets = jax.nn.one_hot(jnp.array([label, label]), 3)

            def total(x, targets=targets, options=options):
                return loss(x, targets, **options).sum()

            value, grad = jax.value_and_grad(total)(logits)
            assert np.isfinite(value), (power, label)
            assert np.isfinite(grad).all(), (power, label)


@pytest.mark.parametrize(
    ("name", "plain", "options"),
    [
        ("softmax_focal", "softmax", {"gamma": 0.0}),
        ("sigmoid_focal", "sigmoid", {"gamma": 0.0, "alpha": -1.0}),
        ("asymmetric", "sigmoid", {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}),
    ],
)
def test_without_focus_they_are_cross_entropy(name, plain, options):
    targets = jax.nn.one_hot(jnp.arange(6) % 5, 5)
    found = LOSSES[name](LOGITS, targets, **options)
    np.testing.assert_allclose(found, LOSSES[plain](LOGITS, targets), rtol=1e-6)


def test_focus_is_on_what_is_wrong():
    # −log 0.9 of an easy example counts a hundredth, −log 0.1 of a hard one 0.81.
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    found = LOSSES["softmax_focal"](logits, jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    expected = [0.01 * -np.log(0.9), 0.81 * -np.log(0.1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_precision_outputs_are_computed_in_full_precision():
    targets = jax.nn.one_hot(jnp.arange(6) % 5, 5)
    logits = LOGITS.astype(jnp.bfloat16)
    for name, loss in LOSSES.items():
        found = loss(logits, targets)
        assert found.dtype == jnp.float32, name
        expected = loss(logits.astype(jnp.float32), targets)
        np.testing.assert_array_equal(found, expected)


def test_evaluation_reports_cross_entropy():
    assert {name: outputs.plain_loss(name) for name in LOSSES} == {
        "softmax": "softmax",
        "sigmoid": "sigmoid",
        "softmax_focal": "softmax",
        "sigmoid_focal": "sigmoid",
        "asymmetric": "sigmoid",
    }
