"""Goodput: the share of a process's time that is spent on steps."""

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping

_LOADED = time.time()


def process_start() -> float:
    """Returns when this process began, in seconds like `time.time`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # proc(5): field 22, in ticks since the machine started; the name before it may
        # contain spaces and ends with the last parenthesis.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
        age = up - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return _LOADED  # leaves out Python's own start


def goodput(spent: Mapping[str, float]) -> dict[str, float]:
    """Computes shares of the time since this process started.

    Args:
      spent: activity since the first step → seconds; "steps" is the productive one.

    Returns:
      `goodput` (0 to 1) = the share of "steps", `seconds` = the total time, and the
      share of every other activity; "starting" is the time before.
    """
    whole = max(time.time() - process_start(), 1e-9)
    starting = max(whole - sum(spent.values()), 0.0)
    parts = {"starting": starting, **spent}
    steps = parts.pop("steps")
    shares = {name: seconds / whole for name, seconds in parts.items()}
    return {"goodput": steps / whole, "seconds": whole, **shares}


def in_words(shares: Mapping[str, float]) -> str:
    """Writes the result of `goodput` in one line."""
    rest = ", ".join(
        f"{name} {100 * share:.1f} %"
        for name, share in shares.items()
        if name not in ("goodput", "seconds") and share >= 0.0005
    )
    steps, seconds = 100 * shares["goodput"], shares["seconds"]
    return f"{steps:.1f} % of {seconds:,.0f} s were steps; {rest}"
