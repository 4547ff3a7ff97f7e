"""Class weights, priors and the other options of the loss, and mistakes in them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.checkpoints.reading import load_description
from vit_jax.config import combinations, default_config
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.errors import UserError
from vit_jax.models.outputs import MEANINGS
from vit_jax.objectives.imbalance import class_weights
from vit_jax.objectives.losses import LOSSES, squared_log_partition
from vit_jax.objectives.training_loss import TrainingLoss
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

COUNTS = np.array([60.0, 30.0, 10.0])
LOGITS = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.2, -1.0], [-1.0, 2.0, 1.5]])
LABELS = jnp.array([0, 2, 1])


def loss_of(loss="softmax", *, several=False, counts=COUNTS, sampling="", **options):
    config = default_config()
    config.loss, config.loss_options = loss, ConfigDict(options)
    config.sampling = sampling or config.sampling
    info = DatasetInfo(
        *("data", 3, {"train": 200}, ("cat", "dog", "owl"), "train", ""),
        multi_label=several,
    )
    return TrainingLoss(config, info, lambda: np.asarray(counts))


def test_class_weights_have_the_published_values():
    # scikit-learn's compute_class_weight("balanced").
    balanced = [100 / 180, 100 / 90, 100 / 30]
    np.testing.assert_allclose(class_weights("balanced", COUNTS), balanced)
    np.testing.assert_allclose(class_weights("sqrt", COUNTS), np.sqrt(balanced))
    effective = np.array([(1 - 0.9) / (1 - 0.9**n) for n in COUNTS])
    effective *= 3 / effective.sum()
    found = class_weights("effective", COUNTS, 0.9)
    np.testing.assert_allclose(found, effective, rtol=1e-12)
    np.testing.assert_allclose(class_weights("effective", COUNTS, 0.0), np.ones(3))
    # For β near 1 they are in proportion to 1 / n.
    near = class_weights("effective", COUNTS, 1 - 1e-9)
    np.testing.assert_allclose(near, 3 / COUNTS / (1 / COUNTS).sum(), rtol=1e-6)


def mean(loss, labels=LABELS, logits=LOGITS):
    targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, 3)
    losses, weights = loss(logits, targets)
    return losses.sum() / (len(losses) if weights is None else weights.sum())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("several", [True, False])
def test_equal_weights_change_nothing(loss, several):
    # One, two or no labels of an image weigh the same.
    labels = jnp.array([[1.0, 0, 1], [0, 0, 0], [1, 1, 0]]) if several else LABELS
    weighted = loss_of(loss, several=several, class_weights=(1.0, 1.0, 1.0))
    plain = loss_of(loss, several=several)
    np.testing.assert_allclose(mean(weighted, labels), mean(plain, labels), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_by_name_are_1_for_the_others(loss):
    by_name = loss_of(loss, class_weights={"owl": 3.0})
    in_order = loss_of(loss, class_weights=(1.0, 1.0, 3.0))
    assert mean(by_name) == mean(in_order) != mean(loss_of(loss))


def test_weights_follow_from_the_numbers_of_images():
    for kind in ("balanced", "sqrt", "effective"):
        numbers = class_weights(kind, COUNTS).tolist()
        expected = mean(loss_of(class_weights=numbers))
        assert mean(loss_of(class_weights=kind)) == expected, kind
    numbers = class_weights("effective", COUNTS, 0.9).tolist()
    found = loss_of(class_weights="effective", beta=0.9)
    assert mean(found) == mean(loss_of(class_weights=numbers))


def test_the_common_answer_is_expected_of_questions_too():
    # With a prior of 60, 30 and 10 of 200 images, the odds are 3/7, 3/17 and 1/19.
    adjusted = loss_of("sigmoid", several=True, logit_adjustment=0.5)
    shift = 0.5 * jnp.log(jnp.array([[3 / 7, 3 / 17, 1 / 19]]))
    labels = jnp.array([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    expected = mean(loss_of("sigmoid", several=True), labels, LOGITS + shift)
    np.testing.assert_allclose(mean(adjusted, labels), expected, rtol=1e-6)
    # Yes and no become equally heavy: 140 / 60, 170 / 30 and 190 / 10.
    balanced = loss_of("sigmoid", several=True, pos_weight="balanced")
    numbers = loss_of("sigmoid", several=True, pos_weight=(7 / 3, 17 / 3, 19.0))
    np.testing.assert_allclose(mean(balanced, labels), mean(numbers, labels), rtol=1e-6)
    one = loss_of("sigmoid", several=True, pos_weight=2)
    each = loss_of("sigmoid", several=True, pos_weight=(2.0, 2.0, 2.0))
    assert mean(one, labels) == mean(each, labels)


def test_z_loss_is_the_weighted_mean_of_the_squared_log_partition():
    shifted = np.asarray(LOGITS, np.float64) + 0.7 * np.log(COUNTS / 100)
    norms = np.exp(shifted).sum(axis=1)
    probabilities = np.exp(shifted) / norms[:, None]
    chosen = np.asarray(LABELS)
    weights = np.array([0.5, 1.0, 3.0])[chosen]  # of each image, by its label
    terms = 0.1 * np.log(norms) ** 2 - np.log(probabilities[range(3), chosen])
    gradient = probabilities * (1 + 0.2 * np.log(norms))[:, None]
    gradient[range(3), chosen] -= 1

    options = {"logit_adjustment": 0.7, "z_loss": 0.1}
    loss = loss_of(class_weights=(0.5, 1.0, 3.0), **options)
    value, found = jax.value_and_grad(lambda x: mean(loss, logits=x))(LOGITS)
    np.testing.assert_allclose(value, weights @ terms / weights.sum(), rtol=1e-6)
    expected = weights[:, None] * gradient / weights.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mean(loss_of(**options)), terms.mean(), rtol=1e-6)

    focal, alone = loss_of("softmax_focal", z_loss=0.1), loss_of("softmax_focal")
    squares = np.log(np.exp(np.asarray(LOGITS)).sum(axis=1)) ** 2
    difference = mean(focal) - mean(alone)
    np.testing.assert_allclose(difference, 0.1 * squares.mean(), rtol=1e-5)
    # In float32 whatever the logits are computed in.
    large = jnp.array([[300.0, 1.0, 2.0]], jnp.bfloat16)
    assert squared_log_partition(large) == np.float32(300.0) ** 2


def test_numbers_of_images_are_counted_only_if_needed():
    config = default_config()
    config.loss, config.loss_options = "asymmetric", ConfigDict({"pos_weight": 3.0})
    info = DatasetInfo("data", 3, {"train": 9}, None, "train", "", multi_label=True)

    def count():
        raise AssertionError

    logits, targets = jnp.zeros((1, 3)), jnp.array([[0.0, 1.0, 0.0]])
    losses, weights = TrainingLoss(config, info, count)(logits, targets)
    assert losses > 0 and weights is None


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("softmax", {"gamma": 2.0}, "'softmax' does not take it; it takes class_w"),
        ("softmax", {"pos_weight": 2.0}, "pos_weight: the loss 'softmax' does not"),
        ("asymmetric", {"gama_pos": 1.0}, "gama_pos: .* did you mean 'gamma_pos'"),
        ("asymmetric", {"clip": 1.0}, r"clip=1.0: expected a number, from 0 to 0.99"),
        ("asymmetric", {"gradient_of_focus": 1}, "expected true or false"),
        ("softmax_focal", {"gamma": -1}, "gamma=-1: expected a number, at least 0"),
        ("softmax_focal", {"gamma": "2"}, "gamma='2': expected a number"),
        ("sigmoid_focal", {"alpha": -0.5}, "alpha=-0.5: .*from 0 to 1, or -1 for none"),
        ("softmax", {"beta": 0.9}, "beta=0.9: needs class_weights='effective'"),
        ("softmax", {"class_weights": "effective", "beta": 1.0}, "beta=1.0: expected"),
        ("softmax", {"class_weights": "balance"}, "choose from balanced.*'balanced'"),
        (
            "softmax",
            {"class_weights": {"ow": 2.0}},
            "no class 'ow'; there are cat.*owl",
        ),
        ("softmax", {"class_weights": (1.0, 2.0)}, "for the 3 classes"),
        ("softmax", {"class_weights": (1.0, 2.0, -1.0)}, "at least 0 for the 3 cl"),
        ("softmax", {"class_weights": (1.0, 2.0, float("nan"))}, "at least 0"),
        ("softmax", {"class_weights": (0.0, 0.0, 0.0)}, "all are 0"),
        ("sigmoid", {"pos_weight": {"cat": "big"}}, "pos_weight=.*numbers of at least"),
        ("softmax", {"logit_adjustment": float("inf")}, "logit_adjustment=inf: exp"),
        ("softmax", {"logit_adjustment": True}, "logit_adjustment=True: expected"),
        ("sigmoid", {"z_loss": 1e-4}, "z_loss: the loss 'sigmoid' does not take it"),
        ("asymmetric", {"z_loss": 0.0}, "z_loss: the loss 'asymmetric' does not"),
        ("softmax", {"z_loss": -1.0}, "z_loss=-1.0: expected a number, at least 0"),
        ("softmax", {"z_loss": float("inf")}, "z_loss=inf: expected a number"),
    ],
)
def test_a_wrong_option_is_named(loss, options, message):
    with pytest.raises(UserError, match=message):
        loss_of(loss, several=True, **options)


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"class_weights": "balanced"}, "give numbers, or train on other data"),
        ({"logit_adjustment": 1.0}, "leave it out, or train on other data"),
    ],
)
def test_classes_without_images_are_named(options, instead):
    why = f"2 of 3 classes have no training example: 'cat', 'owl'; {instead}"
    with pytest.raises(UserError, match=why):
        loss_of(counts=np.array([0.0, 4.0, 0.0]), **options)


def test_a_class_of_all_images_has_no_odds():
    with pytest.raises(UserError, match="every training example has 'dog'"):
        loss_of(
            *("sigmoid",),
            several=True,
            counts=np.array([20.0, 200.0, 3.0]),
            logit_adjustment=1.0,
        )


def test_drawing_classes_equally_often_leaves_nothing_to_weigh():
    for options in ({"class_weights": "sqrt"}, {"logit_adjustment": 1.0}):
        with pytest.raises(UserError, match="sampling='balanced' already"):
            loss_of(sampling="balanced", **options)
    loss_of(sampling="balanced", class_weights={"cat": 2.0})


def test_all_problems_are_listed_at_once():
    with pytest.raises(UserError) as error:
        loss_of(gamma=1.0, beta=0.5, class_weights="rare", logit_adjustment="much")
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0].partition("=")[0] for line in lines] == [
        f"loss_options.{name}"
        for name in ("gamma", "beta", "class_weights", "logit_adjustment")
    ]


def test_the_config_knows_which_losses_exclude_other_classes():
    meaning = MEANINGS["exclusive"]
    losses = {meaning.loss, *meaning.other_losses}
    assert set(combinations.EXCLUSIVE_LOSSES) == losses
    config = default_config()
    config.mixing.binary_targets = True
    for loss in LOSSES:
        config.loss = loss
        assert bool(combinations.wrong_mixing(config)) == (loss in losses), loss


STEP = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
    "learning_rate": 1.0,
    "eval_every": 0,
}


def test_devices_microbatches_and_masks_give_the_same_weighted_mean(tiny_config):
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.integers(0, 256, (16, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 10, 16).astype(np.int32),
        "mask": np.linspace(0, 1, 16, dtype=np.float32),
        "bad": np.zeros(16, np.int32),
    }
    spread = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 4}
    found = []
    for way in ({"mesh.data": 1}, spread):
        config = tiny_config(**{**STEP, **way, "loss": "sigmoid_focal"})
        config.mixing.mixup_alpha, config.label_smoothing = 0.5, 0.1
        options = {"class_weights": (9.0, *[1.0] * 8, 0.2), "logit_adjustment": 1.0}
        config.loss_options = ConfigDict(options)
        setup = set_up(config)
        abstract = setup.abstract_state()
        draw = np.random.default_rng(7)
        params = jax.tree.map(
            lambda x, draw=draw: 0.3 * draw.normal(size=x.shape).astype(np.float32),
            abstract.params,
        )
        where = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.device_put(setup.new_state(params), where)
        state, metrics = setup.lower().compile()(
            state, sharding.place(batch, setup.mesh)
        )
        after = jax.device_get(state.params)
        grads = jax.tree.map(np.subtract, params, after)
        found.append((float(metrics["loss"]), grads))
    (one, expected), (eight, grads) = found
    assert eight == pytest.approx(one, rel=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for left, right in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6 * largest)


def test_a_run_says_what_its_outputs_mean_and_evaluates_plainly(tiny_config, tmp_path):
    config = tiny_config(
        **{"loss": "asymmetric", "total_steps": 2, "eval_every": 2, "log_every": 1}
    )
    config.loss_options = ConfigDict({"gamma_neg": 2.0, "pos_weight": "balanced"})
    train_and_evaluate(config, tmp_path)
    assert load_description(tmp_path).outputs == "independent"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = {(row["step"], row["split"]): row for row in map(json.loads, lines)}
    # The head begins at 0, and 10 sigmoid cross-entropies of 0 are 10 log 2.
    assert rows[2, "eval"]["loss"] == pytest.approx(10 * np.log(2), rel=0.2)
    assert rows[1, "train"]["loss"] < 0.7 * 10 * np.log(2)


def test_options_of_an_unknown_loss_are_not_judged(tiny_config):
    config = tiny_config(loss="focal")
    config.loss_options = ConfigDict({"gamma": 1.0})
    with pytest.raises(UserError) as error:
        set_up(config)
    assert "has 1 problem(s):\n  - loss='focal': choose from" in str(error.value)
