"""Matching of classes by name."""

import numpy as np
import pytest

from vit_jax.data.sources.class_names import Relabelled, match_names
from vit_jax.data.sources.protocol import Example
from vit_jax.errors import UserError

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (("a", "b"), ("a", "b"), [0, 1]),
        (("b", "a", "c"), ("a", "b", "c"), [1, 0, 2]),
        (("c", "a"), ("a", "b", "c"), [2, 0]),
        (("a", "x"), ("b", "a"), [1, -1]),
        # As a file system that decomposes names stores them.
        ((DECOMPOSED, "a"), ("a", COMPOSED), [1, 0]),
        # If both forms are classes of their own, the same form is meant.
        ((DECOMPOSED, "a"), (COMPOSED, DECOMPOSED, "a"), [1, 2]),
        # Nothing else is taken for the same.
        (("Cat", "hot_dog", "01"), ("cat", "hot dog", "1"), [-1, -1, -1]),
        # ImageNet has two cranes; in the same order nothing has to be told apart.
        (("crane", "crane", "a"), ("crane", "crane", "a"), [0, 1, 2]),
        # Names that occur more than once, but are not asked for, do no harm.
        (("a",), ("crane", "crane", "a"), [2]),
        ((), ("a",), [-1][:0]),
    ],
)
def test_names_are_matched(names, known, expected):
    assert match_names(names, known) == expected


def test_two_classes_of_one_name_cannot_be_told_apart():
    with pytest.raises(UserError, match="several have the same name: crane"):
        match_names(("crane", "a"), ("crane", "a", "crane"))


class Listed:
    """Examples whose images are their own numbers."""

    def __init__(self, labels, class_names, multi_label=False):
        self.all_labels, self.class_names = labels, class_names
        self.num_classes, self.multi_label = len(class_names), multi_label

    def __len__(self):
        return len(self.all_labels)

    def __getitem__(self, index):
        return Example(np.uint8(index), self.all_labels[index], str(index))

    def labels(self):
        return np.array(self.all_labels)

    def weights(self):
        return np.arange(len(self)) / 2


def rows(source):
    return [
        (int(example.image), example.label)
        for example in map(source.__getitem__, range(len(source)))
    ]


def test_labels_become_outputs():
    source = Listed([0, 1, 2, 1], ("b", "c", "a"))
    found = Relabelled(source, [1, 2, 0], ("a", "b", "c", "d"), 4)
    assert rows(found) == [(0, 1), (1, 2), (2, 0), (3, 2)]
    assert found.labels().tolist() == [1, 2, 0, 2]
    assert (found.num_classes, found.class_names) == (4, ("a", "b", "c", "d"))
    assert (found.known, found.left_out) == ([0, 1, 2], 0)


def test_an_example_of_an_unknown_class_is_left_out():
    source = Listed([0, 1, 2, 1], ("b", "x", "a"))
    found = Relabelled(source, [1, -1, 0], ("a", "b"), 2)
    assert rows(found) == [(0, 1), (2, 0)]
    assert found.labels().tolist() == [1, 0]
    assert found.weights().tolist() == [0, 1]
    assert found.left_out == 2


def test_an_unknown_class_is_removed_from_several_labels():
    source = Listed([(0, 1), (1,), (2, 0), ()], ("b", "x", "a"), multi_label=True)
    found = Relabelled(source, [1, -1, 0], ("a", "b"), 2)
    assert rows(found) == [(0, (1,)), (1, ()), (2, (0, 1)), (3, ())]
    assert found.left_out == 0


def test_one_label_becomes_a_yes_or_a_no():
    source = Listed([0, 1, 1], ("no", "yes"))
    found = Relabelled(source, [-1, 0], ("yes",), 1, multi_label=True)
    assert rows(found) == [(0, ()), (1, (0,)), (2, (0,))]
    assert found.multi_label
