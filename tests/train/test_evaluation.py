"""The evaluators of a run: their schedule, names, data, and invalid ones."""

import json

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.evaluators import choosing
from vit_jax.evaluators.protocol import Evaluator
from vit_jax.objectives.choosing import OBJECTIVES
from vit_jax.objectives.classification import Classification
from vit_jax.train.evaluation import Evaluations
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up
from vit_jax.train.start import open_sources


class Counting(Evaluator):
    """An evaluator that reports how often it was called, and on how many examples."""

    better = {"calls": 1.0, "left": -1.0}  # noqa: RUF012

    def __init__(self, subject, data, start=0):
        self.calls, self.examples = start, data.examples(subject)

    def compile(self, params):
        self.compiled = params

    def __call__(self, params, watch=iter):
        self.calls += 1
        with self.examples.batches() as batches:
            counted = sum(rows["mask"].sum() for rows in watch(batches))
        return {"calls": self.calls, "left": self.calls, "examples": int(counted)}


class Failing(Counting):
    def __call__(self, params, watch=iter):
        raise self.error


class Silent(Counting):
    """An evaluator that does not give the number by which it judges."""

    def __call__(self, params, watch=iter):
        return {"examples": 0}


class Numbers(Classification):
    """An objective whose outputs are plain numbers, which are not classes."""

    outputs_per_image = 1

    @classmethod
    def num_classes(cls, config, info):
        return cls.outputs_per_image

    @staticmethod
    def outputs(config):
        return "numbers"


@pytest.fixture
def tiny(tiny_config, monkeypatch):
    table = {**choosing.EVALUATORS, "counting": Counting, "failing": Failing}
    table["silent"] = Silent
    monkeypatch.setattr(choosing, "EVALUATORS", table)

    def make(evaluators, **values):
        config = tiny_config(
            total_steps=6,
            log_every=6,
            eval_split="test[:20]",
            **{"mesh.data": 1, "model.depth": 1} | values,
        )
        config.evaluators = ConfigDict(evaluators)
        return config

    return make


def lines(workdir):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] != "train"]


def test_each_evaluator_has_its_schedule_and_its_name(tiny, tmp_path):
    rows = {
        "often": {"kind": "counting", "every": 2},
        "rarely": {"kind": "counting", "every": 3, "start": 10, "split": "test[:7]"},
        "last": {"kind": "counting", "every": 0, "dataset": "digits"},
    }
    train_and_evaluate(tiny(rows, eval_every=4), str(tmp_path))
    found = lines(tmp_path)
    assert [(line["step"], line["split"]) for line in found] == [
        (2, "eval"),
        (3, "eval"),
        (4, "eval"),
        (6, "eval"),
    ]
    names = [
        {key.partition("/")[0] for key in line} - {"step", "split"} for line in found
    ]
    own = {"loss", "top1", "top5", "examples", "bad_images"}
    assert names == [
        {"often"},
        {"rarely"},
        {"often"} | own,
        {"often", "rarely", "last"} | own,
    ]
    assert [line.get("often/calls") for line in found] == [1, None, 2, 3]
    assert [line.get("rarely/calls") for line in found] == [None, 11, None, 12]
    last = found[-1]
    assert (last["often/examples"], last["rarely/examples"]) == (20, 7)
    assert last["last/examples"] == 360
    assert last["examples"] == 20


@pytest.mark.parametrize(("metric", "best"), [("calls", 6), ("left", 2)])
def test_the_best_may_be_chosen_by_any_evaluator_in_its_direction(
    tiny, tmp_path, metric, best
):
    rows = {"often": {"kind": "counting", "every": 2}}
    config = tiny(rows, keep_best=f"often/{metric}", keep_checkpoints=1)
    train_and_evaluate(config, str(tmp_path))
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 6}


def several_labels(path, count=24):
    """Writes images whose labels are four corners, some of which are bright."""
    rng = np.random.default_rng(0)
    labels = rng.random((count, 4)) < 0.4
    labels[0] = False
    images = np.zeros((count, 8, 8), np.uint8)
    for corner, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        images[:, y : y + 4, x : x + 4] = 255 * labels[:, corner, None, None]
    np.savez(
        path, train_images=images, train_labels=labels.astype(np.uint8),
        val_images=images, val_labels=labels.astype(np.uint8),
    )  # fmt: skip
    return str(path), int(labels.any(axis=1).sum())


