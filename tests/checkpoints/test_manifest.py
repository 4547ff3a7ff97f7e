import json
import shutil
import zlib

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vit_jax.checkpoints.manifest import MANIFEST, check_manifest, write_manifest


@pytest.fixture
def checkpoint(tmp_path):
    """Writes arrays with Orbax, in its default format, and a manifest."""
    folder = tmp_path / "7"
    folder.mkdir()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", {"kernel": jnp.arange(100.0)})
    (folder / "metadata").mkdir()
    (folder / "metadata/text").write_text("123456789")
    (folder / "commit_success.txt").touch()
    write_manifest(folder)
    return folder


def test_every_file_of_the_parts_is_listed(checkpoint):
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    expected = [
        path.relative_to(checkpoint).as_posix()
        for path in checkpoint.glob("*/**/*")
        if path.is_file()
    ]
    assert sorted(files) == sorted(expected)
    assert files["metadata/text"] == [9, "cbf43926"]  # the check value of CRC-32
    assert check_manifest(checkpoint, ["params", "metadata"]) == ""


def test_the_checksum_of_a_large_file_covers_all_its_chunks(checkpoint):
    file = checkpoint / "metadata/large"
    file.write_bytes(bytes(range(256)) * 10_000)  # 2.4 MiB
    write_manifest(checkpoint)
    listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    assert listed["metadata/large"] == [
        2_560_000,
        f"{zlib.crc32(file.read_bytes()):08x}",
    ]
    for position in (0, 2**20, 2_559_999):
        good = file.read_bytes()
        file.write_bytes(good[:position] + b"?" + good[position + 1 :])
        assert check_manifest(checkpoint, ["metadata"]) == (
            "metadata/large has changed: its checksum differs"
        )
        file.write_bytes(good)


def test_any_changed_byte_of_any_file_is_noticed(checkpoint):
    rng = np.random.default_rng(0)
    for path in sorted(checkpoint.glob("params/**/*")):
        if path.is_dir() or not path.stat().st_size:
            continue
        good = path.read_bytes()
        positions = {0, len(good) - 1, *rng.integers(0, len(good), 8).tolist()}
        for position in positions:
            bad = bytearray(good)
            bad[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            name = path.relative_to(checkpoint).as_posix()
            assert check_manifest(checkpoint, ["params"]) == (
                f"{name} has changed: its checksum differs"
            )
            assert check_manifest(checkpoint, ["metadata"]) == ""
        path.write_bytes(good)
    assert check_manifest(checkpoint, ["params"]) == ""


def test_files_that_are_missing_or_have_another_length(checkpoint):
    (checkpoint / "metadata/text").write_text("{ }")
    assert check_manifest(checkpoint, ["metadata"]) == (
        "metadata/text has 3 bytes, not 9"
    )
    shutil.rmtree(checkpoint / "params/d")
    problem = check_manifest(checkpoint, ["params", "metadata"])
    assert problem.startswith("params/d/")
    assert problem.endswith(" is missing, and 1 more")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a list of checksums"),
        ("[]", "not a list of checksums"),
        ('{"version": 1, "files": {"params/a": 3}}', "not a list of checksums"),
        ('{"version": 2, "files": {}}', "has version 2, not 1"),
        ('{"version": 1, "files": {}}', "lists no files of params"),
    ],
)
def test_a_damaged_manifest(checkpoint, text, problem):
    (checkpoint / MANIFEST).write_text(text)
    assert problem in check_manifest(checkpoint, ["params"])


def test_checkpoints_without_a_manifest_cannot_be_checked(checkpoint):
    (checkpoint / MANIFEST).unlink()
    (checkpoint / "metadata/text").write_text("other")
    assert check_manifest(checkpoint, ["metadata"]) == ""
