"""A user's own images, from the folder to the prediction; keys that a run reads."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

import vit_jax
from vit_jax.checkpoints.reading import load_description
from vit_jax.config import default_config, flat_keys
from vit_jax.train.loop import train_and_evaluate

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "tfds"
PACKAGE = pathlib.Path(vit_jax.__file__).parent

NAMES = ("Äpfel", "pears", "plums and more")


def mixed(pixels):
    """Returns one picture in every format and kind of pixels: file ending → image."""
    image = PIL.Image.fromarray(pixels)
    deep = PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return {
        "a.jpg": image,
        "b.JPEG": image.convert("CMYK"),
        "c.png": image.convert("RGBA"),
        "d.PNG": deep,
        "e.webp": image.convert("RGBA"),
        "f.bmp": image.convert("L"),
        "g.gif": image.convert("P"),
        "h.tiff": image,
        "i.tif": deep,
        "j.Png": image.convert("LA"),
        "k.jpeg": image.convert("L"),
        "l.png": image.convert("P"),
    }


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "total_steps": 2}
    return lambda **values: tiny_config(**(smallest | values))


def test_a_mixed_folder_from_training_to_prediction(
    tiny, tmp_path, monkeypatch, stopping_before, read_metrics
):
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        (tmp_path / "my fruit" / name).mkdir(parents=True)
        pictures = mixed(rng.integers(0, 256, (11, 13, 3), np.uint8))
        for file, image in list(pictures.items())[number::3]:
            image.save(tmp_path / "my fruit" / name / file)
    files = sorted((tmp_path / "my fruit").glob("*/*"))
    assert len(files) == 12

    monkeypatch.chdir(tmp_path)
    config = tiny(dataset="my fruit", batch_size=8, checkpoint_every=1)
    stopping_before(2, "train", lambda: train_and_evaluate(config, "runs/fruit"))
    assert load_description("runs/fruit").step == 1
    numbers = train_and_evaluate(config, "runs/fruit")
    assert numbers["bad_images"] == 0
    assert [line["step"] for line in read_metrics(tmp_path / "runs/fruit")] == [1, 2, 2]

    # In fresh processes and another folder, by the public commands.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    checkpoint = "--checkpoint=../runs/fruit"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"vit_jax.{name}", checkpoint, "--json", *arguments],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, arguments in (("evaluate", []), ("predict", ["../my fruit"]))
    ]
    reports = []
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        reports.append(json.loads(output))
    evaluated, predicted = reports
    assert evaluated["dataset"] == str(tmp_path / "my fruit")
    for name in ("top1", "loss", "examples"):
        assert evaluated[name] == pytest.approx(numbers[name], abs=1e-6)
    assert len(predicted["predictions"]) == 12
    for image in predicted["predictions"]:
        assert sorted(row["class"] for row in image["top"]) == sorted(NAMES)
        total = sum(row["probability"] for row in image["top"])
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("counts", "examples"),
    [
        ({"train/a": 9, "train/b": 9, "val/a": 4, "val/b": 3}, 7),
        ({"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 1}, 3),
        ({"a": 30, "b": 30}, None),
    ],
)
def test_every_layout_trains_and_counts_each_image_once(
    tiny, make_images, tmp_path, counts, examples
):
    folder = make_images(tmp_path / "images", counts)
    # Seven images do not fill two batches of four, nor eight devices.
    config = tiny(dataset=str(folder), eval_batch_size=4, **{"mesh.data": -1})
    numbers = train_and_evaluate(config, str(tmp_path / "run"))
    if examples is None:
        examples = numbers["examples"]
        assert 1 <= examples <= 15  # about a tenth of sixty, by chance
    assert numbers["examples"] == examples
    assert numbers["top1"] * examples == pytest.approx(
        round(numbers["top1"] * examples)
    )
    assert numbers["top5"] == 1.0


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ({"dataset": str(FIXTURES / "tiny_tags"), "loss": "sigmoid"}, 4),
        ({"dataset": str(FIXTURES / "tiny_digits/1.0.0")}, 3),
    ],
)
def test_prepared_sets_train(tiny, tmp_path, values, classes):
    numbers = train_and_evaluate(tiny(total_steps=1, **values), str(tmp_path / "run"))
    assert numbers["examples"] > 0
    description = load_description(tmp_path / "run")
    assert len(description.class_names) == classes
    assert description.architecture.num_classes == classes


WITHOUT = """
import builtins, importlib, json, sys
import numpy as np

