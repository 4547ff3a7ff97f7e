"""Tests of the held-out part: fair by class, whole groups, and stable."""

import collections

import numpy as np
import pytest

from vit_jax.data.sources.listings import Entry, hold_out, left_without, mixed


def entries(counts):
    return mixed(
        Entry(f"{label}/{k}.jpg", label)
        for label, count in enumerate(counts)
        for k in range(count)
    )


def per_class(some, classes):
    return np.bincount([entry.label for entry in some], minlength=classes)


# Flowers-102 has 10 training images per class; by the first rules 36 of its classes
# had none held out, and one class of 30 images none at all.
@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_every_class_has_examples_on_both_sides(count, share):
    divided = hold_out(entries([count] * 102), share)
    held_out = per_class(divided["val"], 102)
    assert held_out.min() >= max(1, int(share * count / 2))
    assert held_out.max() <= max(1, min(2 * share * count + 1, count - 1))
    assert (per_class(divided["train"], 102) == count - held_out).all()
    assert left_without(divided, list(map(str, range(102)))) == ()


def test_the_first_rules_left_classes_without():
    divided = hold_out(entries([10] * 102), 0.1, rules=1)
    assert (per_class(divided["val"], 102) == 0).sum() == 38


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_share_is_held_out_of_large_classes(share):
    divided = hold_out(entries([5000, 5000]), share)
    # Three standard deviations of a binomial distribution.
    tolerance = 3 * np.sqrt(5000 * share * (1 - share))
    np.testing.assert_allclose(
        per_class(divided["val"], 2), 5000 * share, atol=tolerance
    )


def test_a_single_image_is_for_training_and_its_class_is_named():
    divided = hold_out(entries([1, 20, 1]), 0.1)
    assert (per_class(divided["train"], 3) >= 1).all()
    assert left_without(divided, ["owl", "cat", "emu"]) == (
        "2 class(es) without a held-out example: 'owl', 'emu'",
    )


def test_new_images_move_no_others():
    before = hold_out(entries([200, 200]), 0.1)
    after = hold_out(entries([260, 230, 50]), 0.1)
    for side in ("train", "val"):
        assert set(before[side]) < set(after[side])
    fewer = hold_out(entries([150, 180]), 0.1)
    for side in ("train", "val"):
        assert set(fewer[side]) < set(before[side])


def test_whole_groups_are_held_out():
    listed = [Entry(f"{k}.jpg", k % 3) for k in range(300)]
    groups = [f"patient {k // 10}" for k in range(300)]
    divided = hold_out(listed, 0.1, groups)
    side_of = collections.defaultdict(set)
    for side, some in divided.items():
        for entry in some:
            side_of[int(entry.path[:-4]) // 10].add(side)
    assert len(side_of) == 30
    assert all(len(sides) == 1 for sides in side_of.values())
    assert 10 <= len(divided["val"]) <= 80
    # The group decides, whatever the paths are.
    other = [entry._replace(path=f"x{entry.path}") for entry in listed]
    again = hold_out(other, 0.1, groups)
    assert [e.path for e in again["val"]] == [f"x{e.path}" for e in divided["val"]]


def test_groups_take_precedence_over_classes_which_are_then_named():
    listed = [Entry(f"{k}.jpg", k // 50) for k in range(100)]
    groups = [f"camera {k // 50}" for k in range(100)]  # one class per camera
    divided = hold_out(listed, 0.1, groups)
    assert {len(some) for some in divided.values()} == {50}
    found = left_without(divided, ["fox", "owl"])
    assert len(found) == 2
    assert found[0].startswith("1 class(es) without a training example: '")
    assert found[1].startswith("1 class(es) without a held-out example: '")


def test_examples_without_a_group_stand_alone():
    listed = [Entry(f"{k}.jpg", 0) for k in range(200)]
    divided = hold_out(listed, 0.5, [""] * 200)
    assert 70 <= len(divided["val"]) <= 130


def test_one_group_cannot_be_divided():
    listed = [Entry(f"{k}.jpg", 0) for k in range(20)]
    assert hold_out(listed, 0.1, ["one"] * 20)["val"] == []


def test_several_labels_have_examples_on_both_sides():
    rng = np.random.default_rng(0)
    rare = [(20 + k // 2, int(rng.integers(5))) for k in range(20)]  # two images each
    common = [tuple(rng.choice(20, 2, replace=False).tolist()) for _ in range(400)]
    listed = mixed(Entry(f"{k}.jpg", labels) for k, labels in enumerate(rare + common))
    divided = hold_out([*listed, Entry("none.jpg", ())], 0.1)
    for some in divided.values():
        assert {label for entry in some for label in entry.label} == set(range(30))
    assert 30 <= len(divided["val"]) <= 80


@pytest.mark.parametrize("name", range(10))
def test_the_last_image_of_a_label_stays_in_training(name):
    listed = [Entry(f"{name}a.jpg", (0, 1)), Entry(f"{name}b.jpg", (0,))]
    divided = hold_out(listed, 1e-6)
    assert divided == {"train": listed[:1], "val": listed[1:]}


def test_the_same_image_twice_is_on_one_side():
    listed = [Entry(f"{k % 40}.jpg", k % 2) for k in range(120)]
    divided = hold_out(listed, 0.2)
    train, val = ({entry.path for entry in some} for some in divided.values())
    assert not train & val
    assert len(train | val) == 40


def test_each_label_stays_in_training_at_any_share():
    listed = [Entry(f"{k}.jpg", (k // 3,)) for k in range(9)] + [Entry("x.jpg", ())]
    for some in hold_out(listed, 1 - 1e-9).values():
        assert {label for entry in some for label in entry.label} == {0, 1, 2}


def test_what_a_run_held_out_stays_held_out():
    divided = hold_out(entries([20, 20]), 0.1)
    assert {entry.path for entry in divided["val"]} == {
        "0/11.jpg",
        "1/7.jpg",
        "1/9.jpg",
    }
