"""Foreign weights: from the file to the fine-tuned model, and out again."""

import json
import logging
import pathlib
import runpy

import jax
import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import evaluate as evaluate_command
from vit_jax import predict
from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture, abstract_params
from vit_jax.train.loop import train_and_evaluate
from vit_jax.weights.saving import save_weights

B16 = pathlib.Path(__file__).parents[2] / "configs" / "b16.py"
SMALL = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "num_classes": 5}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _save(path, format, architecture, **preprocessing):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    description = Description(
        architecture,
        Preprocessing(architecture.image_size, **preprocessing),
        (),
        to_plain(default_config()),
        step=0,
    )
    save_weights(description, params, path, format)
    return params


@pytest.fixture
def folder(make_images, tmp_path):
    return make_images(
        tmp_path / "images",
        {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2},
    )


@pytest.fixture
def recipe(folder):
    """Makes configs/b16.py for a folder, for two steps, with other values."""

    def recipe(**values):
        config = runpy.run_path(str(B16))["get_config"](str(folder))
        few = {"batch_size": 8, "eval_batch_size": 4, "accum_steps": 1}
        config.update_from_flattened_dict(
            few | {"total_steps": 2, "warmup_steps": 1, "loader_threads": 2} | values
        )
        return config

    return recipe


@pytest.mark.parametrize("variant", ["B/16", ""])
def test_b16_fine_tunes_from_googles_file(variant, recipe, tmp_path, caplog):
    architecture = Architecture(
        **SMALL, patch_size=(16, 16), image_size=(224, 224), pre_logits=16
    )
    _save(tmp_path / "ViT-B_16.npz", "google", architecture)
    sizes = {f"model.{k}": SMALL[k] for k in ("width", "depth", "mlp_dim", "num_heads")}
    config = recipe(
        pretrained=str(tmp_path / "ViT-B_16.npz"),
        **{"model.variant": variant, **(sizes if variant else {})},
    )
    with caplog.at_level(logging.INFO):
        result = train_and_evaluate(config, str(tmp_path / "run"))

    assert result["examples"] == 4
    for done in (
        "position embeddings resized from 14×14 to 24×24 (google)",
        "the tanh layer before the head dropped",
        "the head replaced by a new one with zeros",
    ):
        assert done in caplog.text
    model = vit_jax.load(tmp_path / "run")
    assert model.architecture.grid == (24, 24)
    assert model.class_names == ("cat", "dog")
    assert model.params["head"]["kernel"].any()


@pytest.mark.parametrize(
    ("format", "architecture", "size"),
    [
        (
            "timm",
            Architecture(
                **SMALL,
                patch_size=(4, 4),
                image_size=(8, 8),
                gelu="exact",
                distillation_token=True,
            ),
            (12, 16),
        ),
        (
            "google",
            MixerArchitecture(
                width=16,
                depth=1,
                tokens_mlp_dim=8,
                mlp_dim=32,
                patch_size=(4, 4),
                image_size=(8, 8),
                num_classes=5,
            ),
            (8, 8),
        ),
    ],
)
def test_an_empty_variant_takes_the_files_architecture(
    format, architecture, size, recipe, tmp_path
):
    path = tmp_path / ("weights" if format == "timm" else "weights.npz")
    _save(path, format, architecture, **(IMAGENET if format == "timm" else {}))
    config = recipe(
        pretrained=str(path), image_size=size, **{"model.variant": "", "batch_size": 8}
    )
    train_and_evaluate(config, str(tmp_path / "run"))

    model = vit_jax.load(tmp_path / "run")
    assert type(model.architecture) is type(architecture)
    assert model.architecture.image_size == size
    assert model.architecture.gelu == architecture.gelu
    if format == "timm":
        assert model.preprocessing.mean == IMAGENET["mean"]
        assert model.architecture.distillation_token


def test_weights_of_another_model_than_the_variant_are_refused(recipe, tmp_path):
    architecture = Architecture(
        **SMALL, patch_size=(16, 16), image_size=(32, 32), gelu="exact"
    )
    _save(tmp_path / "weights", "timm", architecture)
    config = recipe(pretrained=str(tmp_path / "weights"))
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, str(tmp_path / "run"))
    message = str(error.value)
    assert "width: 16 in the weights, 768 in the model" in message
    assert "gelu: 'exact' in the weights, 'tanh' in the model" in message
    assert "leave model.variant empty" in message
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_predicts_and_is_saved_and_loaded_again(
    tmp_path, run_command, capsys
):
    architecture = Architecture(
        **SMALL, patch_size=(4, 4), image_size=(8, 12), gelu="exact"
    )
    params = _save(tmp_path / "weights", "timm", architecture, **IMAGENET)
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "image.png")

    model = vit_jax.load(tmp_path / "weights", num_classes=0)
    images = model.prepare(tmp_path / "image.png")
    assert model(images).shape == (1, 16)
    assert model.attention(images).shape == (1, 1, 2, 7, 7)
    assert model.features(images).patches.shape == (1, 1, 2, 3, 16)

    model = vit_jax.load(tmp_path / "weights")
    np.testing.assert_array_equal(
        model.params["head"]["kernel"], params["head"]["kernel"]
    )
    path = vit_jax.save(model, tmp_path / "copy.safetensors")
    again = vit_jax.load(path)
    assert again.architecture == model.architecture
    np.testing.assert_array_equal(again(images), model(images))

    for checkpoint in (tmp_path / "weights", path):
        run_command(
            predict, f"--checkpoint={checkpoint}", tmp_path / "image.png", "--json"
        )
        report = json.loads(capsys.readouterr().out)
        assert len(report["predictions"][0]["top"]) == 5


def test_evaluation_needs_data_of_the_same_classes(
    folder, tmp_path, run_command, capsys
):
    architecture = Architecture(
        **SMALL | {"num_classes": 2},
        patch_size=(4, 4),
        image_size=(8, 8),
        gelu="exact",
    )
    _save(tmp_path / "weights", "timm", architecture)
    with pytest.raises(SystemExit, match=r"was not trained here.*pass --dataset"):
        run_command(evaluate_command, f"--checkpoint={tmp_path / 'weights'}")
    run_command(
        evaluate_command,
        f"--checkpoint={tmp_path / 'weights'}",
        f"--dataset={folder}",
        "--json",
    )
    assert json.loads(capsys.readouterr().out)["examples"] == 4
