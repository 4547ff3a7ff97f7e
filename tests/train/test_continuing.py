"""What may change when a run continues: where its data are, and its length."""

import dataclasses
import pathlib
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import config as config_lib
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import load_description, load_params
from vit_jax.checkpoints.workdir import claim
from vit_jax.errors import UserError
from vit_jax.train import continuing
from vit_jax.train.continuing import LOCATIONS, SCHEDULE, allowed_changes
from vit_jax.train.lengthening import same_rates
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.same_data import DataFacts, check_same_data, data_facts
from vit_jax.train.setup import set_up
from vit_jax.train.start import claimed, open_sources


@pytest.fixture
def tiny(tiny_config):
    smallest = {"mesh.data": 1, "model.depth": 1, "eval_batch_size": 60}
    return lambda **values: tiny_config(**smallest | values)


@pytest.fixture
def on(tiny):
    """Returns a function that makes the config of a run on a folder of images."""
    images = {"model.channels": 1, "augment.train": "resize"}
    return lambda folder, **values: tiny(**images, dataset=str(folder), **values)


@pytest.fixture
def flowers(tmp_path):
    """Returns a folder of images in the directory of job 12345."""
    root = tmp_path / "12345" / "flowers"
    for name in ("daisy", "rose"):
        (root / name).mkdir(parents=True)
        for k in range(20):
            grey = Image.new("L", (8, 8), 5 * k + 100 * (name == "rose"))
            grey.save(root / name / f"{k}.png")
    return root


def moved(folder, job="67890"):
    """Moves all data of the folder's job to another job; returns the folder there."""
    new = folder.parent.with_name(job)
    shutil.move(folder.parent, new)
    return new / folder.name


def begun(config, step=2):
    """Returns the setup and facts of a run, and its description after some steps."""
    setup = set_up(config)
    facts = data_facts(setup, *open_sources(setup))
    return (
        setup,
        facts,
        Description(
            setup.architecture,
            setup.preprocessing,
            facts.class_names,
            config_lib.to_plain(setup.config),
            step,
            facts.examples,
            facts.fingerprints,
        ),
    )


def continued(config, earlier, workdir="run"):
    """Returns the changes with which the described run may continue by this config."""
    setup, facts, _ = begun(config)
    return allowed_changes(setup, facts, earlier, str(workdir))


def test_a_longer_run_on_moved_data_has_the_bits_of_an_undisturbed_one(
    on, tmp_path, flowers, monkeypatch, caplog
):
    caplog.set_level("INFO", "vit_jax")
    monkeypatch.chdir(tmp_path)
    train_and_evaluate(on(flowers, schedule="constant", total_steps=2))
    (run,) = pathlib.Path("runs").iterdir()
    there = moved(flowers)
    config = on(there, schedule="constant", total_steps=4)
    changes = f'dataset: "{flowers}" → "{there}", total_steps: 2 → 4'

    # Without --workdir it is a new run, which names the one that may be meant.
    train_and_evaluate(config)
    assert f"{run} holds one that differs only in {changes}" in caplog.text
    assert f"To continue that one, pass --workdir={run}" in caplog.text
    (new,) = set(pathlib.Path("runs").iterdir()) - {run}

    train_and_evaluate(config, str(run))
    assert f"continuing with changed values: {changes}" in caplog.text
    ours, theirs = load_params(run), load_params(new)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    assert load_description(run) == load_description(new)
    assert load_description(run).fingerprints.keys() == {"train", "val"}


