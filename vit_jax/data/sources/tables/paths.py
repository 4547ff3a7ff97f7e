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
# Also addresses, such as gs://bucket/images/0.jpg; these are never fetched.
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]+:/")


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
        given = filter(None, (one.strip() for one in options.image_suffix.split(",")))
        self._suffixes = [one if "." in one else f".{one}" for one in given]
        self._endings = (*EXTENSIONS, *map(str.lower, self._suffixes))
        # The same image may be listed with its whole path and without.
        own = "" if options.image_root or self._below else root.replace(os.sep, "/")
        self._prefix = own and own.rstrip("/") + "/"
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
        if self._suffixes and not cell.lower().endswith(self._endings):
            return self._first_of([cell + suffix for suffix in self._suffixes])
        return self._whole(cell)

    def _first_of(self, cells: Sequence[str]) -> str:
        """Returns the path of the first that exists; else that of the very first."""
        whole = [self._whole(cell) for cell in cells]
        if len(whole) > 1:
            for path in whole:
                if os.path.exists(os.path.join(self._root, path)):
                    return path
        return whole[0]

    def _whole(self, cell: str) -> str:
        """Returns the path of a cell that has its ending."""
        if self._cut != 0 and _ABSOLUTE.match(cell):
            cell = self._cut_off(cell)
        if not self._first_rules:
            cell = cell.removeprefix(self._prefix)
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
) -> list[str]:
    """Looks whether the first files exist.

    Args:
      root: the data set's folder.
      paths: the first paths, relative to it.
      name: the data set's name in messages.
      cells: reads what the table says instead of `paths`, to suggest where they are.

    Returns:
      A remark if some do not; each is reported, and counted, when it is read.

    Raises:
      UserError: none of them exists.
    """
    missing = [path for path in paths if not os.path.exists(os.path.join(root, path))]
    if not missing:
        return []
    first = os.path.join(root, missing[0])
    hint = _similar(root, missing[0])
    if len(missing) < len(paths):
        return [
            f"{len(missing)} of the first {len(paths)} images do not exist, such as "
            f"{first}{hint and '. '}{hint}"
        ]
    hint = _suggestion(root, [clean_path(cell) for cell in cells()]) or hint
    hint = hint or (
        "Write paths relative to the table's folder, or absolute ones; or set "
        "data.image_root to the folder that they are relative to, and "
        "data.image_suffix to their ending if they have none."
    )
    raise UserError(
        f"none of the first {len(paths)} images of {name} exists; the first was "
        f"expected at {first}. {hint}"
    )


def _similar(root: str, path: str) -> str:
    """Returns a sentence about a file of another case or ending; else ""."""
    folder, name = os.path.split(os.path.join(root, path))
    stem = os.path.splitext(name)[0].casefold()
    for other in sorted(_names_in(folder)):
        if os.path.splitext(other)[0].casefold() == stem:
            return (
                f"There is {os.path.join(folder, other)}: the table has to name files "
                "in their own case and with their own ending"
            )
    return ""


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
    # One ending is a better guess than several, and one folder than several.
    for tried in [*([suffix] for suffix in suffixes), suffixes[1:]]:
        folders: dict[str, set[str]] = {}
        for suffix in tried:
            for folder, found in hits[suffix].items():
                folders.setdefault(folder, set()).update(found)
        one = max(folders, key=lambda name: len(folders[name]), default="")
        together = set[str]().union(*folders.values())
        for names, found in (([one], folders.get(one, ())), (list(folders), together)):
            if len(found) > most:
                endings = ",".join(suffix for suffix in tried if hits[suffix])
                best = {"image_root": ",".join(names) or ".", "image_suffix": endings}
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
