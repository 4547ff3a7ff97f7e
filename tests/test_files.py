"""Files and folders that appear completely or not at all."""

import os
import subprocess
import sys
import threading

import pytest

from vit_jax.files import atomic_write, move_into_place


class Stop(BaseException):
    pass


def write_file(path):
    path.write_text("half")


def write_folder(path):
    path.mkdir()
    (path / "a").write_text("1")
    (path / "b").mkdir()
    (path / "b" / "c").write_text("2")


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "x.json"
    for content in ("old", "new ×"):
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".x.json.")
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text(encoding="utf-8") == content
        assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_at_the_end_of_the_block(tmp_path, there):
    path = tmp_path / "x"
    if there:
        path.mkdir()
    with atomic_write(path) as temporary:
        write_folder(temporary)
        assert path.exists() == there
    assert (path / "b" / "c").read_text() == "2"
    assert os.listdir(tmp_path) == ["x"]


def write_nothing(path):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stop()])
@pytest.mark.parametrize("write", [write_file, write_folder, write_nothing])
def test_a_failed_block_leaves_what_was_there(tmp_path, write, error):
    path = tmp_path / "x"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            write(temporary)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_what_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "x"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    write_folder(path)
    with pytest.raises(OSError), atomic_write(path) as temporary:
        temporary.mkdir()
    with pytest.raises(OSError), atomic_write(path) as temporary:
        temporary.write_text("a file")
    assert os.listdir(tmp_path) == ["x"]
    assert (path / "a").read_text() == "1"


@pytest.mark.parametrize("sync", [True, False])
def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, sync):
    fsync, replace, done = os.fsync, os.replace, []

    def spy_fsync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_replace(source, target):
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_folder(tmp_path / "work")
    move_into_place(tmp_path / "work", tmp_path / "x", sync=sync)
    before, after = done[: done.index("replace")], done[done.index("replace") + 1 :]
    assert sorted(before) == (["a", "b", "c", "work"] if sync else [])
    assert after == ([tmp_path.name] if sync else [])


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x", sync=False) as temporary:
            temporary.write_text("")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("é" * 127)  # 254 of 255 bytes
    with atomic_write(path) as temporary:
        temporary.write_text("1")
    assert path.read_text() == "1"


def test_several_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "x"
    contents = [str(k) * 10_000 for k in range(8)]
    together = threading.Barrier(len(contents))

    def write(content):
        with atomic_write(path, sync=False) as temporary:
            temporary.write_text(content)
            together.wait(60)

    threads = [threading.Thread(target=write, args=(text,)) for text in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert os.listdir(tmp_path) == ["x"]


def test_a_kill_leaves_the_old_file_and_a_hidden_one(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    program = f"""if True:
        import os, pathlib
        from vit_jax.files import atomic_write
        with atomic_write(pathlib.Path({str(path)!r})) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert path.read_text() == "old"
    (left,) = {*os.listdir(tmp_path)} - {"x"}
    assert left.startswith(".x.")
    assert left.endswith(".tmp")
