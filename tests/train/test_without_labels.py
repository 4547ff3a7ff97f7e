"""Tests of runs on images that have no labels."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vit_jax.errors import UserError
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

DECODER = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config_of(tiny_config, photos):
    def make(objective, options=(), **values):
        given = {"eval_every": 0, "augment.train": None, "data.kind": "unlabelled"}
        config = tiny_config(**{**given, "dataset": str(photos), **values})
        config.objective, config.objective_options = (
            objective,
            ConfigDict(dict(options)),
        )
        return config

    return make


def test_a_masked_autoencoder_learns_from_them(config_of, tmp_path, caplog):
    config = config_of("masked_autoencoding", DECODER, **{"model.posemb": "sincos2d"})
    config.evaluators = ConfigDict({"near": {"kind": "knn", "every": 1}})
    train_and_evaluate(config, str(tmp_path / "run"))
    assert "evaluator 'near' is left out, because the images have no labels" in (
        caplog.text
    )
    text = (tmp_path / "run/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["split"] for line in lines} == {"train"}
    assert lines[-1]["step"] == config.total_steps
    assert np.isfinite(lines[-1]["loss"])


def test_an_objective_with_labels_is_refused(config_of):
    with pytest.raises(UserError, match=r"classification learns from labels, but the"):
        set_up(config_of("classification"))


def test_a_draw_by_class_is_refused(config_of):
    with pytest.raises(UserError, match="sampling=balanced: the images have no labels"):
        set_up(config_of("masked_autoencoding", DECODER, sampling="balanced"))


def test_an_evaluator_may_measure_other_data(config_of):
    config = config_of("masked_autoencoding", DECODER)
    row = {"kind": "knn", "every": 0}
    config.evaluators = ConfigDict({"own": row, "digits": row | {"dataset": "digits"}})
    assert [row.name for row in set_up(config).evaluators] == ["digits"]
