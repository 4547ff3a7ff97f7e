"""Bad input: one clear message in time, nothing lost, and no traceback."""

import logging
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import accelerators, main
from vit_jax import evaluate as evaluate_command
from vit_jax.checkpoints.reading import load_description, load_params
from vit_jax.errors import UserError
from vit_jax.train.loop import train_and_evaluate

HERE = pathlib.Path(__file__).parent

RECIPE = """
from vit_jax.config import default_config

def get_config():
    config = default_config()
    config.image_size = (8,)
    config.batch_size = 16
    config.eval_batch_size = 360
    config.total_steps = 6
    config.log_every = 1
    config.checkpoint_every = 2
    config.augment.train = "resize"
    config.model.variant = "Ti/4"
    config.model.width = 16
    config.model.depth = 1
    config.model.mlp_dim = 32
    config.model.num_heads = 2
    config.mesh.data = 1
    return config
"""

_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
        _compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
)


@pytest.fixture
def tiny(tiny_config):
    """Returns a function that makes the smallest configs: one block, one device."""
    smallest = {"mesh.data": 1, "model.depth": 1}
    return lambda **values: tiny_config(**(smallest | values))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Returns a function that gives the message of a run that ends early.

    Early means before it compiles or writes anything.
    """
    monkeypatch.chdir(tmp_path)

    def refused(config, workdir="run"):
        before = sorted(tmp_path.rglob("*"))
        _compiled.clear()
        with pytest.raises(UserError) as error:
            train_and_evaluate(config, str(workdir))
        assert _compiled == []
        assert sorted(tmp_path.rglob("*")) == before
        return str(error.value)

    return refused


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


# Values


def test_all_problems_are_in_one_message(recipe, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _compiled.clear()
    message = call(
        main.main,
        f"--config={recipe}",
        "--config.learning_rat=1",
        "--config.seed=x",
        "--config.model.scan=perhaps",
        "--config.loss=sofmax",
        "--config.learning_rate=-1",
        "--config.weight_decay=inf",
        "--config.image_size=9,13",
        "--config.batch_size=20",
        "--config.accum_steps=3",
        "--config.augment.train=flip_rl",
        "--config.augment.eval=flip_lr",
        "--config.dataset=./nowhere",
        "--config.mesh.data=9",
    )
    for part in (
        "the config has 12 problem(s)",
        "--config.learning_rat: no such key; did you mean 'learning_rate'",
        "--config.seed=x: expected a whole number; it is 0 now",
        "--config.model.scan=perhaps: expected true or false; it is False now",
        "loss='sofmax': choose from softmax, sigmoid, softmax_focal, sigmoid_focal, "
        "asymmetric; did you mean 'softmax'?",
        "learning_rate=-1.0: must be at least 0.0",
        "weight_decay=inf: must be a finite number",
        "image height 9 is not a multiple of the patch height 4 (nearest: 8 and 12); "
        "image width 13 is not a multiple of the patch width 4 (nearest: 12 and 16)",
        "1 devices × accum_steps=3 = 3: use 18 or 21",
        "augment.train: 'flip_rl' in the chain 'flip_rl': no operation 'flip_rl'; did "
        "you mean 'flip_lr'?",
        "augment.eval: evaluation must be deterministic",
        f"there is no folder {tmp_path}/nowhere",
        "mesh.data=9, but there are 8 cpu devices",
    ):
        assert part in message
    assert _compiled == []
    assert sorted(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"batch_size": 20, "mesh.data": 8},
            "8 devices × accum_steps=1 = 8: use 16 or 24",
        ),
        ({"accum_steps": 3, "mesh.data": -1}, "8 devices × accum_steps=3 = 24: use 24"),
        ({"model.variant": "Q/4"}, "unknown variant 'Q/4': .*did you mean 'Ti/4'"),
        ({"model.width": 18, "model.num_heads": 4}, "width 18 is not a multiple of"),
        ({"model.gelu": "x", "image_size": (9,)}, "(?s)gelu='x'.*image height 9"),
        ({"weight_decay": 0.1, "weight_decay_on": "x"}, "'x' matches no parameter"),
        ({"dataset": "cifar1"}, "has no set 'cifar1'.*did you mean .*'cifar10'"),
        ({"dataset": ""}, "no dataset given"),
        ({"eval_split": "val"}, r"split 'val' .*has the splits train \(1,437\), test"),
        ({"dataset": "./none"}, "there is no folder .*none"),
        ({"dataset": "./empty"}, r"no images of any class in .*empty; found 0 folder"),
        ({"dataset": "one"}, r"found one class \('cat'\)"),
        ({"dataset": "recipe.py"}, "recipe.py is a file, not a folder"),
        ({"augment.train": "random_crop", "image_size": (16,)}, "16×16 out of 8×8"),
        (
            {
                "augment.eval": "central_crop",
                "augment.train": "resize",
                "image_size": (16,),
            },
            "test.0.: .*out of 8×8",
        ),
        (
            {"model.channels": 2},
            "has 1 channels, the model takes 2. Set model.channels",
        ),
        (
            {"pretrained": "ViT-B_16.npz", "model.variant": "", "loss": "x"},
            r"(?s)ViT-B_16 is not in the cache, and downloads are disabled .*https://"
            r"storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz belongs at .*"
            r"loss='x'",
        ),
        ({"pretrained": "recipe.py"}, "recipe.py is a file of .* in an unknown format"),
        ({"pretrained": "one"}, "one is a directory that holds cat.* work director"),
    ],
)
def test_problems_that_are_detected_before_compilation(
    refused, recipe, tmp_path, tiny, make_images, values, text
):
    (tmp_path / "empty").mkdir()
    make_images(tmp_path / "one", {"cat": 2})
    if "model.variant" in values:
        values = {"model.width": 0, "model.depth": 0, "model.mlp_dim": 0} | values
        values["model.num_heads"] = 0
    message = refused(tiny(**values))
    pattern = pytest.RaisesExc(UserError, match=text)
    assert pattern.matches(UserError(message)), message


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (
            "batch_size = 16",
            "batchsize = 16",
            "line 7: batchsize: no such key; did you mean",
        ),
        ("batch_size = 16", "batch_size = 'x'", "line 7: TypeError: .*"),
        ("(8,)", "(8,", "line 6: SyntaxError: '\\(' was never closed"),
        ("return config", "pass", "returns None; expected a config"),
    ],
)
def test_a_mistake_in_a_recipe_names_its_line(recipe, call, before, after, text):
    recipe.write_text(RECIPE.replace(before, after, 1))
    message = call(main.main, f"--config={recipe}")
    with pytest.raises(UserError, match=text):
        raise UserError(message)


# Directories and disks


@pytest.mark.parametrize(
    ("workdir", "text"),
    [
        ("file", "file is a file, expected a folder; pass another --workdir"),
        ("file/run", r"file/run cannot be written to \(Not a directory\)"),
        ("/proc/nobody/run", r"/proc/nobody/run cannot be written to \("),
        ("gs://bucket/run", r"gs:// needs gcsfs; pip install 'vit_jax\[gcs\]'"),
    ],
)
def test_an_impossible_work_directory(refused, tiny, tmp_path, workdir, text):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=text):
        raise UserError(refused(tiny(), workdir))


def test_a_file_in_the_place_of_the_checkpoints(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*/run/checkpoints "):
        train_and_evaluate(tiny(), str(tmp_path / "run"))


def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(recipe, tmp_path, call):
    def run(workdir, step):
        script = str(HERE / "full_disk.py")
        flags = [f"--config={recipe}", f"--workdir={workdir}"]
        return subprocess.run(
            [sys.executable, script, step, *flags],
            capture_output=True,
            text=True,
            check=False,
            # Entries of the cache of compiled programs must not be cut short either.
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )

    full, roomy = tmp_path / "full", tmp_path / "roomy"
    done = run(full, "4")
    assert done.returncode == 1
    assert "error: checkpoint at step 4 was not saved (File too large)" in done.stderr
    assert f"the last good one is step 2 at {full}/checkpoints/2." in done.stderr
    assert "run the same command again to continue from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_description(full).step == 2
    assert vit_jax.load(full).step == 2

    for workdir in (full, roomy):
        assert call(main.main, f"--config={recipe}", f"--workdir={workdir}") is None
    assert same(load_params(full, 6), load_params(roomy, 6))
    metrics = [(workdir / "metrics.jsonl").read_text() for workdir in (full, roomy)]
    assert metrics[0] == metrics[1]


# Images that cannot be read


def damage(path):
    """Cuts the end off a file; returns a function that repairs it."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return lambda: path.write_bytes(data)