def measured(config):
    """Returns the numbers of a run's last evaluation with parameters of zeros."""
    setup = set_up(config)
    _, eval_source = open_sources(setup)
    evaluations = Evaluations(setup, eval_source)
    params = setup.model_params(setup.param_shapes)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    return evaluations.measure(config.total_steps, zeros, iter)


def test_several_labels_are_measured_by_average_precision(tiny, tmp_path):
    path, labelled = several_labels(tmp_path / "corners.npz")
    rows = {"again": {"kind": "classification", "loss": "sigmoid"}}
    config = tiny(rows, keep_best="mean_average_precision", dataset=path)
    config.eval_split, config.loss = "", "sigmoid"
    numbers = measured(config)
    own = {
        *("loss", "top1", "top5", "examples", "labelled", "bad_images"),
        *("mean_average_precision", "macro_f1", "micro_f1", "exact_match"),
        "classes_without_positives",
    }
    assert numbers.keys() == own | {f"again/{name}" for name in own}
    assert numbers["labelled"] == labelled < numbers["examples"] == 24
    # Parameters of zeros rank all images alike: the mean share of positives.
    with np.load(path) as file:
        share = file["val_labels"].mean()
    for name in ("mean_average_precision", "again/mean_average_precision"):
        assert numbers[name] == pytest.approx(share)


def test_what_decides_is_reported(tiny):
    rows = {"seen": {"kind": "classification", "split": "train[:20]"}}
    numbers = measured(tiny(rows, keep_best="seen/macro_f1"))
    assert {"seen/balanced_accuracy", "seen/macro_f1"} < numbers.keys()
    assert {"balanced_accuracy", "macro_f1"}.isdisjoint(numbers)
    with pytest.raises(UserError, match="keep_best='exact_match': choose from loss"):
        set_up(tiny(rows, keep_best="exact_match"))


def test_a_best_that_was_never_measured_is_said(tiny, tmp_path, caplog):
    rows = {"silent": {"kind": "silent", "every": 3}}
    train_and_evaluate(tiny(rows, keep_best="silent/calls"), str(tmp_path))
    assert "keep_best=silent/calls: no checkpoint is the best" in caplog.text


def test_plain_numbers_of_a_run_have_errors(tiny, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "numbers", Numbers)
    numbers = measured(tiny({}, objective="numbers", keep_best="mean_absolute_error"))
    # Parameters of zeros say 0 for each digit of test[:20].
    digits = open_dataset("digits").split("test[:20]").labels()
    assert numbers == {
        "mean_absolute_error": pytest.approx(digits.mean()),
        "mean_squared_error": pytest.approx((digits**2).mean()),
        "examples": 20,
        "bad_images": 0,
    }


def test_plain_numbers_that_no_label_can_judge(tiny, monkeypatch, caplog):
    monkeypatch.setitem(OBJECTIVES, "numbers", Numbers)
    monkeypatch.setattr(Numbers, "outputs_per_image", 5)
    rows = {"often": {"kind": "counting", "every": 2}}
    numbers = measured(tiny(rows, objective="numbers"))
    assert {name.partition("/")[0] for name in numbers} == {"often"}
    assert "labels are not evaluated (config.evaluators" in caplog.text
    assert "gives 5 plain numbers" in caplog.text
    with pytest.raises(UserError, match="gives 5 plain numbers"):
        measured(tiny(rows, objective="numbers", keep_best="mean_absolute_error"))


def test_other_data_find_their_classes_by_name(tiny, tmp_path):
    images = np.zeros((4, 8, 8), np.uint8)
    for name, classes in (("part", ["7", "0"]), ("other", ["7", "ten"])):
        np.savez(
            tmp_path / f"{name}.npz",
            images=images,
            labels=np.array([0, 1, 1, 1]),
            class_names=np.array(classes),
        )
    row = {"kind": "classification", "split": "train+val", "per_class": True}
    rows = {"part": row | {"dataset": str(tmp_path / "part.npz")}}
    numbers = measured(tiny(rows))
    # Parameters of zeros predict the run's first class, "0".
    assert numbers["part/top1"] == 3 / 4
    assert (numbers["part/top1/0"], numbers["part/top1/7"]) == (1, 0)
    (tmp_path / "one/0").mkdir(parents=True)
    PIL.Image.fromarray(images[0]).save(tmp_path / "one/0/0.png")
    rows["part"] |= {"dataset": str(tmp_path / "one"), "split": "train"}
    assert measured(tiny(rows))["part/top1"] == 1
    rows["part"] |= {"dataset": str(tmp_path / "other.npz"), "split": "train+val"}
    with pytest.raises(UserError, match=r"evaluator 'part': .*Only in the data: ten"):
        measured(tiny(rows))


