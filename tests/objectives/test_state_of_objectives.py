"""State of objectives: parameters of the model; and facts that a run resumes with."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vit_jax
from vit_jax.checkpoints.reading import load_checkpoint, load_description, load_params
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError
from vit_jax.objectives import choosing
from vit_jax.objectives.classification import Classification
from vit_jax.train.loop import train_and_evaluate


class HalfHead(Classification):
    """Classification whose model is used with half of the trained head."""

    locations = ("objective_options.place",)
    colour = "red"

    def __init__(self, given, place=""):
        super().__init__(given)
        self.place = place

    def facts(self):
        return {"colour": self.colour}

    def init_state(self, params):
        return {"model": {"head": params["head"]}, "count": np.float32(0)}

    def after(self, state, additive, params, step):
        head = jax.tree.map(lambda x: x / 2, params["head"])
        return {"model": {"head": head}, "count": state["count"] + 1}


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setitem(choosing.OBJECTIVES, "half_head", HalfHead)
    monkeypatch.setattr(HalfHead, "colour", "red")
    config = tiny_config(
        objective="half_head",
        train_split="train[:64]",
        eval_split="test[:64]",
        total_steps=2,
        batch_size=16,
        checkpoint_every=1,
        schedule="constant",
    )
    config.objective_options = ConfigDict({"place": "here"})
    return config


def test_the_state_of_an_objective(config, tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    numbers = train_and_evaluate(config, run)
    trained = load_params(run)
    description, served, _ = load_checkpoint(run)
    assert description.objective == {"colour": "red"}
    assert np.abs(trained["head"]["kernel"]).max() > 1e-4
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            served["head"][name], trained["head"][name] / 2, err_msg=name
        )
    for name in set(trained) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, served[name], trained[name])

    # What is loaded is what the run evaluated.
    source = open_dataset("digits").split("test[:64]")
    model = vit_jax.load(run)
    images = model.prepare([source[i].image for i in range(64)])
    logits = jax.nn.log_softmax(model(images))
    loss = -np.asarray(logits)[np.arange(64), source.labels()].mean()
    assert loss == pytest.approx(numbers["loss"], rel=1e-5)

    # With the same facts the run resumes, wherever they are now.
    config.total_steps = 3
    config.objective_options.place = "there"
    monkeypatch.setattr(HalfHead, "colour", "blue")
    with pytest.raises(UserError, match=r"colour blue \(before: red\)"):
        train_and_evaluate(config, run)
    monkeypatch.setattr(HalfHead, "colour", "red")
    train_and_evaluate(config, run)
    assert load_description(run).step == 3