def test_only_runs_that_differ_in_place_and_length_are_named(
    on, tmp_path, flowers, monkeypatch, caplog
):
    caplog.set_level("INFO", "vit_jax")
    setup, _, _ = begun(on(flowers))
    for name, values in {
        "tiny-unsaved": {},
        "tiny-seed": {"seed": 1},
        "tiny-other": {"dataset": "/data/birds", "total_steps": 9},
        "tiny-meant": {"dataset": "/data/flowers", "log_every": 7},
        "another-name": {"total_steps": 9},
    }.items():
        changed = config_lib.changed(setup.config, values)
        claim(tmp_path / "runs" / name, config_lib.to_plain(changed))
        (tmp_path / "runs" / name / "metrics.jsonl").write_text("{}\n")
        if name != "tiny-unsaved":
            (tmp_path / "runs" / name / "checkpoints/3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    continuing.tell_of_similar_run("runs/tiny-new", setup.config)
    told = [message for message in caplog.messages if "this is a new run" in message]
    assert told[0].endswith("To continue that one, pass --workdir=runs/tiny-meant")
    assert [message.split(";")[1].split()[0] for message in told] == ["runs/tiny-meant"]


@pytest.mark.parametrize("steps", [3, 9])
def test_a_run_that_cannot_continue_is_named_without_a_way(
    tiny, tmp_path, monkeypatch, caplog, steps
):
    """Its cosine was of another length; or it has made more steps."""
    caplog.set_level("INFO", "vit_jax")
    setup, _, _ = begun(tiny(schedule="cosine" if steps == 3 else "constant"))
    run = tmp_path / "runs/tiny-run"
    claim(
        run, config_lib.to_plain(config_lib.changed(setup.config, {"total_steps": 9}))
    )
    (run / "metrics.jsonl").write_text("{}\n")
    (run / f"checkpoints/{steps}").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    continuing.tell_of_similar_run("runs/tiny-new", setup.config)
    assert "total_steps: 9 → 4. It cannot continue so, because its past" in caplog.text


COOLED = {"schedule": "rsqrt", "cooldown_steps": 2}


def test_a_run_that_has_cooled_down_can_continue_from_before(
    tiny, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "vit_jax")
    longer = set_up(tiny(**COOLED, total_steps=9)).config
    run = tmp_path / "runs/tiny-run"
    claim(run, config_lib.to_plain(config_lib.changed(longer, {"total_steps": 6})))
    (run / "metrics.jsonl").write_text("{}\n")
    for step in (4, 6):
        (run / f"checkpoints/{step}").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    continuing.tell_of_similar_run("runs/tiny-new", longer)
    way = "total_steps: 6 → 9. To continue that one, pass --workdir=runs/tiny-run"
    assert way in caplog.text
    (run / "checkpoints/4").rmdir()
    continuing.tell_of_similar_run("runs/tiny-new", longer)
    assert "total_steps: 6 → 9. It cannot continue so" in caplog.text

    _, _, earlier = begun(tiny(**COOLED, total_steps=6), step=6)
    advice = continued(tiny(**COOLED, total_steps=9), earlier).advice["total_steps"]
    lacks = "no checkpoint is left from before its cooldown, at step 4 or earlier"
    assert lacks in advice


def test_other_data_than_before_are_refused_by_what_differs(on, flowers, tmp_path):
    setup, facts, earlier = begun(on(flowers))
    there = tmp_path / "67890/flowers"
    shutil.copytree(flowers, there)
    # Images of the same number, one of them under another name.
    held_out = setup.dataset.split("val")[0].name
    image = there / pathlib.Path(held_out).relative_to(flowers)
    digests = facts.fingerprints["val"]
    other = dataclasses.replace(
        earlier, fingerprints={"val": {**digests, "paths": "0", "weights": "0"}}
    )
    with pytest.raises(UserError) as refused:
        continued(on(there), other)
    expected = f"{there} (before: {flowers}) has other paths and weights in val than t"
    assert str(refused.value).startswith(expected)
    assert "Where a table has absolute paths" in str(refused.value)

    # Everything that differs is in one message.
    image.unlink()
    (there / "rose").rename(there / "tulip")
    with pytest.raises(UserError) as refused:
        continued(on(there), earlier)
    message = str(refused.value)
    assert (
        "has the classes daisy, tulip, but the run so far was trained on dai" in message
    )
    assert "trained on daisy, rose; " in message
    assert "val examples, but the run so far had" in message


def test_data_that_are_read_otherwise_are_not_said_to_be_other_data(on, flowers):
    _, _, earlier = begun(on(flowers))
    values = {"data.hold_out": 0.3, "learning_rate": 0.5, "log_every": 7}
    with pytest.raises(UserError) as refused:
        continued(on(flowers, total_steps=1, **values), earlier, "here")
    assert str(refused.value).splitlines() == [
        f"{flowers} has 27 train, 13 val examples, but the run so far had 35 train, 5 "
        "val. It is not read as before (there → here: data.hold_out: 0.1 → 0.3): to "
        "continue that run, pass its values; to start this one, pass another --workdir",
        "here has already made 2 steps, more than total_steps=1; to continue it, pass "
        "its own --config.total_steps=4; to start this run, pass another --workdir",
        "Other keys differ from that run's too: learning_rate: 0.01 → 0.5",
    ]


def test_images_of_a_table_that_have_moved_need_a_link():
    facts = DataFacts(("a",), {"train": 3}, {"train": {"paths": "1"}})
    earlier: Any = types.SimpleNamespace(
        config={"dataset": "l.csv"},
        class_names=("a",),
        examples={"train": 3},
        fingerprints={"train": {"paths": "2"}},
    )
    with pytest.raises(UserError, match="moved, put a link to them at the old place"):
        check_same_data("l.csv", facts, earlier, ['data.image_root: "/1" → "/2"'])
    with pytest.raises(UserError, match=r"pass another --workdir$"):
        check_same_data("l.csv", facts, earlier, ["train_split: a → b"])


def test_pretrained_weights_may_be_gone_when_a_run_continues(
    tiny, tmp_path, make_workdir
):
    weights, run = tmp_path / "weights", str(tmp_path / "run")
    make_workdir(weights, depth=1)
    values = {"total_steps": 1, "eval_split": "test[:60]"}
    config = tiny(pretrained=str(weights), **values)
    numbers = train_and_evaluate(config, run)
    there = weights.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="only when a run begins: to continue that run"):
        train_and_evaluate(tiny(pretrained=str(there), **values), run)
    assert train_and_evaluate(config, run) == numbers


