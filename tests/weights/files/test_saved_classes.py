"""Class names in PyTorch files, where training scripts put them."""

import pytest

from vit_jax.weights.files.pytorch.pickles import Global, Inert
from vit_jax.weights.files.saved_classes import find_class_names

NAMES = ("bat", "ape", "cat")
TABLE = {"ape": 1, "bat": 0, "cat": 2}


@pytest.mark.parametrize(
    "saved",
    [
        {"class_to_idx": TABLE},  # torchvision's ImageFolder
        {"classes": list(NAMES), "epoch": 3, "arch": "vit"},
        {"meta": {"dataset_meta": {"classes": NAMES, "palette": None}}},  # mmpretrain
        {"meta": {"CLASSES": NAMES, "epoch": 3}},  # mmcls
        {"hyper_parameters": {"label_names": list(NAMES), "lr": 0.1}},
        {"config": {"id2label": {"0": "bat", "1": "ape", "2": "cat"}}},
        {"label2id": TABLE, "classes": list(NAMES)},
    ],
)
def test_names_in_the_order_of_the_outputs(saved):
    assert find_class_names({"state_dict": {}} | saved) == [NAMES]


@pytest.mark.parametrize(
    "saved",
    [
        {"classes": 3},
        {"classes": []},
        {"classes": [0, 1, 2]},
        {"labels": ["a", None]},
        {"class_to_idx": {"ape": 1, "bat": 2}},  # no class 0
        {"class_to_idx": {"ape": 0, "bat": 0}},
        {"class_to_idx": {"ape": True, "bat": False}},
        {"class_to_idx": {}},
        {"classes": Inert(Global("numpy", "ndarray"))},
        {"classes": Global("torch", "Tensor")},  # a named tuple of texts
        {"a": {"b": {"c": {"d": {"classes": list(NAMES)}}}}},
        list(NAMES),
    ],
)
def test_anything_else_is_no_list_of_names(saved):
    assert find_class_names(saved) == []


def test_several_lists_are_all_found():
    saved = {"classes": list(NAMES), "ema": {"classes": ["x", "y"]}}
    assert find_class_names(saved) == [NAMES, ("x", "y")]
