import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from vit_jax import sharding
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import Example
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Classification, means
from vit_jax.evaluators.examples import add_up
from vit_jax.evaluators.steps import Counted, make_eval_step
from vit_jax.objectives.losses import LOSSES

PREPROCESSING = Preprocessing((4, 4), 1, eval_transform="")


class Arrays:
    """Random images with random labels."""

    def __init__(self, count, num_classes, multi_label=False):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
        self.num_classes, self.multi_label = num_classes, multi_label
        self.class_names = tuple(map(str, range(num_classes)))
        self.targets = np.zeros((count, num_classes), np.float32)
        if multi_label:
            self.targets = (rng.random((count, num_classes)) < 0.3).astype(np.float32)
            self.labels = [tuple(np.flatnonzero(row)) for row in self.targets]
        else:
            self.labels = rng.integers(0, num_classes, count).tolist()
            self.targets[np.arange(count), self.labels] = 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Example(self.images[index], self.labels[index], f"arrays[{index}]")


def _model(num_classes):
    """Returns a linear model, which compiles fast; only the counting matters here."""
    model = types.SimpleNamespace(
        architecture=types.SimpleNamespace(num_classes=num_classes),
        apply=lambda variables, x: x.reshape(len(x), -1) @ variables["params"],
        clone=lambda **_: model,
    )
    params = np.random.default_rng(1).normal(size=(16, num_classes))
    return model, params.astype(np.float32)


def _run(source, batch_size, *, loss="softmax", devices=8, **options):
    model, params = _model(source.num_classes)
    mesh = sharding.make_mesh(devices)
    counted = Counted(several=source.multi_label, **options)
    step = make_eval_step(model, PREPROCESSING, mesh, loss=loss, counted=counted)
    with eval_batches(
        source,
        batch_size=sharding.padded_batch_size(batch_size, mesh),
        preprocessing=PREPROCESSING,
        num_threads=0,
    ) as batches:
        params = jax.device_put(params, sharding.replicated(mesh))
        return means(add_up(step, params, batches, mesh, examples=len(source)))


def _expected(source, loss="softmax"):
    """Computes the numbers from all logits at once, by sorting in NumPy."""
    model, params = _model(source.num_classes)
    images = PREPROCESSING.normalize(source.images)
    logits = np.asarray(model.apply({"params": params}, images))
    order = np.argsort(-logits, axis=1)
    right = np.take_along_axis(source.targets, order, axis=1) > 0
    # Without a label no prediction could be right.
    labelled = source.targets.any(axis=1)
    losses = LOSSES[loss](jnp.asarray(logits), jnp.asarray(source.targets))
    return {
        "loss": np.mean(np.asarray(losses, np.float64)),
        "top1": right[labelled, 0].mean(),
        "top5": right[labelled, :5].any(axis=1).mean(),
        "examples": len(source),
        "bad_images": 0,
        "hits": right[:, 0],
    }


def _assert_same(found, expected):
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for name in ("top1", "top5", "examples", "bad_images"):
        assert found[name] == expected[name], name


@pytest.mark.parametrize(
    ("count", "batch_size", "devices"),
    [(7, 4, 8), (1000, 512, 8), (9, 3, 1), (5, 5, 2)],
)
def test_every_example_counts_once(count, batch_size, devices):
    source = Arrays(count, 10)
    expected = _expected(source)

    _assert_same(_run(source, batch_size, devices=devices), expected)
    assert 0 < expected["top5"] < 1


@pytest.mark.parametrize(("num_classes", "all_right"), [(3, True), (7, False)])
def test_top5_of_few_classes(num_classes, all_right):
    source = Arrays(40, num_classes)
    found = _run(source, 16)

    _assert_same(found, _expected(source))
    assert (found["top5"] == 1) == all_right


def test_a_prediction_counts_when_it_is_among_several_labels():
    source = Arrays(30, 8, multi_label=True)
    found = _run(source, 16, loss="sigmoid")
    expected = _expected(source, "sigmoid")

    _assert_same(found, expected)
    # This is not the share of examples whose first label was predicted.
    first = np.argmax(source.targets, axis=1)
    assert expected["top1"] > np.mean(expected["hits"] & (first == 0))


@pytest.mark.parametrize("multi_label", [False, True])
def test_accuracy_of_each_class(multi_label):
    source = Arrays(30, 8, multi_label)
    found = _run(source, 16, per_class=True)
    labelled = source.targets > 0

    np.testing.assert_array_equal(found["class_examples"], labelled.sum(axis=0))
    right = (labelled & _expected(source)["hits"][:, None]).sum(axis=0)
    np.testing.assert_array_equal(found["class_right"], right)
    assert right.sum() > 0


