"""The versions of Python and the libraries that this package was tested with."""

import contextlib
import functools
import importlib.metadata
import logging
import sys
from collections.abc import Mapping

from packaging.specifiers import SpecifierSet

logger = logging.getLogger(__name__)

# The oldest and newest versions with which the whole test suite has passed; not every
# version in between was tried. Tests compare this with setup.py and constraints.txt.
TESTED = {
    "Python": ">=3.11,<3.14",
    "jax": ">=0.10.2,<=0.12.0.1",
    "flax": ">=0.12.8,<=0.12.12",
    "optax": ">=0.2.8,<=0.2.8",
    "orbax-checkpoint": ">=0.12.8,<=0.12.8",
    "grain": ">=0.2.18,<=0.2.18",
    "numpy": ">=2.0,<2.6",
}


@functools.cache
def warn_of_untested() -> None:
    """Logs one line if any version in use was never tested, once per process."""
    if line := untested(installed()):
        logger.warning("%s", line)


def installed() -> dict[str, str]:
    """Returns the versions in use of everything that `TESTED` names."""
    found = {"Python": ".".join(map(str, sys.version_info[:3]))}
    for name in TESTED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = found.get(name) or importlib.metadata.version(name)
    return found


def untested(versions: Mapping[str, str]) -> str:
    """Names the versions that this package was never tested with, in one line.

    Args:
      versions: name → version, as `installed` returns them.

    Returns:
      The line; "" if all of them were tested.
    """
    outside = [
        f"{name} {version} (tested: {TESTED[name]})"
        for name, version in versions.items()
        if not SpecifierSet(TESTED[name]).contains(version, prereleases=True)
    ]
    if not outside:
        return ""
    return f"vit_jax was never tested with {', '.join(outside)}"