def test_a_run_continues_with_other_evaluators(tiny, tmp_path):
    rows = {"often": {"kind": "counting", "every": 2}}
    train_and_evaluate(tiny(rows), str(tmp_path))
    before = (tmp_path / "metrics.jsonl").read_text()
    train_and_evaluate(tiny({}), str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("no such file"), "the evaluator 'mine': no such file"),
        (ZeroDivisionError("oops"), "oops"),
    ],
)
def test_a_failing_evaluator_is_named(tiny, tmp_path, monkeypatch, error, message):
    monkeypatch.setattr(Failing, "error", error, raising=False)
    config = tiny({"mine": {"kind": "failing", "every": 3}})
    with pytest.raises(type(error)) as caught:
        train_and_evaluate(config, str(tmp_path))
    assert message in str(caught.value)
    notes = getattr(caught.value, "__notes__", [])
    assert isinstance(error, UserError) or "evaluator 'mine'" in notes[0]


@pytest.mark.parametrize(
    ("evaluators", "values", "message"),
    [
        ({"x": {"every": 2}}, {}, "evaluators.x: found .*expected `kind`"),
        ({"x": {"kind": "counting", "every": -1}}, {}, "expected `kind`.*`every`"),
        ({"a/b": {"kind": "counting"}}, {}, "evaluators.a/b"),
        ({"x": {"kind": "countin"}}, {}, "evaluators.x='countin'.*'counting'"),
        (
            {"x": {"kind": "counting", "batch_size": 0}, "y": {"kind": "z"}},
            {},
            "(?s)x.batch_size=0: expected a number of at least 1.*evaluators.y='z'",
        ),
        ({"x": {"kind": "counting", "split": 3}}, {}, "x.split=3: expected text"),
        ({"x": {"kind": "counting", "data_dir": "."}}, {}, "without `dataset`"),
        ({"x": {"kind": "counting", "data": {"splits": ""}}}, {}, "without `dataset`"),
        (
            {"x": {"kind": "counting", "dataset": "digits", "data": {"spilts": ""}}},
            {},
            "evaluators.x.data.spilts: no such option; .* did you mean 'splits'",
        ),
        ({"x": {"kind": "counting", "data": 1}}, {}, "x.data=1: expected options by"),
        ({}, {"keep_best": "top2"}, "keep_best='top2': choose from loss, top1, top5"),
        (
            {"x": {"kind": "counting"}},
            {"keep_best": "x/call"},
            "choose from loss, top1, top5, balanced_accuracy, macro_f1, x/calls, "
            "x/left; did you mean 'x/calls'",
        ),
    ],
)
def test_rows_that_cannot_work_are_named_before_anything_is_compiled(
    tiny, evaluators, values, message
):
    with pytest.raises(UserError, match=message):
        set_up(tiny(evaluators, **values))


def test_an_option_that_the_class_does_not_accept_is_named(tiny):
    config = tiny({"x": {"kind": "counting", "begin": 3}})
    with pytest.raises(UserError, match="does not take begin; it takes start"):
        set_up(config)


def test_views_of_an_example_are_drawn_separately_and_reproducibly():
    from vit_jax.data.loading.batches import train_batches
    from vit_jax.data.sources.datasets import open_dataset
    from vit_jax.data.transforms.chains import parse_chain

    source = open_dataset("digits").split("train[:32]")
    chains = {
        "image": parse_chain("inception_crop", (8, 8)),
        "large": parse_chain("inception_crop", (16, 16)),
    }

    def batches(transform, **options):
        with train_batches(
            source,
            batch_size=8,
            transform=transform,
            channels=1,
            seed=0,
            start=0,
            stop=3,
            **options,
        ) as found:
            return list(found)

    both, again = batches(chains, num_threads=3), batches(chains, num_threads=0)
    for one, other in zip(both, again, strict=True):
        assert one.keys() == {"image", "large", "label", "mask", "bad"}
        assert one["large"].shape == (8, 16, 16, 1)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # The first view is drawn as if it were the only one.
    for one, other in zip(both, batches(chains["image"]), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
