"""Work directories in buckets: a folder stands for the bucket, without TensorStore.

What Orbax itself writes to a bucket, TensorStore does by drivers of its own.
"""

import importlib.util
import json

import pytest
from etils.epath import backend, gpath
from fsspec.implementations.local import LocalFileSystem

from vit_jax.checkpoints import buckets
from vit_jax.checkpoints.manifest import check_manifest, write_manifest
from vit_jax.checkpoints.reading import has_checkpoint, saved_steps
from vit_jax.checkpoints.workdir import claim, locate, write_atomically
from vit_jax.errors import UserError
from vit_jax.train.metrics import MetricWriter

CONFIG = {"lr": 0.1}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder of which gs://bucket is made; nothing in it can be renamed."""

    class Bucket(LocalFileSystem):
        protocol = ("gs", "gcs")

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).replace("gs:/", str(tmp_path)))

        def _open(self, path, mode="rb", **options):
            if "a" in mode:
                raise NotImplementedError("buckets cannot append")
            return super()._open(path, mode, **options)

        def mv(self, *_, **__):
            raise NotImplementedError("buckets cannot rename")

    class Backend(backend._FileSystemSpecBackend):
        def fs(self, path):
            return Bucket(auto_mkdir=True)

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Backend())
    monkeypatch.setitem(buckets._PACKAGES, "gs", ("fsspec", "gcs"))
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def test_a_run_claims_its_folder_and_finds_it_again(bucket):
    with claim("gs://bucket/run", CONFIG):
        assert json.loads((bucket / "run/config.json").read_text()) == CONFIG
    (bucket / "run/metrics.jsonl").write_text("{}\n")
    with claim("gs://bucket/run/", CONFIG):
        pass
    with pytest.raises(UserError, match="another config"):
        claim("gs://bucket/run", {"lr": 0.2})


def test_metrics_are_there_whole_when_a_checkpoint_may_be(bucket):
    with MetricWriter("gs://bucket/run", 0) as writer:
        writer.write(1, "train", {"loss": 2.0})
        writer.flush()
        first = (bucket / "run/metrics.jsonl").read_text()
        writer.write(2, "train", {"loss": 1.0})
    assert first == '{"step": 1, "split": "train", "loss": 2.0}\n'
    with MetricWriter("gs://bucket/run", 1) as writer:  # the second is cut back
        writer.write(2, "train", {"loss": 1.5})
    text = (bucket / "run/metrics.jsonl").read_text()
    assert text == first + '{"step": 2, "split": "train", "loss": 1.5}\n'
    events = list((bucket / "run/tensorboard").iterdir())
    assert events
    assert all(b"train/loss" in file.read_bytes() for file in events)


def test_a_checkpoint_counts_when_it_says_that_it_is_complete(bucket):
    for step in (1, 2):
        (bucket / f"run/checkpoints/{step}").mkdir(parents=True)
    assert not has_checkpoint("gs://bucket/run")
    (bucket / "run/checkpoints/1/commit_success.txt").touch()
    assert saved_steps(locate("gs://bucket/run") / "checkpoints") == [1]


def test_checksums_and_moving_away(bucket):
    (bucket / "run/checkpoints/7/params/d").mkdir(parents=True)
    (bucket / "run/checkpoints/7/params/d/data").write_bytes(b"123456789")
    folder = locate("gs://bucket/run/checkpoints/7")
    write_manifest(folder)
    assert check_manifest(folder, ["params"]) == ""
    write_atomically(folder / "params/d/data", "123456780")
    assert check_manifest(folder, ["params"]) == (
        "params/d/data has changed: its checksum is another"
    )
    buckets.move(folder, folder.parent / "7.damaged")
    moved = bucket / "run/checkpoints/7.damaged/params/d/data"
    assert moved.read_bytes() == b"123456780"
    assert not (bucket / "run/checkpoints/7").exists()


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")]
)
def test_the_package_that_is_missing_is_named(scheme, package, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs {package}; pip .*vit_jax\[{extra}\]"):
        locate(f"{scheme}://bucket/run")