def test_many_classes_are_compared_by_those_that_differ(on, flowers):
    _, facts, earlier = begun(on(flowers))
    names = tuple(f"c{n}" for n in range(20))
    earlier = dataclasses.replace(earlier, class_names=names)
    for now, told in (
        ((*names[:-1], "x"), r"classes x \(and 19 others\), but .* on c19 \(and 19 o"),
        ((names[1], names[0], *names[2:]), r"the classes c1, c0, c2.* on c0, c1, c2"),
    ):
        other = facts._replace(class_names=now)
        with pytest.raises(UserError, match=told):
            continuing.check_same_data(str(flowers), other, earlier)


def test_moved_data_of_a_run_without_fingerprints(on, flowers, caplog):
    _, _, earlier = begun(on(flowers))
    there = moved(flowers)
    assert set(LOCATIONS) <= continued(on(there), earlier).free
    assert "did not record" not in caplog.text
    old = dataclasses.replace(earlier, fingerprints={})
    assert set(LOCATIONS) <= continued(on(there), old).free
    assert "did not record which images and labels these were" in caplog.text
    # Without counts, or under another name, too little is known.
    older = dataclasses.replace(old, examples={})
    assert not set(LOCATIONS) & continued(on(there), older).free
    renamed = there.rename(there.with_name("flowers2"))
    assert not set(LOCATIONS) & continued(on(renamed), old).free


