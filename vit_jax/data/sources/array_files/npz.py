"""Reading of a data set's .npz file: sizes first, and all problems at once."""

import contextlib
from collections.abc import Iterator

import numpy as np

from vit_jax.archives.npz import Header, array_members, read_array, read_header
from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import MOST_INFLATED, Member, read_members
from vit_jax.errors import UserError
from vit_jax.host_memory import physical_bytes


def headers(path: str) -> dict[str, Header]:
    """Reads dtypes and shapes of all arrays, but no array.

    Raises:
      UserError: the file is not an archive of arrays; or arrays hold Python objects,
        claim a size that the file does not have, or exceed this machine's memory; lists
        all of them.
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
                problems.append(
                    f"{name} is {header}, which its compressed data cannot hold"
                )
            elif header.nbytes > physical_bytes():
                problems.append(
                    f"{name} needs {header.nbytes / 1e9:.1f} GB of memory, but this "
                    f"machine has {physical_bytes() / 1e9:.1f} GB: write the images to "
                    "files, with a table"
                )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} cannot be used:{listed}")
    return found


def read(path: str, name: str) -> np.ndarray:
    """Reads one array whose header has been checked.

    Raises:
      UserError: its data are damaged, or the file has changed since the check.
    """
    with _opened(path) as arrays:
        try:
            return read_array(arrays[name], read_header(arrays[name]))
        except (KeyError, ValueError):
            raise Unreadable(f"{name} has changed since it was checked") from None


def checksums(path: str) -> dict[str, int]:
    """Returns each array's name and the CRC-32 of its bytes, as the file records it.

    Raises:
      UserError: the file is not an archive of arrays.
    """
    with _opened(path) as arrays:
        return {name: member.checksum for name, member in arrays.items()}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[dict[str, Member]]:
    """Yields the arrays by name; turns errors of damaged files into UserErrors."""
    try:
        with open(path, "rb") as file:
            # Images such as masks may compress more than weights do, so only the limit
            # per array applies.
            yield array_members(read_members(file, most_expansion=float("inf")))
    except (Unreadable, OSError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        remedy = getattr(error, "remedy", "") or "Copy or write it again"
        raise UserError(f"{path} cannot be read: {reason}. {remedy}.") from error
