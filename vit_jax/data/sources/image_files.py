"""The image files below a folder, and the number of other files by reason."""

import collections
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vit_jax.data.formats import EXTENSIONS
from vit_jax.data.sources.options import FIRST_RULES, NEWEST_RULES

# Runs that began with the first rules read files with these endings, and no others.
_FIRST_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
)

# Reasons for leaving a file out; the ending is the reason for all others.
HIDDEN = "hidden"
SIDE_FILES = "thumbnails and files of file servers and systems"
SPECIAL = "special files (pipes, sockets, devices)"
LOOPS = "links to a folder that contains them"
LOST = "links that lead nowhere"
NO_ENDING = "without an ending"

# What file servers (Synology, QNAP, NetApp) and systems (Windows, macOS, Linux) put
# beside people's files, in lower case. Some of it are images: thumbnails.
_SIDE = re.compile(
    r"""
    thumbs\.db(:.*)? | ehthumbs(_vista)?\.db | desktop\.ini | \$recycle\.bin
    | system\ volume\ information | __macosx | \._.* | \.ds_store | icon\r
    | \.appledouble | \.spotlight-v100 | \.fseventsd | \.temporaryitems | \.trashes
    | \.trash.* | lost\+found | @eadir | \#recycle | \#snapshot | ~snapshot
    | @recycle | @recently-snapshot | \.@__thumb | \.@upload_cache | \.thumbnails
    | synoindex_media_info | syno(photo|file)_thumb.* | \.?picasa(originals|\.ini)
    | \.nfs[0-9a-f]+ | network\ trash\ folder | temporary\ items | zbthumbnail\.info
    | \.ipynb_checkpoints | __pycache__
    """,
    re.VERBOSE | re.DOTALL,
)


class Scanned(NamedTuple):
    """The contents of one directory.

    Attributes:
      folders, files: names, sorted.
      left_out: reason → number of entries that are in neither.
    """

    folders: list[str]
    files: list[str]
    left_out: Mapping[str, int]


class Found(NamedTuple):
    """The images below a folder.

    Attributes:
      images: paths relative to the folder, with "/".
      left_out: reason → number of files (and of folders that were not entered).
    """

    images: list[str]
    left_out: Mapping[str, int]


def find_images(folder: str | os.PathLike[str], rules: int = NEWEST_RULES) -> Found:
    """Finds the images in a folder and its subfolders; follows links, but no loops.

    Raises:
      OSError: a directory cannot be listed.
    """
    found = Walker(rules).find(os.fspath(folder))
    return Found(sorted(found.images), found.left_out)