def test_unreadable_images_are_counted_separately():
    source = Arrays(10, 6)
    whole = source.__getitem__
    broken = type("Broken", (Arrays,), {})(10, 6)
    broken_rows = (2, 9)
    type(broken).__getitem__ = lambda self, i: (
        Example(b"no image", 0, f"broken[{i}]") if i in broken_rows else whole(i)
    )
    model, params = _model(6)
    mesh = sharding.make_mesh()
    step = make_eval_step(model, PREPROCESSING, mesh, loss="softmax", per_class=True)
    with eval_batches(
        broken, batch_size=8, preprocessing=PREPROCESSING, bad_images="skip"
    ) as batches:
        params = jax.device_put(params, sharding.replicated(mesh))
        found = means(add_up(step, params, batches, mesh, examples=10))

    readable = Arrays(10, 6)
    keep = [i for i in range(10) if i not in broken_rows]
    readable.images, readable.targets = readable.images[keep], readable.targets[keep]
    _assert_same(found, _expected(readable) | {"bad_images": 2})
    assert found["class_examples"].sum() == 8


def _rows(count):
    return {
        "image": np.zeros((8, 4, 4, 1), np.uint8),
        "label": np.zeros(8, np.int32),
        "mask": (np.arange(8) < count).astype(np.float32),
        "bad": np.zeros(8, np.int32),
    }


@pytest.mark.parametrize("examples", [11, 13])
def test_a_count_that_differs_from_the_data_is_a_bug(examples):
    model, params = _model(3)
    mesh = sharding.make_mesh()
    step = make_eval_step(model, PREPROCESSING, mesh, loss="softmax")
    params = jax.device_put(params, sharding.replicated(mesh))
    batches = [_rows(8), _rows(4)]

    assert add_up(step, params, batches, mesh, examples=12)["examples"] == 12
    with pytest.raises(
        AssertionError, match=f"12 examples .* the data have {examples}"
    ):
        add_up(step, params, batches, mesh, examples=examples)


def test_a_nan_in_padding_does_not_count():
    model, params = _model(3)
    mesh = sharding.make_mesh()
    step = make_eval_step(model, PREPROCESSING, mesh, loss="sigmoid")
    rows = _rows(4) | {"label": np.zeros((8, 3), np.float32)}
    rows["label"][4:] = np.nan
    params = jax.device_put(params, sharding.replicated(mesh))

    found = means(add_up(step, params, [rows], mesh, examples=4))
    assert np.isfinite(found["loss"])
    assert found["examples"] == 4


def test_sums_over_many_batches_stay_exact():
    # In float32, adding one to 2²⁴ changes nothing.
    mesh = sharding.make_mesh()
    sums = {
        "loss": np.float32(2**24),
        "examples": np.int32(2**30),
        "top1": np.int32(2**30),
        "top5": np.int32(2**30),
        "bad_images": np.int32(0),
    }
    last = {**{name: sums[name] * 0 for name in sums}, "loss": np.float32(1)}
    steps = iter([sums] * 4 + [last])

    found = means(
        add_up(
            lambda params, batch: next(steps), {}, [_rows(8)] * 5, mesh, examples=2**32
        )
    )
    assert found["examples"] == 2**32
    assert found["loss"] == (2**26 + 1) / 2**32
    assert found["top1"] == 1.0


def test_details_of_one_label(pixels, evaluate):
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 60, p=[0.7, 0.1, 0.1, 0.1])
    scores = rng.integers(0, 160, (60, 4))
    scores[np.arange(60), labels] += 90
    source = pixels(scores, labels.tolist(), "abcd")
    plain = evaluate(Classification, source, batch_size=7)
    assert plain.numbers.keys() == {"loss", "top1", "top5", "examples", "bad_images"}
    assert plain.confusion is None
    # Batches of 7 leave the last one with rows that are no examples.
    found = evaluate(Classification, source, details=True, batch_size=7)
    predicted = np.argmax(scores, axis=1)
    assert plain.numbers.items() <= found.numbers.items()
    assert found.numbers["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )
    assert found.numbers["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )
    cells = {
        (cell.label, cell.predicted): cell.count for cell in found.confusion.cells()
    }
    matrix = metrics.confusion_matrix(labels, predicted)
    assert cells == {
        (i, j): matrix[i, j] for i in range(4) for j in range(4) if matrix[i, j]
    }


def test_a_wanted_metric_is_given_or_refused(pixels, evaluate):
    source = pixels([[0, 9], [9, 0]], [1, 1], "ab")
    assert evaluate(Classification, source, wanted=("macro_f1",)).numbers["macro_f1"]
    with pytest.raises(UserError, match="do not give exact_match; choose from loss"):
        evaluate(Classification, source, wanted=("exact_match", "top1"))


def test_classes_are_matched_by_name(pixels, evaluate):
    scores = [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    source = pixels(scores, [0, 1, 1], ("c", "a"))
    found = evaluate(Classification, source, names=("a", "b", "c"), per_class=True)
    assert found.numbers["top1"] == 2 / 3
    np.testing.assert_array_equal(found.by_class["examples"], [2, 0, 1])
    np.testing.assert_array_equal(found.by_class["top1"], [1 / 2, np.nan, 1])


def test_batch_sizes_are_padded_to_the_devices():
    mesh = sharding.make_mesh()
    padded = [sharding.padded_batch_size(n, mesh) for n in (1, 8, 9, 512)]
    assert padded == [8, 8, 16, 512]
