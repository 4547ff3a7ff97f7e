"""The split of each folder of a data set, by its name and by what is inside."""

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from vit_jax.data.sources import imagenet
from vit_jax.data.sources.image_files import Walker
from vit_jax.data.sources.options import FIRST_RULES, NO_SPLITS, DataOptions
from vit_jax.data.sources.split_names import (
    EVALUATION_NAMES,
    canonical,
    is_unmistakable,
    resembles_split,
    role,
    suggested,
)
from vit_jax.errors import UserError
from vit_jax.words import shortened

ROOT = "."  # in `data.splits`: the folder of the data set itself
HOW_TO_SAY = (
    "(--config.data.splits=… for a run, --data=splits=… for the other commands)"
)


class Division(NamedTuple):
    """The folders of a data set that hold its classes.

    Attributes:
      folders: split → its folders, relative to the data set's; "" = that one itself.
      beside: folders that are not classes, although the data set's own folder holds
        classes.
      unlabelled: split → its folder, whose images have no classes.
      remarks: sentences about how the folders were understood.
    """

    folders: Mapping[str, Sequence[str]]
    beside: frozenset[str] = frozenset()
    unlabelled: Mapping[str, str] = MappingProxyType({})
    remarks: tuple[str, ...] = ()


UNDIVIDED = Division({"train": ("",)})


def divide(path: str, walker: Walker, options: DataOptions) -> Division:
    """Decides which folders are splits; the others are classes.

    Named by `options.splits`, they are what it says. Otherwise the folders are splits
    if each one with images has a name that `split_names.canonical` knows. If only some
    have, they are splits where one that is for training holds folders of classes, and
    classes where it holds the images themselves, like those of trains and buses.

    Raises:
      UserError: several folders could be the same split; a folder would be left out; or
        names that look like splits cannot be told from classes. The message names the
        key that decides.
    """
    if options.rules == FIRST_RULES and not options.splits:
        return _by_first_rules(path, walker)
    if options.splits.strip() == NO_SPLITS:
        return UNDIVIDED
    folders = walker.scan(path).folders
    if options.splits:
        return _named(path, folders, options)
    if not any(map(resembles_split, folders)):
        return UNDIVIDED
    inside = {name: os.path.join(path, name) for name in folders}
    full = [name for name in folders if walker.has_images(inside[name])]
    divided = [name for name in full if _holds_classes(inside[name], walker)]
    known = {name: split for name in full if (split := canonical(name))}
    if known and len(known) == len(full):
        empty = [name for name in folders if name not in full]
        return _all_known(path, known, divided, empty)
    if full and all(map(resembles_split, full)):
        _stop(
            path,
            "every folder in it looks like a split, but not all are known: "
            f"{shortened(full, repr)}",
            full,
        )
    sure = [name for name in divided if name in known and is_unmistakable(name)]
    unknown = [name for name in full if name not in known]
    if any(role(known[name]) == "train" for name in sure):
        _stop(
            path,
            f"beside {shortened(sure, repr)} it has folders with images that are not "
            f"known as splits: {shortened(unknown, repr)}",
            full,
        )
    for name in sure:
        if set(walker.scan(inside[name]).folders) & set(unknown):
            _stop(
                path,
                f"the folder {name!r} looks like a split, because it has folders of "
                f"the same names as those beside it: {shortened(unknown, repr)}",
                [name],
                rest=True,
            )
    if not (like := [name for name in full if name in known]):
        return UNDIVIDED
    remark = (
        f"{shortened(like, repr)}: taken for classes like the folders beside them. If "
        f"they are splits, set data.splits {HOW_TO_SAY}"
    )
    return UNDIVIDED._replace(remarks=(remark,))


def check_not_inverted(path: str, classes: Iterable[str], walker: Walker) -> None:
    """Raises UserError if each class is divided into splits, as in cat/train, cat/test.

    All its images would otherwise be for training.
    """
    roles, example = set(), ""
    for name in classes:
        folder = os.path.join(path, name)
        if not walker.has_images(folder):
            continue
        inner = [
            one
            for one in walker.scan(folder).folders
            if walker.has_images(os.path.join(folder, one))
        ]
        splits = [canonical(one) for one in inner if is_unmistakable(one)]
        loose = any(map(walker.is_image, walker.scan(folder).files))
        if loose or not splits or len(splits) < len(inner):
            return
        roles |= {role(split) for split in splits if split}
        example = example or os.path.join(name, inner[0])
    if len(roles) > 1:
        raise UserError(
            f"{path} has folders of splits inside those of classes, as in {example}. "
            "Expected folders of classes inside those of splits, as in train/CLASS and "
            "val/CLASS (links will do); or use a table. To train on all images, pass "
            f"data.splits=none {HOW_TO_SAY}."
        )


