"""The linear probe: the head alone, on the features of whatever weights there are."""

import jax
import numpy as np

from vit_jax.checkpoints.reading import load_params
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up
from vit_jax.weights.loading import load_weights


def test_only_the_head_is_trained_at_full_size(load):
    setup = set_up(load("probe"))
    assert setup.architecture.width == 768
    trained = setup.groups.trained(setup.param_shapes)
    assert jax.tree.map(lambda x: x.shape, trained) == {
        "head": {"kernel": (768, 1000), "bias": (1000,)}
    }
    assert setup.config.weight_decay == 0
    assert setup.config.augment.train == "resize|flip_lr"


def test_the_model_is_that_of_the_weights_and_only_its_head_changes(
    load, make_teacher, tmp_path
):
    weights = make_teacher(class_names=(), registers=2, gelu="exact")
    overrides = ("image_size=8", "total_steps=3", "mesh.data=1", "batch_size=16")
    flags = [f"--config.{override}" for override in overrides]
    config = load("probe", f"digits,{weights}", *flags)
    numbers = train_and_evaluate(config, str(tmp_path / "run"))
    assert numbers["examples"] == 360
    before = load_weights(weights).params
    after = load_params(tmp_path / "run", 3)
    assert after["registers"].shape == (1, 2, 16)
    head, old = after.pop("head"), before.pop("head")
    assert np.any(head["kernel"]) and head["kernel"].shape == old["kernel"].shape
    jax.tree.map(np.testing.assert_array_equal, after, before)
