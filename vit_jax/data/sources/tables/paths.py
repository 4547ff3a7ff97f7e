"""Where a table's paths lead, and what would make them lead to images."""

import glob
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence

from vit_jax.data.sources.image_files import EXTENSIONS
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.tables.cells import clean_path
from vit_jax.data.sources.tables.parquet import EmbeddedImage
from vit_jax.errors import UserError
from vit_jax.words import shortened

LOOKED_FOR = 100  # files; if none of them exists, the paths are taken to be wrong
_TRIED = 200  # folders in which images are looked for
_UPWARDS = 3  # parents of the table's folder among them
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class Place:
    """A function from a table's cells to paths, relative to the data set's folder.

    With `image_root`, an absolute path that does not exist is taken to be of another
    machine: it is cut to the part that lies below `image_root`.
    """

    def __init__(self, file: str, root: str, options: DataOptions):
        """Finds the folders of a table's images.

        Args:
          file: the table.
          root: the data set's folder.
          options: `image_root` and `image_suffix` are used.

        Raises:
          UserError: there is no folder of the pattern `image_root`.
        """
        below = os.path.relpath(os.path.dirname(file), root).replace(os.sep, "/")
        self._root, self._below = root, "" if below == "." else below
        self._folders = self._image_folders(options.image_root)
        self._suffix = options.image_suffix.strip()
        if self._suffix and "." not in self._suffix:
            self._suffix = f".{self._suffix}"
        self._first_rules = options.rules == FIRST_RULES
        self._names = [_names_in(os.path.join(root, one)) for one in self._folders[1:]]
        if self._names:
            self._names.insert(0, _names_in(os.path.join(root, self._folders[0])))
        # Parts of absolute paths to leave out; None = not known yet.
        self._cut = None if options.image_root else 0
        self._tries = LOOKED_FOR

    def __call__(self, cell: str) -> str:
        """Returns the path that a cell stands for.

        Raises:
          ValueError: it is in several of the folders.
        """
        if isinstance(cell, EmbeddedImage):
            return posixpath.join(self._below, cell)
        if not self._first_rules:
            cell = clean_path(cell)
        endings = (*EXTENSIONS, self._suffix.lower())
        if self._suffix and not cell.lower().endswith(endings):
            cell += self._suffix
        if self._cut != 0 and _ABSOLUTE.match(cell):
            cell = self._cut_off(cell)
        return posixpath.join(self._folder_of(cell), cell)

    def _image_folders(self, image_root: str) -> list[str]:
        """Returns the folders that `image_root` names, relative to the data set's."""
        given = os.path.expanduser(clean_path(image_root))
        whole = posixpath.join(self._below, given)
        if os.path.isdir(os.path.join(self._root, whole)):
            return [whole]
        found, missing = [], []
        for part in filter(None, (part.strip() for part in given.split(","))):
            one = posixpath.join(self._below, os.path.expanduser(part))
            if not glob.has_magic(one):
                found.append(one)
                continue
            matching = [
                path.replace(os.sep, "/").rstrip("/")
                for path in sorted(glob.glob(f"{one}/", root_dir=self._root))
            ]
            found += matching
            missing += [] if matching else [part]
        if missing:
            raise UserError(
                f"data.image_root={image_root!r}: there is no folder "
                f"{shortened(missing, repr)} in {os.path.join(self._root, self._below)}"
            )
        return list(dict.fromkeys(found)) or [whole]

    def _folder_of(self, cell: str) -> str:
        """Returns the one of several folders that has a file; else the first."""
        if not self._names:
            return self._folders[0]
        first = cell.partition("/")[0]
        holding = [
            folder
            for folder, names in zip(self._folders, self._names, strict=True)
            if first in names
            and (
                first == cell or os.path.exists(os.path.join(self._root, folder, cell))
            )
        ]
        if len(holding) > 1:
            raise ValueError(
                f"{cell} is in several folders of data.image_root: {shortened(holding)}"
            )
        return holding[0] if holding else self._folders[0]

    def _cut_off(self, cell: str) -> str:
        """Cuts an absolute path as the first one that was found below `image_root`."""
        parts = cell.lstrip("/").split("/")
        if self._cut is None and self._tries:
            self._tries -= 1
            if os.path.exists(cell):
                self._cut = 0
                return cell
            for count in range(1, len(parts)):
                tail = posixpath.join(*parts[count:])
                for folder in self._folders:
                    if os.path.exists(os.path.join(self._root, folder, tail)):
                        self._cut = count
                        return tail
        return posixpath.join(*parts[self._cut :]) if self._cut else cell


