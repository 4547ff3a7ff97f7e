"""Every format keeps what the outputs mean and what they are called, or says so."""

import json
import logging

import jax
import numpy as np
import pytest
from safetensors import safe_open

import vit_jax
from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.saving import save_weights

# format → name of its file
FORMATS = {
    "vit_jax": "x.safetensors",
    "timm": "x.safetensors",
    "timm directory": "x",
    "huggingface": "x",
    "google": "x.npz",
    "big_vision": "x.npz",
    "torchvision": "x.safetensors",
    "mmpretrain": "x.safetensors",
}
WITHOUT_A_PLACE = ("google", "big_vision", "torchvision", "mmpretrain")
NAMES = ("ape", "bat", "cat")
SHOWN = {
    "exclusive": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "independent": lambda x: 1 / (1 + np.exp(-x)),
    "numbers": lambda x: x,
}


def _model(outputs, names=NAMES, **fields):
    architecture = Architecture(
        width=64,
        depth=1,
        mlp_dim=16,
        num_heads=1,
        patch_size=(4, 4),
        image_size=(8, 8),
        gelu="exact",
        **{"num_classes": len(names) or 3} | fields,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    config = to_plain(default_config())
    inputs = Preprocessing((8, 8))
    return Description(architecture, inputs, names, config, 7, outputs=outputs), params


@pytest.fixture
def saved(tmp_path_factory, caplog):
    def save(model, name):
        """Saves a model; returns its path, and what the log says about outputs."""
        caplog.clear()
        folder = tmp_path_factory.mktemp("saved")
        with caplog.at_level(logging.WARNING):
            path = save_weights(*model, folder / FORMATS[name], name.split()[0])
        words = ("outputs mean", "the names of the", "plain numbers", "same name")
        return path, [x for x in caplog.messages if any(word in x for word in words)]

    return save


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("outputs", SHOWN)
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_probabilities_or_the_loss_is_named(name, outputs, classes, saved):
    usual = "independent" if classes == 1 else "exclusive"
    meant = usual if outputs == "exclusive" else outputs
    path, log = saved(_model(outputs, NAMES[:classes]), name)
    model = vit_jax.load(path)
    told = [line for line in log if "has no place for what the outputs mean" in line]
    if name in WITHOUT_A_PLACE and meant != usual:
        assert model.outputs == usual
        (line,) = told
        advice = f"load it with outputs={meant!r} (in commands --outputs={meant})"
        assert advice in line
        model = vit_jax.load(path, outputs=meant)
    else:
        assert not told
    assert model.outputs == meant

    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    logits = np.asarray(model(model.prepare(pixels)), np.float64)
    names = model.class_names or [str(index) for index in range(classes)]
    for row, found in zip(SHOWN[meant](logits), model.predict(pixels), strict=True):
        expected = dict(zip(names, row, strict=True))
        assert dict(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_lost_class_names_are_listed(name, saved):
    path, log = saved(_model("exclusive"), name)
    if name in WITHOUT_A_PLACE:
        (line,) = log
        assert "no place for the names of the 3 classes (ape, bat, cat)" in line
        assert vit_jax.load(path).class_names == ()
    else:
        assert not log
        assert vit_jax.load(path).class_names == NAMES
    # There is nothing to lose.
    for model in (_model("exclusive", ()), _model("exclusive", (), num_classes=0)):
        assert saved(model, name)[1] == []


@pytest.mark.parametrize("name", WITHOUT_A_PLACE)
def test_a_number_of_classes_that_implies_the_meaning(name, saved):
    """Readers take the 21,843 classes of ImageNet-21k as independent."""
    path, log = saved(_model("independent", (), num_classes=21_843), name)
    assert not log
    assert vit_jax.load(path).outputs == "independent"
    _, log = saved(_model("exclusive", (), num_classes=21_843), name)
    assert "will be read as a yes or no for each class (sigmoid)" in log[0]


@pytest.mark.parametrize(
    ("outputs", "problem_type"),
    [
        ("exclusive", None),
        ("independent", "multi_label_classification"),
        ("numbers", "regression"),
    ],
)
def test_the_fields_that_other_programs_read(outputs, problem_type, saved):
    path, _ = saved(_model(outputs), "huggingface")
    config = json.loads((path / "config.json").read_text())
    assert config.get("problem_type") == problem_type
    path, log = saved(_model(outputs), "timm")
    with safe_open(path, "np") as opened:
        config = json.loads(opened.metadata()["config"])
    # At the top, where transformers reads it and timm ignores it.
    assert config.get("problem_type") == problem_type
    assert "problem_type" not in config["pretrained_cfg"] | config["model_args"]
    told = [line for line in log if "function_to_apply='none'" in line]
    assert len(told) == (outputs == "numbers")


@pytest.mark.parametrize("name", ["huggingface", "timm", "google", "vit_jax"])
def test_repeated_names_are_reported(name, saved):
    path, log = saved(_model("exclusive", ("crane", "bat", "crane")), name)
    told = [line for line in log if "same name" in line and line.endswith(": crane")]
    assert len(told) == (name != "vit_jax")  # ours keeps each by its number
    if name not in WITHOUT_A_PLACE:
        assert vit_jax.load(path).class_names == ("crane", "bat", "crane")


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        ("multi_label_classification", "independent"),
        ("regression", "numbers"),
        ("single_label_classification", "exclusive"),
        (None, "exclusive"),
    ],
)
def test_a_wrapped_timm_model(value, outputs, saved):
    """Reads the config that the wrapper of transformers writes for a timm model."""
    path, _ = saved(_model("exclusive"), "timm directory")
    file = path / "config.json"
    config = json.loads(file.read_text()) | {
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "problem_type": value,
        "label_names": [f"LABEL_{index}" for index in range(3)],
    }
    file.write_text(json.dumps(config))
    model = vit_jax.load(path)
    assert (model.outputs, model.class_names) == (outputs, ())


@pytest.mark.parametrize("teacher", [True, False])
def test_distilled_heads_keep_their_meaning(teacher, saved):
    fields = {"distillation_token": True, "distillation_head": teacher}
    path, log = saved(_model("independent", **fields), "huggingface")
    assert not log
    assert vit_jax.load(path).outputs == "independent"


@pytest.mark.parametrize("name", FORMATS)
def test_an_assumed_meaning_is_said_when_the_file_is_read(name, saved, caplog):
    """A reader of the file may not know what was said when it was written."""
    for outputs, classes in (("independent", 3), ("numbers", 1)):
        path, _ = saved(_model(outputs, NAMES[:classes]), name)
        usual = {3: "classes that exclude each other", 1: "a yes or no for each class"}
        words = {3: "the model's 3 outputs mean", 1: "the model's output means"}
        caplog.clear()
        found = vit_jax.load(path).outputs
        told = [line for line in caplog.messages if "nothing records what" in line]
        if name in WITHOUT_A_PLACE:
            (line,) = told
            assert f"{words[classes]}: assumed {usual[classes]}" in line
            assert "pass outputs= (in commands --outputs=)" in line
        else:
            assert (found, told) == (outputs, [])
        caplog.clear()
        vit_jax.load(path, outputs=outputs)
        vit_jax.load(path, num_classes=5)
        vit_jax.load(path, num_classes=0)
        assert "nothing records" not in caplog.text
