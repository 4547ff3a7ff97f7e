"""The split of each folder of a data set, by its name and by what is inside."""

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from vit_jax.data.sources import imagenet
from vit_jax.data.sources.image_files import Walker
from vit_jax.data.sources.not_classes import alike, named_as_parts, unwrapped
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
      beside: folders that are never classes, relative to the data set's, because they
        are splits or hold some.
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
    Folders that only wrap those of the classes, as train/images, are entered.

    Raises:
      UserError: several folders could be the same split; a folder would be left out; or
        names or contents look like those of splits or of parts and cannot be told from
        classes. The message names the key that decides.
    """
    if options.rules == FIRST_RULES and not options.splits:
        return _by_first_rules(path, walker)
    if options.splits.strip() == NO_SPLITS:
        return UNDIVIDED
    folders = walker.scan(path).folders
    if options.splits:
        return _named(path, walker, options)
    _check_links(path, walker)
    inside = {name: os.path.join(path, name) for name in folders}
    full = [name for name in folders if walker.has_images(inside[name])]
    divided = [name for name in full if _holds_classes(inside[name], walker)]
    known = {name: split for name in full if (split := canonical(name))}
    if known and len(known) == len(full):
        return _all_known(path, known, divided, walker)
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
                f"the folder {name!r} looks like a split, because it has folders with "
                f"the same names as those beside it: {shortened(unknown, repr)}",
                [name],
                rest=True,
            )
    _check_classes(path, full, walker)
    if not (like := [name for name in full if name in known]):
        return UNDIVIDED
    remark = (
        f"{shortened(like, repr)}: taken for classes like the folders beside them. If "
        f"they are splits, set data.splits {HOW_TO_SAY}"
    )
    return UNDIVIDED._replace(remarks=(remark,))


def parents(folder: str) -> list[str]:
    """Lists the folders between the data set's and one in it: "a/b/c" → "a", "a/b"."""
    parts = folder.split(os.sep)
    if parts[0] in ("", os.pardir):  # it is elsewhere
        return []
    return [os.sep.join(parts[:end]) for end in range(1, len(parts))]


def _check_links(path: str, walker: Walker) -> None:
    """Raises UserError if what should be a split is a link that leads nowhere."""
    lost = [os.path.basename(link) for link in walker.lost]
    if lost := [name for name in lost if canonical(name)]:
        raise UserError(
            f"{path} has links that look like splits, but lead nowhere: "
            f"{shortened(lost, repr)}. Make them lead to the images, remove them, or "
            f"name the folders to use in data.splits {HOW_TO_SAY}."
        )


def _check_classes(path: str, names: Sequence[str], walker: Walker) -> None:
    """Raises UserError if folders evidently are not, or need not be, classes."""
    _check_not_inverted(path, names, walker)
    same, inner = alike(path, names, walker)
    if 2 * len(same) > len(names):
        _stop(
            path,
            f"{shortened(same, repr)} hold folders of the same names "
            f"({shortened(inner, repr, most=4)}): the classes may be the outer or the "
            "inner ones",
            same,
        )
    if like := [name for name in same if canonical(name)]:
        _stop(
            path,
            f"{shortened(like, repr)} may be splits, because {shortened(same, repr)} "
            f"hold folders of the same names ({shortened(inner, repr, most=4)})",
            same,
        )
    if named_as_parts(names):
        raise UserError(
            f"{path} has no folder with the name of a class, only "
            f"{shortened(names, repr)}. Name the table that has the labels as the "
            f"dataset, or pass data.splits={NO_SPLITS!r} if every folder is a class "
            f"{HOW_TO_SAY}."
        )


def _check_not_inverted(path: str, full: Sequence[str], walker: Walker) -> None:
    """Raises UserError if each class is divided into splits, as in cat/train, cat/test.

    All its images would otherwise be for training.
    """
    if len(full) < 2:
        return
    roles, example = set(), ""
    for name in full:
        folder = os.path.join(path, name)
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


def _named(path: str, walker: Walker, options: DataOptions) -> Division:
    """Takes the folders that `options.splits` names."""
    folders = walker.scan(path).folders
    found: dict[str, list[str]] = {}
    missing = []
    for name, split in options.named_splits.items():
        below = "" if name == ROOT else os.path.normpath(name)
        if not os.path.isdir(os.path.join(path, below)):
            missing.append(name)
        elif below:
            below = unwrapped(path, below, walker)
        found.setdefault(split, []).append(below)
    if missing:
        raise UserError(
            f"data.splits={options.splits!r}: {path} has no folder "
            f"{shortened(missing, repr)}; it has {shortened(folders, repr) or 'none'}"
        )
    used = {name for some in found.values() for name in some}
    beside = (used | {above for name in used for above in parents(name)}) - {""}
    unused = [] if "" in used else [name for name in folders if name not in beside]
    remarks = (
        [f"not used, because data.splits does not name them: {shortened(unused, repr)}"]
        if unused
        else []
    )
    ordered = sorted(found, key=_preference)
    return Division(
        {split: found[split] for split in ordered},
        frozenset(beside),
        remarks=tuple(remarks),
    )


def _all_known(
    path: str, known: dict[str, str], divided: Sequence[str], walker: Walker
) -> Division:
    """Takes all folders for splits, because all names of those with images mean one.

    Args:
      path: the folder of the data set.
      known: folder → the split that its name means.
      divided: folders that hold folders of classes.
      walker: lists folders.
    """
    empty = [name for name in walker.scan(path).folders if name not in known]
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
        {used[name]: (unwrapped(path, name, walker),) for name in ordered},
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
    example = _example(names, {"train": ROOT} if rest else {})
    raise UserError(
        f"{path} is ambiguous: {problem}. Name the folders to use, as in "
        f"data.splits={example!r}, or pass data.splits={NO_SPLITS!r} if every folder "
        f"in it is a class {HOW_TO_SAY}. Nothing has to be renamed."
    )


def _example(names: Iterable[str], given: dict[str, str]) -> str:
    """Writes a value of `data.splits` with some of the names, each for one split.

    Args:
      names: folders, of which unknown ones are only used if nothing is for training.
      given: split → folder, which is part of the example.
    """
    unknown = []
    for name in names:
        if split := canonical(name) or suggested(name):
            given.setdefault(role(split), name)
        else:
            unknown.append(name)
    if unknown and "train" not in given:
        first, *others = unknown
        last = {"val": others[-1]} if others and not given else {}
        given = {"train": first, **given, **last}
    return ",".join(f"{split}={name}" for split, name in given.items())