@pytest.fixture
def folder(tmp_path, make_images):
    counts = {"train/cat": 20, "train/dog": 20, "val/cat": 4, "val/dog": 3}
    return make_images(tmp_path / "animals", counts)


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_bad_training_images_are_named_and_counted(
    tiny, folder, tmp_path, caplog, stopping_before, read_metrics, policy
):
    damage(folder / "train/cat/3.png")
    (folder / "train/dog/7.png").write_bytes(b"")
    config = tiny(dataset=str(folder), bad_images=policy, total_steps=6)
    with caplog.at_level(logging.WARNING, "vit_jax"):
        train_and_evaluate(config, str(tmp_path / "whole"))
    for name in ("cat/3.png cannot be decoded", "dog/7.png is empty"):
        assert sum(name in message for message in caplog.messages) == 1  # once

    # 96 images are two epochs of 40 and a part of the third.
    told = [line for line in caplog.messages if line.startswith("epoch ")]
    assert [line[:8] for line in told] == ["epoch 1:", "epoch 2:"]
    assert all("images could not be read" in line for line in told)

    whole = read_metrics(tmp_path / "whole")
    counts = [line["bad_images"] for line in whole if line["split"] == "train"]
    # 96 images of a set of 40 are two epochs and a part of the third.
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert counts[-1] in (4, 5, 6)

    if policy == "skip":
        return
    again = str(tmp_path / "again")
    stopping_before(4, "train", lambda: train_and_evaluate(config, again))
    train_and_evaluate(config, again)
    assert read_metrics(tmp_path / "again") == whole
    assert same(load_params(again), load_params(tmp_path / "whole"))