class Walker:
    """A lister of directories that lists each only once.

    Attributes:
      extensions: the endings of images, in lower case.
      modified: directory → modification time in ns, read before it was listed.
      lost: paths of links that lead nowhere and may be of folders.
    """

    def __init__(self, rules: int = NEWEST_RULES):
        self._first = rules == FIRST_RULES
        self.extensions = _FIRST_EXTENSIONS if self._first else EXTENSIONS
        self.modified: dict[str, int] = {}
        self.lost: list[str] = []
        self._scanned: dict[str, Scanned] = {}

    def scan(self, folder: str) -> Scanned:
        """Lists a directory, without what is hidden or of no interest."""
        folder = folder.rstrip(os.sep) or os.sep
        if folder not in self._scanned:
            self.modified[folder] = os.stat(folder).st_mtime_ns
            self._scanned[folder] = self._list(folder)
        return self._scanned[folder]

    def is_image(self, file: str) -> bool:
        """Returns whether a file has the ending of an image."""
        return file.lower().endswith(self.extensions)

    def sort_out(self, file: str, left_out: collections.Counter[str]) -> bool:
        """Returns whether a file is an image; otherwise counts it by its ending."""
        if self.is_image(file):
            return True
        left_out[os.path.splitext(file)[1].lower() or NO_ENDING] += 1
        return False

    def find(self, folder: str, prefix: str = "") -> Found:
        """Finds all images below a folder; their paths begin with `prefix`."""
        images: list[str] = []
        left_out: collections.Counter[str] = collections.Counter()
        for path, names, skipped in self._walk(folder, prefix, (), left_out):
            left_out.update(skipped)
            for name in names:
                if self.sort_out(name, left_out):
                    images.append(path + name)
        return Found(images, left_out)

    def has_images(self, folder: str) -> bool:
        """Returns whether there is any image below a folder."""
        walk = self._walk(folder, "", (), collections.Counter())
        return any(self.is_image(name) for _, names, _ in walk for name in names)

    def _list(self, folder: str) -> Scanned:
        folders, files = [], []
        left_out: collections.Counter[str] = collections.Counter()
        with os.scandir(folder) as entries:
            for entry in entries:
                if reason := self._reason(folder, entry):
                    left_out[reason] += 1
                    if reason == LOST:
                        self.lost.append(entry.path)
                else:
                    (folders if _is_folder(entry) else files).append(entry.name)
        return Scanned(sorted(folders), sorted(files), left_out)

    def _reason(self, folder: str, entry: os.DirEntry) -> str:
        """Returns why an entry of a directory is left out; "" if it is not."""
        hidden = entry.name.startswith(".")
        if self._first:
            return HIDDEN if hidden else ""
        if _SIDE.fullmatch(entry.name.lower()):
            return SIDE_FILES
        if hidden:
            return HIDDEN
        # The kind of an entry costs no call of the system, except for a link.
        if _is_folder(entry):
            return LOOPS if entry.is_symlink() and contains(entry, folder) else ""
        if entry.is_symlink() and not os.path.exists(entry.path):
            # An image stays: reading it will be a missing image's error.
            return "" if self.is_image(entry.name) else LOST
        return "" if entry.is_file() else SPECIAL

    def _walk(
        self,
        folder: str,
        prefix: str,
        above: tuple[str, ...],
        left_out: collections.Counter[str],
    ) -> Iterator[tuple[str, list[str], Mapping[str, int]]]:
        """Yields each folder's prefix, names of files, and what its listing left out.

        Args:
          folder: the folder to start from.
          prefix: what its files' paths begin with.
          above: the folders passed on the way here; by the first rules, the targets of
            links followed on the way here.
          left_out: counts the links that are not followed.
        """
        scanned = self.scan(folder)
        yield prefix, scanned.files, scanned.left_out
        for name in scanned.folders:
            path, passed = os.path.join(folder, name), above
            if not self._first:
                passed = (*above, folder)
            if os.path.islink(path):
                target = os.path.realpath(path)
                if self._first:
                    # Without a "/" after the target, as it was.
                    inside = f"{os.path.realpath(folder)}/".startswith(target)
                    if target in above or inside:
                        continue
                    passed = (*above, target)
                elif any(contains(path, one) for one in passed):
                    left_out[LOOPS] += 1
                    continue
            yield from self._walk(path, f"{prefix}{name}/", passed, left_out)


def _is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder, or a link that leads to one."""
    try:
        return entry.is_dir()
    except PermissionError:  # which listing or reading it will report
        return not entry.name.lower().endswith(EXTENSIONS)
    except OSError:  # such as a link to itself
        return False


def contains(outer: str | os.PathLike[str], inner: str) -> bool:
    """Returns whether a folder is another one or contains it, wherever links lead."""
    outer, inner = os.path.realpath(outer), os.path.realpath(inner)
    return f"{inner.rstrip(os.sep)}{os.sep}".startswith(
        f"{outer.rstrip(os.sep)}{os.sep}"
    )


def in_words(left_out: Mapping[str, int]) -> str:
    """Writes what was left out: "7 × .txt, 2 × hidden"; the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{number:,} × {reason}" for reason, number in ordered if number)
