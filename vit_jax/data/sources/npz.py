"""Opens the .npz file of a data set: sizes first, and every problem at once."""

import contextlib
from collections.abc import Iterator

import numpy as np

from vit_jax.archives.npz import Header, array_members, read_array, read_header
from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import MOST_INFLATED, Member, read_members
from vit_jax.errors import UserError
from vit_jax.host_memory import physical_bytes


def headers(path: str) -> dict[str, Header]:
    """Reads types and shapes of all arrays, and no array.

    Raises:
      UserError: the file is not an archive of arrays; or, of all arrays at once, Python
        objects, sizes that the file does not have, or more than this machine's memory.
    """
    found, problems = {}, []
    with _opened(path) as arrays:
        for name, member in arrays.items():
            try:
                header = read_header(member)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            found[name] = header
            if header.dtype.hasobject:
                problems.append(
                    f"{name} holds Python objects, which are never unpickled: save it "
                    "with a plain dtype"
                )
            elif (
                header.nbytes + header.start != member.size
                or min(header.shape, default=0) < 0
            ):
                problems.append(f"{name} is {header}, but its file has another size")
            elif member.size > MOST_INFLATED * max(member.packed, 1):
                problems.append(f"{name} cannot be as large as it says, {header}")
            elif header.nbytes > physical_bytes():
                problems.append(
                    f"{name} needs {header.nbytes / 1e9:.1f} GB of memory, this "
                    f"machine has {physical_bytes() / 1e9:.1f} GB: write the images "
                    "to files, with a table"
                )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} cannot be used:{listed}")
    return found


def read(path: str, name: str) -> np.ndarray:
    """Reads one array, whose header has been checked.

    Raises:
      UserError: its data are damaged, or it has changed since then.
    """
    with _opened(path) as arrays:
        try:
            return read_array(arrays[name], read_header(arrays[name]))
        except (KeyError, ValueError):
            raise Unreadable(f"{name} has changed since it was checked") from None


@contextlib.contextmanager
def _opened(path: str) -> Iterator[dict[str, Member]]:
    """Yields the arrays by name; damage that is found inside is a UserError."""
    try:
        with open(path, "rb") as file:
            # Masks may well shrink more than weights: each array is bounded by itself.
            yield array_members(read_members(file, most_expansion=float("inf")))
    except (Unreadable, OSError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        remedy = getattr(error, "remedy", "") or "Copy or write it again"
        raise UserError(f"{path} cannot be read: {reason}. {remedy}.") from error