@pytest.mark.parametrize(
    ("before", "after", "step", "allowed"),
    [
        ({"schedule": "constant"}, {"total_steps": 200}, 100, True),
        ({"schedule": "constant", "warmup_steps": 9}, {"total_steps": 200}, 50, True),
        ({"schedule": "constant"}, {"total_steps": 60}, 50, True),  # shorter
        # A cooldown that has begun, and one that is added at the end.
        ({"schedule": "rsqrt"}, {"total_steps": 200}, 100, True),
        ({"schedule": "rsqrt", "cooldown_steps": 20}, {"total_steps": 200}, 100, False),
        ({"schedule": "rsqrt", "cooldown_steps": 20}, {"total_steps": 200}, 81, True),
        ({"schedule": "rsqrt", "cooldown_steps": 20}, {"total_steps": 200}, 82, False),
        ({"schedule": "rsqrt"}, {"total_steps": 150, "cooldown_steps": 50}, 100, True),
        ({"schedule": "rsqrt"}, {"rsqrt_timescale": 5}, 100, False),
        # The length matters from the first step after the warm-up on.
        ({"warmup_steps": 10}, {"total_steps": 200}, 100, False),
        ({"warmup_steps": 10}, {"total_steps": 200}, 11, True),
        ({"warmup_steps": 10}, {"total_steps": 200}, 12, False),
        ({"schedule": "linear"}, {"total_steps": 200}, 2, False),
        ({"schedule": "linear", "end_learning_rate": 0.1}, {"total_steps": 9}, 5, True),
        ({"schedule": "constant"}, {"learning_rate": 0.2}, 1, False),
        ({"schedule": "cosine"}, {"min_learning_rate": 0.01}, 2, False),
        ({"warmup_steps": 10}, {"warmup_learning_rate": 0.01}, 1, False),
        # So does the decay that has a schedule.
        (
            {"schedule": "constant", "weight_decay": 0.1, "weight_decay_end": 0.4},
            {"total_steps": 200},
            2,
            False,
        ),
        # Half the way to twice the rate; independent decay is half as large there.
        (
            {"schedule": "constant", "warmup_steps": 16},
            {"warmup_steps": 32, "learning_rate": 0.2},
            10,
            True,
        ),
        (
            {
                "schedule": "constant",
                "warmup_steps": 16,
                "weight_decay_form": "independent",
            },
            {"warmup_steps": 32, "learning_rate": 0.2},
            10,
            False,
        ),
    ],
)
def test_keys_of_the_rate_may_change_if_no_past_rate_does(
    tiny, before, after, step, allowed
):
    values = {"total_steps": 100, "learning_rate": 0.1, "schedule": "cosine"}
    start = tiny(**values | before)
    now = config_lib.changed(start, after)
    assert same_rates(start, now, step) == allowed


def test_a_run_with_another_length_is_refused_with_a_way_that_works(tiny, tmp_path):
    config = tiny(warmup_steps=2)
    setup, _, earlier = begun(config, step=4)
    claim(tmp_path, config_lib.to_plain(setup.config))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    longer = set_up(tiny(warmup_steps=2, total_steps=6)).config
    changes = continued(longer, earlier, tmp_path)
    assert not set(SCHEDULE) & changes.free
    with pytest.raises(UserError) as refused, claimed(str(tmp_path), longer, changes):
        pass
    message = str(refused.value)
    assert "total_steps: 4 → 6" in message
    assert "the 4 steps already made would have had other learning rates" in message
    flags = dict(
        word.removeprefix("--config.").split("=")
        for word in message.split()
        if word.startswith("--config.")
    )
    assert flags == {
        "pretrained": str(tmp_path),
        "reset_head": "false",
        "total_steps": "2",
        "warmup_steps": "0",
        "cooldown_steps": "0",
    }
    set_up(tiny(pretrained=str(tmp_path), reset_head=False, total_steps=2))

    with pytest.raises(
        UserError, match="already made 4 steps, more than total_steps=3"
    ):
        continued(tiny(warmup_steps=2, total_steps=3), earlier)


def test_a_run_whose_objective_reads_its_length_keeps_it(tiny, monkeypatch):
    setup, facts, earlier = begun(tiny(schedule="constant"))
    config = config_lib.changed(setup.config, {"total_steps": 9})
    longer = dataclasses.replace(setup, config=config)
    assert "total_steps" in allowed_changes(longer, facts, earlier, "run").free
    monkeypatch.setattr(type(setup.objective), "reads_schedule", True)
    changes = allowed_changes(longer, facts, earlier, "run")
    assert "total_steps" not in changes.free
    assert "may depend on the run's length" in changes.advice["total_steps"]


def test_a_run_that_saved_nothing_may_begin_again_where_the_data_are(
    on, tmp_path, flowers
):
    setup, facts, _ = begun(on(flowers))
    assert not allowed_changes(setup, facts, None, str(tmp_path / "new")).free
    claim(tmp_path / "run", config_lib.to_plain(setup.config))
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    there = moved(flowers)
    changes = continued(on(there), None, tmp_path / "run")
    assert changes.free == set(LOCATIONS)
    with claimed(str(tmp_path / "run"), set_up(on(there)).config, changes):
        pass
    renamed = there.rename(there.with_name("flowers2"))
    assert not continued(on(renamed), None, tmp_path / "run").free