def test_a_run_that_accepts_no_bad_image_stops_and_can_be_resumed(
    tiny, folder, tmp_path, read_metrics
):
    config = tiny(dataset=str(folder), bad_images="error", checkpoint_every=100)
    # An image of the second batch or of a later one.
    mend = damage(folder / "train/cat/0.png")
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, str(tmp_path / "run"))
    text = str(error.value)
    assert "cat/0.png cannot be decoded" in text
    assert "--config.bad_images=skip and another --workdir" in text
    match = re.search(r"Stopped at step (\d), which is saved. Once that is fixed", text)
    assert match
    assert load_description(tmp_path / "run").step == int(match[1])
    mend()
    train_and_evaluate(config, str(tmp_path / "run"))
    lines = [(line["step"], line["split"]) for line in read_metrics(tmp_path / "run")]
    assert lines == [*((step, "train") for step in (1, 2, 3, 4)), (4, "eval")]


def test_too_many_bad_images_stop_a_run_until_they_are_mended(tiny, folder, tmp_path):
    mend = [damage(folder / f"train/cat/{number}.png") for number in range(12)]
    config, run = tiny(dataset=str(folder), total_steps=8), str(tmp_path / "run")
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, run)
    text = str(error.value)
    assert re.search(r"1\d of (48|64) training images could not be read", text)
    assert "max_bad_images=0.1 allows only 10%" in text
    assert "Stopped at step " in text
    assert load_description(run).step in (3, 4)
    for action in mend:
        action()
    assert train_and_evaluate(config, run)["examples"] == 7
    assert load_description(run).step == 8


def test_a_folder_of_bad_images_stops(tiny, folder, tmp_path):
    for path in folder.glob("train/*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="17 images in a row cannot be read"):
        train_and_evaluate(tiny(dataset=str(folder)), str(tmp_path / "run"))


def test_evaluation_fails_at_a_bad_image_and_loses_nothing(
    tiny, folder, tmp_path, read_metrics, run_command, capsys
):
    mend = damage(folder / "val/dog/1.png")
    config = tiny(dataset=str(folder), checkpoint_every=100)
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, str(run))
    assert "val/dog/1.png cannot be decoded" in str(error.value)
    assert "Stopped at step 4, which is saved" in str(error.value)
    assert "--config.eval_bad_images=skip" in str(error.value)
    assert load_description(run).step == 4

    def evaluate(*flags):
        run_command(evaluate_command, f"--checkpoint={run}", *flags)

    with pytest.raises(SystemExit) as stop:
        evaluate()
    message = str(stop.value)
    assert "dog/1.png cannot be decoded" in message
    assert "pass --allow_bad_images" in message
    evaluate("--allow_bad_images")
    assert "6 examples, 1 more could not be read" in capsys.readouterr().out

    mend()
    train_and_evaluate(config, str(run))
    assert read_metrics(run)[-1]["examples"] == 7