def _by_first_rules(path: str, walker: Walker) -> Division:
    folders = walker.scan(path).folders
    given = {
        split: (name,)
        for split in ("train", *EVALUATION_NAMES)
        for name in folders
        if name.lower() == split
    }
    divided = "train" in given and any(
        walker.scan(os.path.join(path, given["train"][0])).folders
    )
    if divided or (folders and len(given) == len(folders)):
        return Division(given)
    return UNDIVIDED


def _named(path: str, folders: Sequence[str], options: DataOptions) -> Division:
    """Takes the folders that `options.splits` names."""
    found: dict[str, list[str]] = {}
    missing = []
    for name, split in options.named_splits.items():
        below = "" if name == ROOT else os.path.normpath(name)
        if not os.path.isdir(os.path.join(path, below)):
            missing.append(name)
        found.setdefault(split, []).append(below)
    if missing:
        raise UserError(
            f"data.splits={options.splits!r}: {path} has no folder "
            f"{shortened(missing, repr)}; it has {shortened(folders, repr) or 'none'}"
        )
    used = {name.split(os.sep)[0] for some in found.values() for name in some if name}
    at_root = any("" in some for some in found.values())
    unused = [] if at_root else [name for name in folders if name not in used]
    remarks = (
        [f"not used, because data.splits does not name them: {shortened(unused, repr)}"]
        if unused
        else []
    )
    ordered = sorted(found, key=_preference)
    return Division(
        {split: found[split] for split in ordered},
        frozenset(used) if at_root else frozenset(),
        remarks=tuple(remarks),
    )


def _all_known(
    path: str, known: dict[str, str], divided: Sequence[str], empty: Sequence[str]
) -> Division:
    """Takes all folders for splits, because all names of those with images mean one.

    Args:
      path: the folder of the data set.
      known: folder → the split that its name means.
      divided: folders that hold folders of classes.
      empty: folders without images.
    """
    missed = {name: canonical(name) for name in empty if is_unmistakable(name)}
    # Listing these will be an error: what should be in them is needed.
    known |= {
        name: split for name, split in missed.items() if split and role(split) != "test"
    }
    # Images to be predicted, without classes, are of no use here, and no obstacle.
    unlabelled = {
        known[name]: name
        for name in known
        if divided and name not in divided and role(known[name]) == "test"
    }
    used = {
        name: split for name, split in known.items() if name not in unlabelled.values()
    }
    by_role: dict[str, list[str]] = {}
    for name, split in used.items():
        by_role.setdefault(role(split), []).append(name)
    for what, names in by_role.items():
        if len(names) > 1:
            found = f"several folders are for {what}: {shortened(names, repr)}"
            _stop(path, found, used)
    remarks = [
        f"{os.path.join(path, name)} has images, but no folders of classes: not used"
        for name in unlabelled.values()
    ]
    if ignored := [name for name in empty if name not in used]:
        remarks.append(f"folders without images: {shortened(ignored, repr)}")
    renamed = [
        f"{split} is {name!r}" for name, split in used.items() if name.lower() != split
    ]
    if renamed:
        remarks.insert(0, f"splits by the names of folders: {', '.join(renamed)}")
    ordered = sorted(used, key=lambda name: _preference(used[name]))
    return Division(
        {used[name]: (name,) for name in ordered},
        unlabelled=unlabelled,
        remarks=tuple(remarks),
    )


def _preference(split: str) -> int:
    """Orders splits: for training, then those for evaluation, the preferred first."""
    names = ("train", *EVALUATION_NAMES)
    return names.index(split) if split in names else len(names)


def _holds_classes(folder: str, walker: Walker) -> bool:
    """Returns whether a folder has folders with images, or files of known classes."""
    scanned = walker.scan(folder)
    return any(
        walker.has_images(os.path.join(folder, name)) for name in scanned.folders
    ) or any(imagenet.VALIDATION_FILE.fullmatch(file) for file in scanned.files)


def _stop(
    path: str, problem: str, names: Iterable[str], rest: bool = False
) -> NoReturn:
    """Raises UserError with the values of the key that would decide.

    Args:
      path: the folder of the data set.
      problem: what is wrong with its folders.
      names: folders to use in an example of the key.
      rest: whether the example also names the folder of the data set itself.
    """
    given: dict[str, str] = {"train": ROOT} if rest else {}
    for name in names:
        if split := canonical(name) or suggested(name):
            given.setdefault(role(split), name)
    example = ",".join(f"{split}={name}" for split, name in given.items())
    raise UserError(
        f"{path} is ambiguous: {problem}. Name the folders to use, as in "
        f"data.splits={example!r}, or pass data.splits={NO_SPLITS!r} if every folder "
        f"is a class {HOW_TO_SAY}. Nothing has to be renamed."
    )
