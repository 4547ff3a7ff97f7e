"""Where a table's paths lead, and what would make them lead to images."""

import itertools
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vit_jax.data.sources.image_files import EXTENSIONS
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.tables.columns import clean_path
from vit_jax.data.sources.tables.parquet import EmbeddedImage
from vit_jax.errors import UserError

LOOKED_FOR = 100  # files; if none of them exists, the paths are taken to be wrong
_TRIED = 200  # folders in which images are looked for
_UPWARDS = 3  # parents of the table's folder among them


class Place(NamedTuple):
    """A function from a table's cells to paths, relative to the data set's folder.

    Attributes:
      folder: the folder of the images, relative to the data set's; "" = the same.
      table_folder: the table's folder, likewise, where embedded images are.
      suffix: text to append to paths without an ending of images.
      rules: see `DataOptions`.
    """

    folder: str
    table_folder: str
    suffix: str
    rules: int

    @classmethod
    def of(cls, file: str, root: str, options: DataOptions) -> "Place":
        """Returns the place of a table.

        Args:
          file: the table.
          root: the data set's folder.
          options: `image_root` and `image_suffix` are used.
        """
        below = os.path.relpath(os.path.dirname(file), root).replace(os.sep, "/")
        below = "" if below == "." else below
        folder = os.path.expanduser(clean_path(options.image_root))
        suffix = options.image_suffix.strip()
        if suffix and "." not in suffix:
            suffix = f".{suffix}"
        return cls(posixpath.join(below, folder), below, suffix, options.rules)

    def __call__(self, cell: str) -> str:
        """Returns the path that a cell stands for."""
        if isinstance(cell, EmbeddedImage):
            return posixpath.join(self.table_folder, cell)
        if self.rules > FIRST_RULES:
            cell = clean_path(cell)
        if self.suffix and not cell.lower().endswith(
            (*EXTENSIONS, self.suffix.lower())
        ):
            cell += self.suffix
        return posixpath.join(self.folder, cell)


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
    best, most = (), len(cells) // 2
    for folder in itertools.islice(_folders(root), _TRIED):
        for suffix in suffixes:
            first = posixpath.join(root, folder, cells[0] + suffix) if cells else ""
            last = posixpath.join(root, folder, cells[-1] + suffix) if cells else ""
            if not (os.path.isfile(first) or os.path.isfile(last)):
                continue
            found = sum(
                os.path.isfile(posixpath.join(root, folder, cell + suffix))
                for cell in cells
            )
            if found > most:
                best, most = (folder, suffix), found
    if not best:
        return ""
    values = {"image_root": best[0], "image_suffix": best[1]}
    given = " and ".join(
        f"data.{name}={text!r}" for name, text in values.items() if text
    )
    return f"With {given}, {most} of the first {len(cells)} images exist: set that."


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
