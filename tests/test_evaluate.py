import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import sharding
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.evaluators import examples

evaluate_command = importlib.import_module("vit_jax.evaluate")

NAMES = ("bird", "cat", "dog")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Returns a folder of six images per class, half of them to evaluate on."""
    path = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in NAMES:
            folder = path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3 if split == "train" else 4):
                pixels = rng.integers(0, 256, (12, 9, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return path


@pytest.fixture
def workdir(shared, make_workdir):
    path = shared / "run"
    if not path.exists():
        config = {"dataset": str(shared / "images")}
        make_workdir(path, class_names=NAMES, config=config, depth=1)
    return path


@pytest.fixture
def run(run_command, capsys):
    def run(*arguments):
        """Runs the command and returns its output; a user error is a SystemExit."""
        run_command(evaluate_command, *arguments)
        return capsys.readouterr().out

    return run


def test_images_without_labels_cannot_be_compared_with(shared, workdir, run):
    flags = f"--dataset={shared / 'images'}", "--data=kind=unlabelled"
    with pytest.raises(SystemExit, match=r"have no labels to compare with.*predict"):
        run(f"--checkpoint={workdir}", *flags)


def test_a_folder_without_splits_is_evaluated_whole(shared, workdir, run):
    folder = shared / "images/val"
    report = json.loads(run(f"--checkpoint={workdir}", f"--dataset={folder}", "--json"))
    assert (report["split"], report["examples"]) == ("train+val", 12)
    # None of its images were in the training split of the folder around it.
    assert report["trained_on"] is False
    # Its own data are split as in training.
    own = json.loads(run(f"--checkpoint={workdir}", "--json"))
    assert (own["split"], own["examples"], own["trained_on"]) == ("val", 12, False)


def test_evaluation_needs_only_the_work_directory(workdir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.evaluate", f"--checkpoint={workdir}", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(vit_jax.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    assert report["examples"] == 12
    assert report["bad_images"] == 0
    assert report["split"] == "val"
    assert report["step"] == 3
    assert 0 <= report["top1"] <= report["top5"] == 1.0
    assert done.stderr == "compiling …\n"


def test_any_batch_size_gives_the_same_numbers(workdir, run):
    reports = [
        json.loads(run(f"--checkpoint={workdir}", "--json", f"--batch_size={size}"))
        for size in (1, 500)
    ]
    losses = [report.pop("loss") for report in reports]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-6)
    assert reports[0] == reports[1]
    assert reports[0]["examples"] == 12


def test_other_data_and_splits(workdir, shared, run):
    other = f"--dataset={shared / 'images'}"
    report = json.loads(run(f"--checkpoint={workdir}", "--json", "--split=train"))
    assert (report["examples"], report["split"]) == (9, "train")
    assert report["trained_on"] is True
    assert report["remark"].startswith("the model was trained on 9 of these images")
    sliced = run(f"--checkpoint={workdir}", "--json", other, "--split=val[:50%]")
    assert json.loads(sliced)["examples"] == 6


def test_options_say_how_the_data_are_read(workdir, shared, run):
    model, data = f"--checkpoint={workdir}", f"--dataset={shared / 'images'}"
    given = [model, "--json", data, "--data=splits=train=val,test=train"]
    report = json.loads(run(*given))
    assert (report["split"], report["examples"]) == ("test", 9)
    with pytest.raises(SystemExit, match="--data=spilts: no such option"):
        run(model, "--data=spilts=none")


def test_accuracy_of_each_class(workdir, run):
    report = json.loads(run(f"--checkpoint={workdir}", "--json", "--per_class"))
    rows = report["per_class"]
    assert [row["class"] for row in rows] == list(NAMES)
    assert [row["examples"] for row in rows] == [4, 4, 4]
    assert np.mean([row["top1"] for row in rows]) == pytest.approx(report["top1"])
    recalls = [row["recall"] for row in rows]
    assert np.mean(recalls) == pytest.approx(report["balanced_accuracy"])
    counts = report["confusion"]
    assert {name: sum(row.values()) for name, row in counts.items()} == dict.fromkeys(
        NAMES, 4
    )
    wrong = {
        (label, predicted): count
        for label, row in counts.items()
        for predicted, count in row.items()
        if label != predicted
    }
    largest = {
        (cell["class"], cell["predicted"]): cell["count"]
        for cell in report["largest_confusions"]
    }
    assert sorted(largest.values()) == sorted(wrong.values())[-5:]
    assert largest.items() <= wrong.items()
    for row in rows:
        name = row["class"]
        predicted = sum(others.get(name, 0) for others in counts.values())
        assert row["top1"] == row["recall"] == counts[name].get(name, 0) / 4
        right = counts[name].get(name, 0)
        assert row["precision"] == (right / predicted if predicted else None)


def test_output_without_json_is_readable(workdir, run):
    text = run(f"--checkpoint={workdir}", "--per_class")
    assert "12 examples" in text
    for word in ("top-1", "top-5", "loss", "balanced accuracy", "macro F1", *NAMES):
        assert word in text
    assert "most frequent confusions (label → prediction):" in text


def test_a_part_of_the_classes_in_another_order(workdir, shared, run, tmp_path):
    # Numbered, so that the names sort in another order than those of the model.
    table = ["path,label"]
    for name in ("dog", "bird"):
        table += [f"{shared}/images/val/{name}/{k}.png,{name}" for k in range(4)]
    (tmp_path / "part.csv").write_text("\n".join(table))
    whole = json.loads(run(f"--checkpoint={workdir}", "--json", "--per_class"))
    expected = {row["class"]: row["top1"] for row in whole["per_class"]}
    part = json.loads(
        run(
            *(f"--checkpoint={workdir}", f"--dataset={tmp_path / 'part.csv'}"),
            *("--split=train+val", "--json", "--per_class"),
        )
    )
    found = {row["class"]: row["top1"] for row in part["per_class"]}
    assert found == {name: expected[name] for name in ("bird", "dog")}
    assert part["top1"] == np.mean(list(found.values()))
    assert {name: whole["confusion"][name] for name in found} == part["confusion"]


def test_one_class_and_rows_for_testing_alone(workdir, shared, run, tmp_path):
    whole = json.loads(run(f"--checkpoint={workdir}", "--json", "--per_class"))
    expected = {row["class"]: row["top1"] for row in whole["per_class"]}
    (tmp_path / "one").mkdir()
    (tmp_path / "one/cat").symlink_to(shared / "images/val/cat")
    table = ["path,label,split"]
    table += [f"{shared}/images/val/cat/{k}.png,cat,test" for k in range(4)]
    (tmp_path / "test.csv").write_text("\n".join(table))
    for place in ("one", "test.csv"):
        report = json.loads(
            run(f"--checkpoint={workdir}", f"--dataset={tmp_path / place}", "--json")
        )
        assert (report["examples"], report["top1"]) == (4, expected["cat"])


def test_an_exported_model_is_measured_on_what_was_held_out(
    shared, run, make_workdir, tmp_path
):
    folder = shared / "images/val"  # it has no splits
    config = {"dataset": str(folder), "data": {"rules": 2}}
    make_workdir(tmp_path / "run", class_names=NAMES, config=config, depth=1)
    file = tmp_path / "model.safetensors"
    vit_jax.save(vit_jax.load(tmp_path / "run"), file)
    (tmp_path / "link").symlink_to(folder)
    reports = [
        json.loads(run(f"--checkpoint={source}", *dataset, "--json"))
        for source, dataset in (
            (tmp_path / "run", ()),
            (file, ()),
            (file, [f"--dataset={tmp_path / 'link'}"]),
        )
    ]
    counts = open_dataset(str(folder)).info.num_examples
    for report in reports:
        assert (report["split"], report["trained_on"]) == ("val", False)
        assert report["examples"] == counts["val"] < 12
        assert report["loss"] == reports[0]["loss"]


def test_weights_from_elsewhere_may_have_been_trained_on_the_data(
    shared, workdir, run, tmp_path
):
    vit_jax.save(vit_jax.load(workdir), tmp_path / "model.npz", format="google")
    text = run(
        f"--checkpoint={tmp_path / 'model.npz'}", f"--dataset={shared / 'images/val'}"
    )
    assert "12 examples" in text
    assert "note: whether the model was trained on some of these images" in text


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_the_loss_is_that_of_what_the_outputs_mean(workdir, shared, run, outputs):
    report = json.loads(
        run(f"--checkpoint={workdir}", f"--outputs={outputs}", "--json")
    )
    model = vit_jax.load(workdir)
    paths = sorted((shared / "images" / "val").glob("*/*.png"))
    logits = np.asarray(model(model.prepare(paths)), np.float64)
    labels = np.array([NAMES.index(path.parent.name) for path in paths])
    right = np.eye(3)[labels]
    if outputs == "exclusive":
        losses = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[
            right > 0
        ]
    else:
        yes = 1 / (1 + np.exp(-logits))
        losses = -np.log(np.where(right > 0, yes, 1 - yes)).sum(-1)
    assert report["examples"] == len(paths)
    assert report["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_plain_numbers_have_no_accuracy(workdir, run):
    with pytest.raises(SystemExit, match=r"3 plain numbers .* --outputs=exclusive or"):
        run(f"--checkpoint={workdir}", "--outputs=numbers")


def test_data_of_other_classes_are_refused(workdir, run, tmp_path):
    for name in ("bird", "cat", "fish"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image = PIL.Image.new("RGB", (8, 8))
            image.save(tmp_path / name / f"{number}.png")
    with pytest.raises(SystemExit) as error:
        run(f"--checkpoint={workdir}", f"--dataset={tmp_path}")
    assert "different classes from the model" in str(error.value)
    assert "Only in the model: dog. Only in the data: fish." in str(error.value)

    with pytest.raises(SystemExit, match="10 in the data, 3 in the model"):
        run(f"--checkpoint={workdir}", "--dataset=digits")


def test_an_unreadable_image_stops_evaluation_unless_allowed(workdir, shared, run):
    source = open_dataset(str(shared / "images")).split("val")
    broken = shared / "images" / "val" / "cat" / "broken.png"
    broken.write_bytes(b"no image")
    try:
        with pytest.raises(SystemExit, match=r"cat/broken\.png"):
            run(f"--checkpoint={workdir}", "--json")
        report = json.loads(
            run(f"--checkpoint={workdir}", "--json", "--allow_bad_images")
        )
        text = run(f"--checkpoint={workdir}", "--allow_bad_images")
    finally:
        broken.unlink()
    assert report["examples"] == len(source) == 12
    assert report["bad_images"] == 1
    assert "1 more could not be read" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model"),
        (["--checkpoint=absent"], "neither a path on this machine nor published"),
        (["--checkpoint=x", "y"], "unexpected arguments: y"),
        (["--checkpoint=x", "--batch_size=0"], "batch_size"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, run):
    with pytest.raises(SystemExit, match=message):
        run(*arguments)


def test_the_model_gets_the_mesh(workdir, run, monkeypatch):
    """Checks the mesh: without it each device's kernels would get the whole batch."""
    made = []
    called = sharding.PlacedModel.__call__

    def noting(placed, *arguments, **how):
        made.append(placed._placement)
        return called(placed, *arguments, **how)

    monkeypatch.setattr(sharding.PlacedModel, "__call__", noting)
    run(f"--checkpoint={workdir}", "--json")
    [placement] = made
    assert placement.mesh.size == 8


@pytest.mark.parametrize(
    ("mesh", "kernels"), [({"data": 2, "fsdp": 4, "tensor": 1}, 4), ({"fsdp": 16}, 1)]
)
def test_weights_are_sharded_as_in_training_if_devices_allow(
    shared, make_workdir, workdir, run, tmp_path, monkeypatch, mesh, kernels
):
    """Checks that a model too large for one device can be evaluated, on any devices."""
    spread = []

    def noting(step, params, *arguments, **options):
        kernel = params["blocks_00"]["mlp"]["fc1"]["kernel"]
        spread.append(len({str(shard.index) for shard in kernel.addressable_shards}))
        return add_up(step, params, *arguments, **options)

    add_up = examples.add_up
    plain = json.loads(run(f"--checkpoint={workdir}", "--json"))
    monkeypatch.setattr(examples, "add_up", noting)
    config = {
        "dataset": str(shared / "images"),
        "mesh": {"data": -1, "tensor": 1} | mesh,
    }
    make_workdir(tmp_path / "run", class_names=NAMES, config=config, depth=1)
    report = json.loads(run(f"--checkpoint={tmp_path / 'run'}", "--json"))
    assert spread == [kernels]
    assert report["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert report["top1"] == plain["top1"]
