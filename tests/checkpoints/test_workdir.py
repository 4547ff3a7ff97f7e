import json
import os

import pytest

from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.workdir import (
    check_shared,
    claim,
    locate,
    write_atomically,
)
from vit_jax.errors import UserError

CONFIG = {"lr": 0.1, "image_size": (32, 48), "model": {"variant": "B/16", "rate": 0.0}}


def test_the_first_run_writes_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim("runs/a", CONFIG)
    assert sorted(os.listdir("runs/a")) == [".lock", "config.json"]
    written = json.loads((tmp_path / "runs/a/config.json").read_text())
    assert written == {**CONFIG, "image_size": [32, 48]}


def test_the_same_config_continues(tmp_path):
    claim(tmp_path, CONFIG)
    claim(tmp_path, {**CONFIG, "image_size": [32, 48]})
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


def test_one_run_at_a_time(tmp_path):
    with (
        claim(tmp_path, CONFIG),
        pytest.raises(UserError, match=r"is in use: another run is writing"),
    ):
        claim(tmp_path, CONFIG)
    with claim(tmp_path, CONFIG):
        pass


def test_the_other_processes_check_the_claim_of_the_first(tmp_path):
    with pytest.raises(UserError, match=r"put .* on a file system that all processes"):
        check_shared(tmp_path, CONFIG)
    with claim(tmp_path, CONFIG):
        check_shared(tmp_path, CONFIG)
        with pytest.raises(UserError, match=r"lr: 0.1 → 0.2"):
            check_shared(tmp_path, {**CONFIG, "lr": 0.2})


def test_a_directory_without_any_training_may_be_claimed_again(tmp_path):
    claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    claim(tmp_path, {**CONFIG, "lr": 0.2})
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.2
    (tmp_path / "checkpoints/0").mkdir()
    with pytest.raises(UserError, match=r"lr: 0.2 → 0.1"):
        claim(tmp_path, CONFIG)


def test_another_config_is_refused_with_every_difference(tmp_path):
    claim(tmp_path, {**CONFIG, "old": None, "flag": True})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    other = {**CONFIG, "flag": 1, "model": {"variant": "B/32", "rate": 0.0}, "new": {}}
    with pytest.raises(UserError) as error:
        claim(tmp_path, other)
    _, *lines, _ = str(error.value).splitlines()
    assert "4 keys differ (there → here)" in str(error.value)
    assert lines == [
        "  flag: true → 1",
        '  model.variant: "B/16" → "B/32"',
        "  new: (absent) → {}",
        "  old: null → (absent)",
    ]
    with pytest.raises(UserError, match=r"1 key differs.*\n  lr: 0.1 → 0.2\n"):
        claim(tmp_path, {**CONFIG, "old": None, "flag": True, "lr": 0.2})
    claim(tmp_path, {**CONFIG, "old": None, "flag": True})  # nothing was overwritten


def test_free_keys_may_change_and_are_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    old = {**CONFIG, "mesh": {"data": 1, "fsdp": 8}}
    claim(tmp_path, old)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    new = {**CONFIG, "mesh": {"data": 4, "fsdp": 1}}
    with pytest.raises(UserError, match=r"2 keys differ"):
        claim(tmp_path, new)
    with pytest.raises(UserError, match=r"1 key differs.*\n  lr: 0.1 → 0.2\n"):
        claim(tmp_path, {**new, "lr": 0.2}, {"mesh.data", "mesh.fsdp"})
    assert not caplog.messages
    claim(tmp_path, new, {"mesh.data", "mesh.fsdp"})
    logged = "continuing with changed values: mesh.data: 1 → 4, mesh.fsdp: 8 → 1"
    assert caplog.messages == [logged]
    check_shared(tmp_path, new)  # config.json has the new values


def test_keys_that_an_older_version_lacked_had_their_defaults(tmp_path, caplog):
    caplog.set_level("INFO")
    claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    defaults = {"model": {"gap": False}, "lr": 0.3}
    model = CONFIG["model"]
    other = {**CONFIG, "model": {**model, "gap": True}}
    with pytest.raises(UserError, match=r"1 key differs.*\n  model.gap: false → true"):
        claim(tmp_path, other, (), defaults)
    same = {**CONFIG, "model": {**model, "gap": False}}
    claim(tmp_path, same, (), defaults)
    assert not caplog.messages
    check_shared(tmp_path, same)  # config.json has the new keys


@pytest.mark.parametrize(("count", "last"), [(10, "k9: 0 → 1"), (13, "… and 3 more")])
def test_at_most_ten_differences_are_listed(tmp_path, count, last):
    keys = [f"k{i}" for i in range(count)]
    claim(tmp_path, dict.fromkeys(keys, 0))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=f"{count} keys differ") as error:
        claim(tmp_path, dict.fromkeys(keys, 1))
    lines = str(error.value).splitlines()[1:-1]
    assert sum("→" in line for line in lines) == 10
    assert lines[-1].strip() == last


def test_unsuitable_work_directories_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text('{"lr": ')
    (tmp_path / "torn/metrics.jsonl").write_text("{}\n")
    (tmp_path / "stray/checkpoints/3").mkdir(parents=True)
    expected = {
        tmp_path / "file": "file is a file",
        tmp_path / "file/run": "cannot be written to.*Not a directory",
        tmp_path / "torn": "is not the config of a run",
        tmp_path / "stray": "holds checkpoints but no config.json",
        "/proc/run": "cannot be written to",  # not even by root
        "az://bucket/run": "expected the path of a folder, gs://BUCKET/FOLDER",
        "gs://": "expected the path of a folder, gs://BUCKET/FOLDER",
        "": "is empty",
    }
    for path, text in expected.items():
        with pytest.raises(UserError, match=text):
            claim(path, CONFIG)


def test_a_directory_that_became_read_only_is_refused(tmp_path, monkeypatch):
    claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("{}\n")

    def refuse(self, content):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(
        workdir.Path, "write_bytes", refuse
    )  # permissions do not bind root
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
        claim(tmp_path, CONFIG)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    write_atomically(file, "new ×")
    assert file.read_text(encoding="utf-8") == "new ×"

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workdir.os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "newer")
    assert file.read_text(encoding="utf-8") == "new ×"
    assert os.listdir(tmp_path) == ["a.json"]


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert locate("out") == tmp_path / "out"
    assert locate(tmp_path / "a/../b") == tmp_path / "b"
    assert str(locate("~/run")) == "/home/me/run"
