"""s3:// for Orbax, which knows gs:// and disks, by TensorStore's driver.

Orbax says in one function where TensorStore finds a folder's arrays. TensorStore has a
driver for s3 whose specification is that for gs but for its name; Orbax 0.12.8 gives no
public way to name it (google/orbax#872).
"""

import os
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils

_orbax_s_own = tensorstore_utils.build_kvstore_tspec


def teach_orbax() -> None:
    """From now on Orbax reads and writes in s3:// too; everything else stays."""
    tensorstore_utils.build_kvstore_tspec = build_kvstore_tspec


def build_kvstore_tspec(directory: str, *arguments: Any, **options: Any) -> Any:
    """Orbax's function of this name, also for s3://."""
    # Orbax makes a path of some addresses before, and one of the slashes is lost.
    scheme, _, rest = os.fspath(directory).partition(":/")
    if scheme != "s3":
        return _orbax_s_own(directory, *arguments, **options)
    spec = _orbax_s_own(f"gs://{rest.lstrip('/')}", *arguments, **options)
    return _on_s3(spec)


def _on_s3(spec: Any) -> Any:
    """The specification, and those within it, with the other driver."""
    if not isinstance(spec, dict):
        return spec
    spec = {key: _on_s3(value) for key, value in spec.items()}
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        spec |= {"driver": "s3"} | _service()
    return spec


def _service() -> dict[str, Any]:
    """What the environment says of the service, by the names that AWS's tools know."""
    found: dict[str, Any] = {}
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if endpoint := next(filter(None, map(os.environ.get, names)), None):
        found["endpoint"] = endpoint
        # Amazon tells a bucket's region; others may not.
        names = ("AWS_REGION", "AWS_DEFAULT_REGION")
        if region := next(filter(None, map(os.environ.get, names)), None):
            found["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:
        # Otherwise every place is tried in turn, and each that is empty reported.
        found["aws_credentials"] = {"type": "environment"}
    return found