def test_evaluation_skips_bad_images_on_request(tiny, folder, tmp_path):
    mend = [damage(path) for path in sorted(folder.glob("val/*/*"))]
    config = tiny(dataset=str(folder), eval_bad_images="skip", total_steps=1)
    with pytest.raises(UserError, match="none of the 7 evaluation images can be"):
        train_and_evaluate(config, str(tmp_path / "run"))
    for one in mend[:6]:
        one()
    numbers = train_and_evaluate(config, str(tmp_path / "run"))
    assert (numbers["examples"], numbers["bad_images"]) == (6, 1)


# Checkpoints of a different run or model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def start(trained, tiny):
    """Returns a work directory that was trained on the digits."""
    if not trained.exists():
        train_and_evaluate(tiny(), str(trained))
    return trained


def test_another_architecture_in_the_same_directory_is_refused(tiny, start):
    config = tiny(**{"model.depth": 3, "model.pooling": "gap"})
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, str(start))
    assert "2 keys differ (there → here)" in str(error.value)
    assert "model.depth: 1 → 3" in str(error.value)
    assert 'model.pooling: "cls" → "gap"' in str(error.value)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"model.depth": 3, "model.registers": 2},
            (
                "depth: 1 in the weights, 3 in the model",
                "33 missing: ",
                "… and 23 more",
            ),
        ),
        (
            {"model.pooling": "gap"},
            ("class_token: True in the weights", "2 unexpected: cls, pos_embed_pr"),
        ),
        (
            {"model.width": 32},
            ("different: ", "(expected [32], found [16])", "more"),
        ),
    ],
)
def test_pretrained_weights_of_another_architecture(
    refused_here, tiny, start, values, parts
):
    message = refused_here(tiny(pretrained=str(start), **values))
    for part in ("have another architecture than the model", *parts):
        assert part in message


@pytest.fixture
def refused_here(tmp_path):
    def refused(config):
        with pytest.raises(UserError) as error:
            train_and_evaluate(config, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        return str(error.value)

    return refused


def test_a_head_is_kept_only_for_the_same_classes(
    refused_here, tiny, start, tmp_path, make_images
):
    values = {"pretrained": str(start), "reset_head": False, "learning_rate": 0.0}
    numbers = train_and_evaluate(tiny(total_steps=1, **values), str(tmp_path / "kept"))
    assert same(load_params(tmp_path / "kept"), load_params(start))
    assert numbers["top1"] > 0

    folder = make_images(tmp_path / "animals", {"a": 20, "b": 20, "c": 20})
    message = refused_here(tiny(dataset=str(folder), **values))
    assert "head cannot be kept: 10 classes before, 3 now" in message
    assert "(not in the weights: a, b, c)" in message
    assert "--config.reset_head=true" in message


def test_a_head_whose_class_names_nobody_knows_is_kept(tiny, start, tmp_path, caplog):
    path = vit_jax.save(vit_jax.load(start), tmp_path / "bare.npz", "google")
    assert vit_jax.load(path).class_names == ()
    values = {"pretrained": str(path), "reset_head": False, "learning_rate": 0.0}
    with caplog.at_level(logging.WARNING):
        train_and_evaluate(
            tiny(total_steps=1, loss="sigmoid", **values), str(tmp_path / "kept")
        )
    assert same(load_params(tmp_path / "kept"), load_params(start))
    assert "assumed that their order is that of the data, 0, 1, 2" in caplog.text
    # The file is read as exclusive classes.
    assert "and this run continues it as a yes or no for each class" in caplog.text
    model = vit_jax.load(tmp_path / "kept")
    assert model.class_names == tuple("0123456789")
    assert model.outputs == "independent"


def test_a_kept_head_is_matched_by_name(tiny, start, tmp_path, make_images):
    folder = make_images(tmp_path / "some", {"0": 20, "3": 20, "7": 20})
    values = {"dataset": str(folder), "pretrained": str(start), "total_steps": 1}
    config = tiny(reset_head=False, learning_rate=0.0, **values)
    train_and_evaluate(config, str(tmp_path / "kept"))
    before, after = load_params(start), load_params(tmp_path / "kept")
    for leaf, array in after["head"].items():
        np.testing.assert_array_equal(array, before["head"][leaf][..., [0, 3, 7]])
    assert vit_jax.load(tmp_path / "kept").class_names == ("0", "3", "7")


def test_other_classes_in_the_data_end_a_resume(tiny, tmp_path, folder):
    config = tiny(dataset=str(folder))
    run = str(tmp_path / "run")
    train_and_evaluate(config, run)
    for split in ("train", "val"):
        (folder / split / "dog").rename(folder / split / "wolf")
    with pytest.raises(UserError, match=r"cat, wolf, but .* so far .* on cat, dog"):
        train_and_evaluate(config, run)


def test_more_images_end_a_resume(tiny, tmp_path, folder):
    config = tiny(dataset=str(folder))
    run = str(tmp_path / "run")
    train_and_evaluate(config, run)
    counts = load_description(run).examples
    image = next((folder / "val/dog").glob("*.png"))
    image.with_name("another.png").write_bytes(image.read_bytes())
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, run)
    now, before = counts["val"] + 1, counts["val"]
    assert f"{now} val examples, but the run so far had" in str(error.value)
    assert f"{before} val: with other data" in str(error.value)


