"""Work directories in buckets, where a local folder stands in for the bucket.

Orbax writes arrays through TensorStore's own drivers; benchmarks/buckets.py tests those
against a real service.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest
import tensorstore
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.serialization import tensorstore_utils

from vit_jax.checkpoints import buckets, s3
from vit_jax.checkpoints.manifest import check_manifest, write_manifest
from vit_jax.checkpoints.reading import has_checkpoint, load_params, saved_steps
from vit_jax.checkpoints.workdir import claim, locate, write_atomically
from vit_jax.errors import UserError
from vit_jax.train.reporting.metrics import MetricWriter

CONFIG = {"lr": 0.1}


@pytest.fixture(params=["gs"])
def bucket(request, tmp_path, monkeypatch):
    """Returns the folder behind gs://bucket, in which nothing can be renamed."""
    scheme = request.param

    class Bucket(LocalFileSystem):
        protocol = (scheme,)

        @classmethod
        def _strip_protocol(cls, path):
            path = str(path).replace(f"{scheme}:/", str(tmp_path))
            return super()._strip_protocol(path)

        def _open(self, path, mode="rb", **options):
            if "a" in mode:
                raise NotImplementedError("buckets cannot append")
            return super()._open(path, mode, **options)

        def glob(self, path, **options):
            found = super().glob(path, **options)
            return [each.removeprefix(f"{tmp_path}/") for each in found]

        def mv(self, *_, **__):
            raise NotImplementedError("buckets cannot rename")

    class Backend(backend._FileSystemSpecBackend):
        def fs(self, path):
            return Bucket(auto_mkdir=True)

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, scheme, Backend())
    monkeypatch.setitem(buckets._PACKAGES, scheme, ("fsspec", "gcs"))
    buckets._ask.cache_clear()
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


def test_flushed_metrics_are_complete_in_the_bucket(bucket):
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


def test_a_checkpoint_counts_once_its_commit_file_exists(bucket):
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
        "params/d/data has changed: its checksum differs"
    )
    buckets.move(folder, folder.parent / "7.damaged")
    moved = bucket / "run/checkpoints/7.damaged/params/d/data"
    assert moved.read_bytes() == b"123456780"
    assert not (bucket / "run/checkpoints/7").exists()


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_orbax_writes_to_s3(bucket, make_workdir, monkeypatch):
    """Orbax's specifications for s3:// are those for gs:// with the s3 driver."""
    original, places = s3.build_kvstore_tspec, set()

    def on_disk(directory, *arguments, **options):
        spec = original(directory, *arguments, **options)
        place = spec.get("base", spec)
        if place["driver"] != "s3":
            return spec
        places.add(place["path"].removeprefix("run/checkpoints/"))
        folder = bucket.parent / directory.removeprefix("s3:").strip("/")
        return original(folder, *arguments, **options)

    monkeypatch.setattr(s3, "build_kvstore_tspec", on_disk)
    monkeypatch.setattr(tensorstore_utils, "build_kvstore_tspec", None)  # put back
    make_workdir("s3://bucket/run", steps=(3, 5))
    found = load_params("s3://bucket/run")
    expected = load_params(make_workdir(bucket.parent / "disk", steps=(5,)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert places >= {"3/params", "3/optimizer", "5/params/ocdbt.process_0"}
    assert (bucket / "run/checkpoints/5/params/manifest.ocdbt").exists()


def test_s3_settings_come_from_the_environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    spec = s3.build_kvstore_tspec("s3:/bucket/run/3", "head.kernel")
    expected = {
        "driver": "s3",
        "bucket": "bucket",
        "path": "run/3",
        "endpoint": "http://localhost:9000",
        "aws_region": "eu-west-1",
    }
    assert spec["base"] == expected
    assert tensorstore.KvStore.Spec(spec).to_json()["path"] == "head.kernel"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    base = s3.build_kvstore_tspec("s3://bucket/run/3")["base"]
    assert base == {
        "driver": "s3",
        "bucket": "bucket",
        "path": "run/3",
        "aws_credentials": {"type": "environment"},
    }
    base = s3.build_kvstore_tspec("gs://bucket/run/3")["base"]
    assert base == {"driver": "gcs", "bucket": "bucket", "path": "run/3"}


def test_a_missing_bucket_is_named_and_not_created(bucket):
    with pytest.raises(UserError, match="there is no bucket gs://bukcet; create it"):
        locate("gs://bukcet/run")
    assert not (bucket.parent / "bukcet").exists()


def test_a_bucket_that_does_not_answer_is_named(bucket, monkeypatch):
    def refuse(self):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(epath.Path("gs://bucket").__class__, "exists", refuse)
    with pytest.raises(UserError, match=r"be reached \(RuntimeError: no credentials\)"):
        locate("gs://bucket/run")


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")]
)
def test_the_missing_package_is_named(scheme, package, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs {package}; pip .*vit_jax\[{extra}\]"):
        locate(f"{scheme}://bucket/run")
