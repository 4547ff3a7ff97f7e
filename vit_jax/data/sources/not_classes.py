"""Signs that folders are not classes: the folders in them, and names of mere parts."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from vit_jax.data.sources.image_files import Walker
from vit_jax.data.sources.split_names import canonical, role, words_of

# Words for what holds images, whatever they show.
_CONTAINERS = frozenset(
    word
    for line in (
        "batch batches chunk chunks data dataset datasets dir directory file files",
        "fold folder folders folds image images img imgs input inputs jpeg jpegs jpg",
        "jpgs labels mask masks part partition partitions parts photo photos pic pics",
        "picture pictures png pngs segmentation segmentations set sets shard shards",
        "subset subsets",
    )
    for word in line.split()
)
# Words that make a number the name of a class.
_CLASSES = {"category", "class", "cls", "grade", "group", "label", "level", "stage"}
_CLASSES |= {"score", "type"}
_LEAST_SHARED = 2  # folders of the same names, fewer of which may be a coincidence


def unwrapped(path: str, below: str, walker: Walker) -> str:
    """Enters folders that only wrap others, such as train/images and train/train.

    A wrapper holds no images and one folder, which itself holds folders, and is called
    like its own folder, like the same split, or like something that holds images.

    Args:
      path: the folder of the data set.
      below: a folder in it, relative to it.
      walker: lists folders.

    Returns:
      The innermost folder that is wrapped, relative to `path`; `below` if none is.
    """
    while True:
        folder = os.path.join(path, below)
        inner = folders_inside(folder, walker)
        if len(inner) != 1:
            return below
        [name] = inner
        if not _is_wrapper(os.path.basename(below), name):
            return below
        if not folders_inside(os.path.join(folder, name), walker):
            return below
        below = os.path.join(below, name)


def folders_inside(folder: str, walker: Walker) -> list[str]:
    """Lists the folders with images in a folder; none if it holds images itself."""
    scanned = walker.scan(folder)
    if any(map(walker.is_image, scanned.files)):
        return []
    return [
        name
        for name in scanned.folders
        if walker.has_images(os.path.join(folder, name))
    ]


def alike(
    path: str, names: Sequence[str], walker: Walker
) -> tuple[list[str], list[str]]:
    """Finds folders that hold folders of the same names, as splits do.

    So do folds, domains, and copies in other colours; classes do it seldom.

    Args:
      path: the folder that the others are in.
      names: the folders to compare.
      walker: lists folders.

    Returns:
      Those folders, more than half of whose inner folders have the name of one in
      another; and these names, sorted.
    """
    inside = {}
    for name in names:
        folder = os.path.join(path, unwrapped(path, name, walker))
        inner = {_folded(one): one for one in folders_inside(folder, walker)}
        if len(inner) >= _LEAST_SHARED:
            inside[name] = inner
    times = Counter(one for inner in inside.values() for one in inner)
    found, common = [], {}
    for name, inner in inside.items():
        shared = {one: inner[one] for one in inner if times[one] > 1}
        if len(shared) >= _LEAST_SHARED and 2 * len(shared) > len(inner):
            found.append(name)
            common |= shared
    return (found, sorted(common.values())) if len(found) > 1 else ([], [])


def named_as_parts(names: Collection[str]) -> bool:
    """Returns whether no name can be that of a class.

    So are "images" and "masks", or "images_001" and "images_002": words for what holds
    images, and words that all names have in common.
    """
    if len(names) < 2:
        return False
    words = [set(words_of(name)) for name in names]
    common = set.intersection(*words)
    if common & _CLASSES:
        return False
    return all(
        some & _CONTAINERS
        and all(
            word in _CONTAINERS or word in common or word.isdecimal() for word in some
        )
        for some in words
    )


def mere_parts(names: Collection[str]) -> set[str]:
    """Returns the names that are hardly those of classes where there are also labels.

    They consist of words for what holds images, or all names are those of parts.
    """
    if named_as_parts(names):
        return set(names)
    return {
        name
        for name in names
        if _CONTAINERS & (words := set(words_of(name)))
        and all(word in _CONTAINERS or word.isdecimal() for word in words)
    }


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_wrapper(outer: str, inner: str) -> bool:
    """Returns whether a folder's name suits one that is alone in another."""
    if _folded(outer) == _folded(inner):
        return True
    split, other = canonical(outer), canonical(inner)
    if split and other and role(split) == role(other):
        return True
    words = set(words_of(inner))
    return bool(words) and words <= _CONTAINERS