# Numbers that are not finite


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            # Steps of 1e30: the second loss is beyond float32.
            {"optimizer": "sgd", "learning_rate": 1e30, "grad_clip_norm": 0.0},
            r"step 2: the loss is .*training stops. The last good checkpoint is from "
            r"step 1. A lower learning_rate",
        ),
        (
            # Only the evaluation sees the effect of the last step.
            {"optimizer": "sgd", "learning_rate": 1e38, "total_steps": 1},
            r"step 1: the loss on the held-out images is .*no checkpoint yet",
        ),
        (
            {"learning_rate": 3e38, "weight_decay": 1e3},
            r"step 1: parameters are no longer finite; .*no checkpoint yet",
        ),
    ],
)
def test_non_finite_numbers_stop_the_run(tiny, tmp_path, values, text):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=text):
        train_and_evaluate(tiny(checkpoint_every=1, **values), str(run))
    if text.startswith("step 2"):
        for leaf in jax.tree.leaves(load_params(run)):
            assert np.isfinite(leaf).all()
        assert vit_jax.load(run).step == 1


# Accelerators


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (("0x10de", "0x2330", "0x030200"), "NVIDIA GPU, .*vit_jax.cuda13"),
        (("0x1ae0", "0x0063", "0x088000"), "Google TPU, .*vit_jax.tpu"),
    ],
)
def test_an_idle_accelerator_stops_the_run(tmp_path, monkeypatch, device, text):
    def add(slot, *values):
        (tmp_path / slot).mkdir()
        for name, value in zip(("vendor", "device", "class"), values, strict=True):
            (tmp_path / slot / name).write_text(value + "\n")

    add("0000:00:00.0", "0x8086", "0x1237", "0x030000")  # Intel graphics
    add("0000:00:01.0", "0x10de", "0x22ba", "0x040300")  # a GPU's audio device
    add("0000:00:02.0", "0x1ae0", "0x0042", "0x020000")  # a network card of Google's
    monkeypatch.delenv("JAX_PLATFORMS")
    accelerators.refuse_idle_accelerator(str(tmp_path))
    add("0000:00:03.0", *device)
    with pytest.raises(UserError, match=text) as error:
        accelerators.refuse_idle_accelerator(str(tmp_path))
    assert "--config.allow_cpu=true or set JAX_PLATFORMS=cpu" in str(error.value)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    accelerators.refuse_idle_accelerator(str(tmp_path))


def test_allow_cpu_trains_despite_an_accelerator(tiny, tmp_path, monkeypatch):
    def refuse():
        raise UserError("this machine has a GPU")

    monkeypatch.setattr(accelerators, "refuse_idle_accelerator", refuse)
    with pytest.raises(UserError, match="has a GPU"):
        train_and_evaluate(tiny(total_steps=1), str(tmp_path / "run"))
    config = tiny(total_steps=1, allow_cpu=True)
    # Also shows that the tests of rejections would notice a compilation.
    _compiled.clear()
    assert train_and_evaluate(config, str(tmp_path / "run"))["examples"] == 360
    assert _compiled
