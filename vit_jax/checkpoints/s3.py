"""Support for s3:// in Orbax, which by itself handles only gs:// and disks.

This module replaces a private function of Orbax, `build_kvstore_tspec`. Three facts
justify that:

- Without it a run in s3:// fails at its first save, and Orbax 0.12.8 has no public way
  to name a TensorStore driver (google/orbax#872).
- That function alone decides where TensorStore finds a folder's arrays, and
  TensorStore's s3 driver takes the specification of its gs driver under another name.
  Every other address goes to Orbax's own function with its arguments unchanged.
- It works. With moto's S3 server (5.2.5), in one process and in two,
  benchmarks/buckets.py trains, damages the newest checkpoint by one bit, continues from
  the one before, and loads. If Orbax moves or renames the function, this module can no
  longer be imported, and tests/checkpoints/test_buckets.py fails.
"""

import os
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils

_orbax_s_own = tensorstore_utils.build_kvstore_tspec


def teach_orbax() -> None:
    """Makes Orbax read and write in s3:// too; other addresses are not affected."""
    tensorstore_utils.build_kvstore_tspec = build_kvstore_tspec


def build_kvstore_tspec(directory: str, *arguments: Any, **options: Any) -> Any:
    """Extends Orbax's function of this name to s3://."""
    # Orbax turns some addresses into paths first, which drops one of the slashes.
    scheme, _, rest = os.fspath(directory).partition(":/")
    if scheme != "s3":
        return _orbax_s_own(directory, *arguments, **options)
    spec = _orbax_s_own(f"gs://{rest.lstrip('/')}", *arguments, **options)
    return _on_s3(spec)


def _on_s3(spec: Any) -> Any:
    """Replaces gs drivers by s3 in a specification and in those nested in it."""
    if not isinstance(spec, dict):
        return spec
    spec = {key: _on_s3(value) for key, value in spec.items()}
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        spec |= {"driver": "s3"} | _service()
    return spec


def _service() -> dict[str, Any]:
    """Reads endpoint, region and credentials from the environment variables of AWS."""
    found: dict[str, Any] = {}
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint := next(filter(None, map(os.environ.get, names)), None):
        found["endpoint"] = endpoint
        # Only needed with another endpoint: Amazon itself reports a bucket's region.
        names = ("AWS_REGION", "AWS_DEFAULT_REGION")
        if region := next(filter(None, map(os.environ.get, names)), None):
            found["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:
        # Without this the driver tries every source and logs each one that is empty.
        found["aws_credentials"] = {"type": "environment"}
    return found
