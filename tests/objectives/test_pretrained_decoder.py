"""Continuing masked autoencoding from weights with and without a decoder."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.checkpoints.description import Description
from vit_jax.config import to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import abstract_params
from vit_jax.models.decoder import DecoderFacts, abstract_decoder, fixed_positions
from vit_jax.models.positions import sincos2d
from vit_jax.train.setup import set_up
from vit_jax.train.start import fit_weights
from vit_jax.weights.contents import Weights

CONFIG = {
    "objective": "masked_autoencoding",
    "model.width": 16,
    "model.depth": 1,
    "model.mlp_dim": 24,
    "model.num_heads": 2,
    "model.variant": "Ti/4",
    "model.posemb": "sincos2d",
    "model.sincos_denominator": "mae",
    "model.gelu": "exact",
    "image_size": (16,),
    "eval_every": 0,
    "augment.train": "resize(18)|random_crop",
}
OPTIONS = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}
FACTS = DecoderFacts(12, 1, 48, 3, normalize_pixels=True)


@pytest.fixture(scope="module")
def setup():
    from vit_jax.config import default_config

    config = default_config()
    config.update_from_flattened_dict(
        {"dataset": "digits", "model.channels": 1, "batch_size": 8, "total_steps": 2}
        | CONFIG
    )
    config.objective_options = ConfigDict(OPTIONS)
    return set_up(config)


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype("f"), shapes)


def weights(setup, decoder=None, architecture=None, **changes):
    """Makes weights of the run's architecture, or another one."""
    a = architecture or setup.architecture
    params = drawn(abstract_params(a))
    if decoder is not None:
        params["decoder"] = drawn(abstract_decoder(a, decoder), 1)
    description = Description(
        a, Preprocessing(a.image_size, a.channels), (), to_plain(setup.config), 0,
        decoder=decoder,
    )  # fmt: skip
    return Weights(description, params)


def test_encoder_and_decoder_are_continued(setup):
    source = weights(setup, FACTS)
    found = fit_weights(setup, source, ())
    assert jax.tree.structure(found) == jax.tree.structure(setup.param_shapes)
    same = jax.tree.map(np.array_equal, found, source.params)
    assert all(jax.tree.leaves(same))


def test_without_a_decoder_a_new_one_starts(setup, caplog):
    found = fit_weights(setup, weights(setup), ())
    assert "decoder" not in found
    (said,) = [r.message for r in caplog.records if "decoder" in r.message]
    assert said.endswith("they have no decoder, so a new one starts at random")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"normalize_pixels": False},
            ["objective_options.normalize_pixels=True, but False in the weights"],
        ),
        (
            {"width": 16, "mlp_dim": 64, "num_heads": 2, "depth": 2},
            [
                "objective_options.decoder_width=12, but 16 in the weights",
                "objective_options.decoder_depth=1, but 2 in the weights",
                "objective_options.decoder_heads=3, but 2 in the weights",
            ],
        ),
        ({"mlp_dim": 24}, ["its MLPs are 24 wide, not 4 × 12"]),
        ({"qkv_bias": False}, ["its queries, keys and values have no biases"]),
        ({"posemb": "learned"}, ["its positions are not MAE's fixed ones"]),
    ],
)
def test_another_decoder_is_refused(setup, changes, messages):
    source = weights(setup, dataclasses.replace(FACTS, **changes))
    with pytest.raises(UserError) as caught:
        fit_weights(setup, source, ())
    message = str(caught.value)
    start = "the decoder in the pretrained weights cannot be continued: "
    assert message.startswith(start + "; ".join(messages) + ". Set these to the values")
    assert "convert SOURCE encoder.safetensors --to=timm" in message


def test_patches_of_another_size_have_another_decoder(setup):
    other = dataclasses.replace(setup.architecture, patch_size=(8, 8))
    with pytest.raises(UserError, match=r"patch_size: \(4, 4\) in this run, but \(8"):
        fit_weights(setup, weights(setup, FACTS, other), ())


def test_an_unknown_target_is_taken_to_be_the_runs(setup, caplog):
    facts = dataclasses.replace(FACTS, normalize_pixels=None)
    assert "decoder" in fit_weights(setup, weights(setup, facts), ())
    assert "nothing records what their decoder was trained to predict: assumed " in (
        caplog.text
    )


def test_fixed_positions_that_a_file_stores_are_computed_again(setup, caplog):
    # Meta's and Hugging Face's files store both tables; these are rounded otherwise.
    a = dataclasses.replace(
        setup.architecture,
        posemb="learned",
        class_token_position=True,
        sincos_denominator="big_vision",
    )
    facts = dataclasses.replace(FACTS, posemb="learned")
    source = weights(setup, facts, a)
    params, decoder = source.params, source.params["decoder"]
    rounded = fixed_positions((4, 4), 12, 1) + np.float32(1e-7)
    decoder["pos_embed_prefix"] = rounded[:, :1]
    decoder["pos_embed"] = rounded[:, 1:].reshape(1, 4, 4, 12)
    params["pos_embed"] = sincos2d((4, 4), 16, "mae") + np.float32(1e-7)
    cls, position = params["cls"], params["pos_embed_prefix"]
    found = fit_weights(setup, source, ())
    assert jax.tree.structure(found) == jax.tree.structure(setup.param_shapes)
    np.testing.assert_array_equal(found["cls"], cls + position)
    assert "the stored positions are the fixed ones, which are computed" in caplog.text


def test_other_positions_of_the_encoder_are_refused(setup):
    a = dataclasses.replace(setup.architecture, posemb="learned")
    with pytest.raises(UserError, match="posemb: 'learned' in the weights, 'sincos2d'"):
        fit_weights(setup, weights(setup, FACTS, a), ())


def test_other_objectives_leave_a_decoder_unused(setup, caplog):
    config = setup.config.copy_and_resolve_references()
    config.objective, config.objective_options = "classification", ConfigDict()
    found = fit_weights(set_up(config), weights(setup, FACTS), ())
    assert "decoder" not in found
    assert "pretrained weights: the decoder is not used" in caplog.text


def test_checkpoints_describe_the_decoder(setup):
    assert setup.objective.decoder_facts() == FACTS
    description = weights(setup, FACTS).description
    assert Description.from_dict(description.to_dict()) == description
    # Older releases read everything else.
    assert "decoder" not in weights(setup).description.to_dict()