asked = []

def refusing(importing):
    def refuse(name, *arguments, **options):
        if name.split(".")[0] in ("tensorflow", "torch") and name not in sys.modules:
            asked.append(name)
            raise ImportError(name)
        return importing(name, *arguments, **options)
    return refuse

builtins.__import__ = refusing(builtins.__import__)
importlib.import_module = refusing(importlib.import_module)
from vit_jax import load, main
main.main()
top = load(sys.argv[-1].split("=")[1]).predict(np.zeros((8, 8, 3), np.uint8))[0]
print(json.dumps([top, asked]))
"""


def test_training_and_prediction_import_no_other_framework(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from vit_jax.config import default_config\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.update_from_flattened_dict({\n"
        "        'image_size': (8,), 'batch_size': 8, 'total_steps': 1,\n"
        "        'model.variant': 'Ti/4', 'model.width': 16, 'model.depth': 1,\n"
        "        'model.mlp_dim': 32, 'model.num_heads': 2, 'mesh.data': 1,\n"
        "    })\n"
        "    return config\n"
    )
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, f"--config={recipe}", f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    top, asked = json.loads(done.stdout)
    assert len(top) == 5
    assert asked == []


# Code that only checks, copies or writes a config does not count as reading it.
_NOT_READING = {
    "_get",
    "wrong_values",
    "with_defaults",
    "problems",
    "_wrong_length",
    "_wrong_mixing",
    "_architecture_without_variant",
    "to_plain",
    "flat_keys",
    "override_length",
}


@pytest.fixture
def keys_read(monkeypatch):
    """Records the dotted keys that the package reads while it runs."""
    sections = {
        frozenset(value): name
        for name, value in default_config().items()
        if isinstance(value, ConfigDict)
    }
    read = set()

    def recording(method):
        def record(config, key):
            value = method(config, key)
            caller = sys._getframe(1).f_code
            ours = caller.co_filename.startswith(str(PACKAGE))
            # A comprehension is a separate function.
            names = {caller.co_name, sys._getframe(2).f_code.co_name}
            if ours and not names & _NOT_READING and not isinstance(value, ConfigDict):
                section = sections.get(frozenset(config.keys()))
                read.add(f"{section}.{key}" if section else key)
            return value

        return record

    for name in ("__getattr__", "__getitem__"):
        monkeypatch.setattr(ConfigDict, name, recording(getattr(ConfigDict, name)))
    return read


def test_every_config_key_is_read(tiny, tmp_path, monkeypatch, keys_read):
    monkeypatch.chdir(tmp_path)
    first = tiny(schedule="linear", total_steps=1)
    train_and_evaluate(first)
    start = next((tmp_path / "runs").iterdir())
    second = tiny(
        pretrained=str(start), optimizer="sgd", schedule="rsqrt", weight_decay=0.1
    )
    second.image_size = (12,)
    second.ema_decay, second.ema_warmup = 0.9, True
    second.total_steps, second.total_epochs = None, 0.02
    second.augment.train = "resize"
    second.mixing.form, second.mixing.erasing_prob = "timm", 0.5
    second.mixing.mixup_alpha = second.mixing.cutmix_alpha = 1.0
    train_and_evaluate(second, "second")
    assert sorted(set(flat_keys(default_config())) - keys_read) == []
