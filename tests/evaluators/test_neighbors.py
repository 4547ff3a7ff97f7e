"""Nearest neighbours, compared with scikit-learn's."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import sharding
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources import splits
from vit_jax.errors import UserError
from vit_jax.evaluators import neighbors
from vit_jax.evaluators.examples import Data
from vit_jax.evaluators.neighbors import Neighbors
from vit_jax.evaluators.protocol import Subject

RNG = np.random.default_rng(0)
CLASSES = tuple("abcdefg")
CENTERS = RNG.integers(40, 215, (len(CLASSES), 16))


def draw(pixels, count):
    labels = RNG.integers(0, len(CLASSES), count)
    images = CENTERS[labels] + RNG.normal(0, 60, (count, 16))
    return pixels(np.clip(images, 0, 255).astype(np.uint8), labels.tolist(), CLASSES)


@pytest.fixture
def sets(pixels):
    return {"train": draw(pixels, 101), "test": draw(pixels, 53)}


def make(sets, mesh=(1,), split="test", train_split="train", **options):
    """Makes the evaluator of a model whose features are the pixels."""

    def apply(variables, images, intermediates):
        vectors = images.reshape(len(images), -1)
        return vectors, dict.fromkeys(intermediates, vectors)

    model = types.SimpleNamespace(
        architecture=None, apply=apply, clone=lambda **_: model
    )
    preprocessing = Preprocessing((4, 4), 1, eval_transform="")
    subject = Subject(model, preprocessing, sharding.make_mesh(*mesh))
    counts = {name: len(source) for name, source in sets.items()}
    data = Data(
        *(lambda split: sets[split], split, train_split, 16),
        common=lambda one, other: splits.common(one, other, counts, "these"),
    )
    return Neighbors(subject, data, **options)


def measure(evaluator):
    evaluator.compile({"w": jnp.zeros(())})
    return evaluator({"w": jnp.zeros(())})


def reference(sets, k, temperature=0.07):
    """Returns top-1 and top-5 of scikit-learn's classifier."""
    values = {
        name: data.images.reshape(-1, 16) / 127.5 - 1 for name, data in sets.items()
    }
    model = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(values["train"], sets["train"].all_labels)
    votes = model.predict_proba(values["test"])
    best = np.argsort(-votes, axis=1, kind="stable")
    right = model.classes_[best] == np.array(sets["test"].all_labels)[:, None]
    return right[:, 0].mean(), right[:, :5].any(axis=1).mean()


@pytest.mark.parametrize("mesh", [(1,), (2, 2, 2)])
def test_accuracies_are_those_of_scikit_learn(sets, mesh, monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 5)
    found = measure(make(sets, mesh, k=(20, 3, 100)))
    for k in (20, 3, 100):
        top1, top5 = reference(sets, k)
        assert found[f"top1_k{k}"] == pytest.approx(top1)
        assert found[f"top5_k{k}"] == pytest.approx(top5)
    assert 0.3 < found["top1"] < 1
    assert found["top1"] == found["top1_k20"]
    counts = {"examples": 53, "bad_images": 0, "neighbors": 101}
    assert {name: found[name] for name in counts} == counts


def test_the_temperature_weighs_the_votes(sets):
    found = measure(make(sets, k=50, temperature=5.0))
    assert found["top1"] == pytest.approx(reference(sets, 50, 5.0)[0])
    several = measure(make(sets, k="50,3", temperature=5.0))
    assert several["top1_k50"] == found["top1"] != several["top1_k3"]
    assert found.keys() == {"top1", "top5", "examples", "bad_images", "neighbors"}


def test_there_may_be_fewer_images_than_neighbours(sets, pixels):
    sets["train"] = draw(pixels, 4)
    found = measure(make(sets, k=200))
    assert found["top1"] == pytest.approx(reference(sets, 4)[0])


def test_unreadable_images_are_no_neighbours(sets):
    evaluator = make(sets, k=5)
    read = evaluator._train.sums

    def without_the_first(step, params, watch, columns):
        def hide(rows):
            seen.append(len(rows["label"]))
            counts = rows["counts"].copy()
            counts[:1] &= len(seen) > 1
            columns({**rows, "counts": counts})

        seen = []
        return read(step, params, watch, hide)

    evaluator._train.sums = without_the_first
    found = measure(evaluator)
    rest = sets["train"]
    rest.images, rest.all_labels = rest.images[1:], rest.all_labels[1:]
    assert found["neighbors"] == 100
    assert found["top1"] == pytest.approx(reference(sets, 5)[0])


def test_rows_of_the_bank():
    assert neighbors.bank_rows(101, 8) == 8 * 13
    assert neighbors.bank_rows(1_281_167, 8) == 8 * 160_150
    assert neighbors.bank_rows(3, 8) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0: give one or several numbers"),
        ({"k": (10, "a")}, "give one or several numbers"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"features": "tokens"}, "choose from pre_logits, pooled"),
        ({"split": "train"}, "where some or all of these images would find themselves"),
        ({"split": "train+test"}, "would find themselves"),
        ({"train_split": ""}, "these data have no split for training"),
    ],
)
def test_wrong_options(sets, options, message):
    with pytest.raises(UserError, match=message):
        make(sets, **options)


def test_several_labels_are_refused(sets, pixels):
    sets["train"] = pixels([[0], [255]], [(0,), (0, 1)], CLASSES, multi_label=True)
    with pytest.raises(UserError, match="may have several labels"):
        make(sets)