def check_exist(
    root: str, paths: Sequence[str], name: str, cells: Callable[[], Sequence[str]]
) -> None:
    """Raises UserError if none of the first files exists.

    A single missing file is reported, and counted, when it is read.

    Args:
      root: the data set's folder.
      paths: the first paths, relative to it.
      name: the data set's name in messages.
      cells: reads what the table says instead of `paths`, to suggest where they are.
    """
    first = os.path.join(root, paths[0])
    if any(os.path.exists(os.path.join(root, path)) for path in paths):
        return
    hint = _suggestion(root, [clean_path(cell) for cell in cells()]) or (
        "Write paths relative to the table's folder, or absolute ones; or set "
        "data.image_root to the folder that they are relative to, and "
        "data.image_suffix to their ending if they have none."
    )
    raise UserError(
        f"none of the first {len(paths)} images of {name} exists; the first was "
        f"expected at {first}. {hint}"
    )


def _suggestion(root: str, cells: Sequence[str]) -> str:
    """Returns a sentence about the options with which most images exist; else ""."""
    suffixes = [""]
    if cells and not cells[0].lower().endswith(EXTENSIONS):
        suffixes += [*EXTENSIONS, *map(str.upper, EXTENSIONS)]
    cells = [_tail(root, cell) for cell in cells]
    hits: dict[str, dict[str, set[str]]] = {suffix: {} for suffix in suffixes}
    for folder in itertools.islice(_folders(root), _TRIED):
        names = _names_in(os.path.join(root, folder))
        for suffix in suffixes:
            found = {
                cell
                for cell in cells
                if (cell + suffix).partition("/")[0] in names
                and ("/" not in cell or _is_file(root, folder, cell + suffix))
            }
            if found:
                hits[suffix][folder] = found
    best, most = {}, len(set(cells)) // 2
    for suffix, folders in hits.items():
        one = max(folders, key=lambda name: len(folders[name]), default="")
        together = set().union(*folders.values())
        for names, found in (([one], folders.get(one, ())), (list(folders), together)):
            if len(found) > most:
                best = {"image_root": ",".join(names) or ".", "image_suffix": suffix}
                most = len(found)
    if not best:
        return ""
    if best["image_root"] == "." and best["image_suffix"]:
        del best["image_root"]
    given = " and ".join(f"data.{name}={text!r}" for name, text in best.items() if text)
    return (
        f"With {given}, {most} of the first {len(set(cells))} images exist: set that."
    )


def _tail(root: str, cell: str) -> str:
    """Cuts an absolute path to the part that exists near `root`, if any does."""
    if not _ABSOLUTE.match(cell):
        return cell
    parts = cell.lstrip("/").split("/")
    for count in range(1, len(parts)):
        if _is_file(root, "", posixpath.join(*parts[count:])):
            return posixpath.join(*parts[count:])
    return parts[-1]


def _is_file(root: str, folder: str, path: str) -> bool:
    return os.path.isfile(os.path.join(root, folder, path))


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _folders(root: str) -> Iterator[str]:
    """Yields folders near `root`, relative to it: itself, below it, above it."""
    yield ""
    level = [""]
    for _ in range(2):
        below = []
        for folder in level:
            try:
                with os.scandir(os.path.join(root, folder)) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_dir())
            except OSError:
                continue
            below += [posixpath.join(folder, name) for name in names]
        yield from below
        level = below[:_TRIED]
    yield from ("/".join([".."] * up) for up in range(1, _UPWARDS + 1))
