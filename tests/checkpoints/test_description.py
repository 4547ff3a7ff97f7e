import dataclasses
import json

import pytest

from vit_jax.checkpoints.description import SCHEMA_VERSION, Description
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models.architecture import Architecture


@pytest.fixture
def description():
    architecture = Architecture.from_variant(
        "Ti/16", image_size=(32, 48), num_classes=2
    )
    return Description(
        architecture,
        Preprocessing(
            image_size=(32, 48), eval_transform="resize", mean=(0.1, 0.2, 0.3)
        ),
        ("Katze", "犬"),
        {"image_size": (32, 48), "learning_rate": 0.1, "model": {"variant": "Ti/16"}},
        step=12,
    )


def test_json_round_trip(description):
    text = json.dumps(description.to_dict())
    assert Description.from_dict(json.loads(text)) == description
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION == 1


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_other_schema_versions_are_refused(description, version):
    values = description.to_dict() | {"schema_version": version}
    with pytest.raises(
        UserError, match=f"schema version {version!r}.* reads version 1"
    ):
        Description.from_dict(values)


def test_unknown_and_missing_keys_are_refused(description):
    values = description.to_dict()
    del values["class_names"]
    with pytest.raises(
        UserError, match=r"\['class_names', 'x'\] are missing or unknown"
    ):
        Description.from_dict(values | {"x": 1})
    values = description.to_dict()
    values["architecture"]["flavour"] = 1
    with pytest.raises(UserError, match=r"cannot be read by this.*flavour"):
        Description.from_dict(values)


def test_later_changes_of_the_config_do_not_change_the_description(description):
    config = {"model": {"variant": "Ti/16"}}
    copy = Description(
        description.architecture, description.preprocessing, ("a",), config, 1
    )
    config["model"]["variant"] = "B/16"
    assert copy.config == {"model": {"variant": "Ti/16"}}


@pytest.mark.parametrize(
    ("loss", "classes", "outputs"),
    [
        ("softmax", 2, "exclusive"),
        ("sigmoid", 2, "independent"),
        # The softmax of a single output is always 1.
        ("softmax", 1, "independent"),
    ],
)
def test_old_descriptions_mean_what_their_loss_trained(
    description, loss, classes, outputs
):
    values = description.to_dict()
    del values["outputs"]
    values["config"]["loss"] = loss
    values["architecture"]["num_classes"] = classes
    assert Description.from_dict(values).outputs == outputs


def test_the_meaning_of_the_outputs_is_recorded(description):
    numbers = dataclasses.replace(description, outputs="numbers")
    values = json.loads(json.dumps(numbers.to_dict()))
    assert values["outputs"] == "numbers"
    assert Description.from_dict(values) == numbers
    with pytest.raises(UserError, match=r"outputs='classes': choose from exclusive"):
        Description.from_dict(values | {"outputs": "classes"})
