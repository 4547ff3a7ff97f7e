"""Image folders as data sets: one folder per class, with or without splits."""

import collections
import dataclasses
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from vit_jax.data.sources import image_files, imagenet, kept_listings
from vit_jax.data.sources.folder_splits import (
    HOW_TO_SAY,
    Division,
    divide,
    parents,
)
from vit_jax.data.sources.image_files import EXTENSIONS, Walker
from vit_jax.data.sources.listings import (
    Entry,
    Files,
    Listing,
    NotForTraining,
    hold_out,
    left_without,
    mixed,
)
from vit_jax.data.sources.options import DEFAULT_OPTIONS, FIRST_RULES, DataOptions
from vit_jax.data.sources.protocol import in_order
from vit_jax.data.sources.split_names import role
from vit_jax.errors import UserError
from vit_jax.words import shortened

# Archives, which are easily forgotten beside what was unpacked of them.
_ARCHIVE = re.compile(r"(?i)\.(zip|7z|rar|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$")
LOOSE = "images outside the folders of classes"
_LAYOUTS = (
    "Expected one folder per class, FOLDER/<class>/*.jpg, or such folders in "
    "FOLDER/train and FOLDER/val (or test). Images end in "
    + ", ".join(EXTENSIONS)
    + "."
)
_NO_LABELS = (
    " Or have the images no labels? Then pass data.kind=unlabelled "
    "(--config.data.kind=unlabelled for a run that learns without them)."
)

# Class → its images, as paths relative to the data set's folder, with "/".
_Classes = dict[str, list[str]]


class Folder(Protocol):
    """A folder to be listed; `walker` knows which directories were looked into."""

    walker: Walker

    def listing(self) -> Listing:
        """Lists everything; raises UserError if that is impossible."""
        ...


def list_folder(
    path: str,
    options: DataOptions = DEFAULT_OPTIONS,
    make: Callable[[str, DataOptions], Folder] | None = None,
) -> Listing:
    """Finds the classes and images below `path`, or what another kind of folder has.

    `folder_splits.divide` decides which folders are splits. Without a training split
    the others can still be evaluated on; without one for evaluation, a part of the
    images is held out; see `hold_out`. Classes are in the order of `in_order`; their
    names are normalised (NFC), because file systems write accents differently. A large
    listing is cached; it is valid as long as no directory has changed.

    Args:
      path: the folder.
      options: how its files are read.
      make: makes another kind of folder, such as an `UnlabelledFolder`.

    Raises:
      UserError: there is no such folder, it is ambiguous, or it has no images; a
        `NotForTraining` if there is one class to train on, or nothing to hold out. A
        split for evaluation with classes that are not trained on is in
        `Listing.problems`.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise UserError(f"there is no folder {path}. {_LAYOUTS}")
    if not os.path.isdir(path):
        what = "not a folder, nor a table or arrays by its ending"
        remedy = "data.kind=table reads it as a table."
        if _ARCHIVE.search(path):
            what, remedy = "not a folder", "Unpack it, and name the folder."
        raise UserError(f"{path} is a file, {what}. {remedy} {_LAYOUTS}")
    if kept := kept_listings.load(path, options):
        return kept
    started, folder = time.time(), (make or _Folder)(path, options)
    try:
        listing = folder.listing()
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be listed: {error.strerror}. "
            "Make the folder readable."
        ) from error
    if not folder.walker.lost:  # what a link leads to may appear at any time
        kept_listings.keep(listing, options, folder.walker.modified, started)
    return listing


class _Folder:
    """The listing of one folder, while it is made."""

    def __init__(self, path: str, options: DataOptions):
        self.path, self.options = path, options
        self.walker = Walker(options.rules)
        self.left_out: collections.Counter[str] = collections.Counter()
        self.remarks: list[str] = []
        self.problems: dict[str, UserError] = {}
        self.untrainable = ""  # why no run can train on the images

    def listing(self) -> Listing:
        """Lists everything; see `list_folder`."""
        division = divide(self.path, self.walker, self.options)
        self.remarks += division.remarks
        found = {
            split: self._split(folders, division)
            for split, folders in division.folders.items()
        }
        self._count_around(division)
        trained = found.get("train")
        if trained is not None and len(trained) == 1:
            self.untrainable = self._one_class(next(iter(trained)), division)
        unlabelled = self._unlabelled(found, division)
        names = self._in_order(trained or set().union(*found.values()))
        unknown = {
            split: sorted(classes.keys() - set(names))
            for split, classes in found.items()
        }
        labelled = {
            split: classes
            for split, classes in found.items()
            if not unknown[split] and split not in unlabelled
        }
        evaluated = [split for split in found if split not in ("train", *unlabelled)]
        listing = self._made(names, labelled, evaluated)
        unknown = {
            split: those
            for split, those in unknown.items()
            if those and split not in unlabelled
        }
        if unknown:
            shown = {
                split: classes
                for split, classes in found.items()
                if split not in unlabelled
            }
            every = self._in_order(set().union(*shown.values()))
            problems = dict(self.problems)
            complete = self._made(every, shown, evaluated)
            complete = dataclasses.replace(complete, problems=problems)
            train = os.path.join(self.path, division.folders["train"][0])
            for split, those in unknown.items():
                where = os.path.join(self.path, division.folders[split][0])
                problem = (
                    f"{where} has classes that {train} does not have: "
                    f"{shortened(those, repr)}. Classes to train on: "
                    f"{shortened(names, repr)}. Give the folders the same names (links "
                    "will do), or name only the splits to use in data.splits "
                    f"{HOW_TO_SAY}."
                )
                self.problems[split] = NotForTraining(problem, complete)
                if split != listing.eval_split:  # nothing else would say it
                    listing = dataclasses.replace(
                        listing, remarks=(*listing.remarks, f"not used: {problem}")
                    )
        if self.untrainable:
            raise NotForTraining(self.untrainable, listing)
        return listing

    def _made(
        self,
        names: tuple[str, ...],
        found: Mapping[str, _Classes],
        evaluated: list[str],
    ) -> Listing:
        """Makes the listing of some splits, all of whose classes are in `names`."""
        entries = {
            split: mixed(
                Entry(file, label)
                for label, name in enumerate(names)
                for file in classes.get(name, ())
            )
            for split, classes in found.items()
        }
        remarks = list(self.remarks)
        if held_out := not evaluated:
            share, rules = self.options.hold_out, self.options.rules
            divided = hold_out(entries["train"], share, rules=rules)
            total = len(entries["train"])
            if held_out := bool(divided["val"]):
                entries |= divided
                remarks.append(
                    f"there is no folder for evaluation: {len(entries['val']):,} of "
                    f"{total:,} images are held out for it (data.hold_out={share:g})"
                )
                remarks += left_without(entries, names)
            else:
                self.untrainable = self.untrainable or (
                    f"{self.path} has {total} image(s), too few to hold one out for "
                    "evaluation. Add images, or put some into FOLDER/val."
                )
            evaluated = ["val" if held_out else "train"]
        return Listing(
            self.path,
            f"the folder {self.path}",
            names,
            {split: Files.of(listed) for split, listed in entries.items()},
            "train" if "train" in entries else "",
            evaluated[0],
            held_out=held_out,
            left_out=dict(self.left_out),
            remarks=tuple(remarks),
            problems=self.problems,
        )

    def _count_around(self, division: Division) -> None:
        """Counts what is beside the folders of splits, and beside those of classes."""
        used = {folder for some in division.folders.values() for folder in some}
        outer = {above for folder in used for above in parents(folder)} - used
        unused, packed = [], []
        for folder in ("", *sorted(outer)):
            scanned = self.walker.scan(os.path.join(self.path, folder))
            self._count(scanned, sum(map(self.walker.is_image, scanned.files)))
            packed += filter(_ARCHIVE.search, scanned.files)
            inner = [os.path.join(folder, name) for name in scanned.folders]
            if folder:
                unused += [one for one in inner if one not in used | outer]
        if unused:
            self.remarks.append(f"folders that are not used: {shortened(unused, repr)}")
        if packed:
            self.remarks.append(
                f"archives are not read: {shortened(packed, repr)}. If they hold "
                "images to be used, unpack them"
            )
        real: dict[str, str] = {}
        for folder in sorted(used):
            path = os.path.join(self.path, folder)
            if (other := real.setdefault(os.path.realpath(path), folder)) != folder:
                self.remarks.append(
                    f"{other!r} and {folder!r} are the same folder, so their images "
                    "are the same"
                )
        if lost := [os.path.relpath(one, self.path) for one in self.walker.lost]:
            self.remarks.append(f"{image_files.LOST}: {shortened(lost, repr)}")

    def _split(self, folders: Iterable[str], division: Division) -> _Classes:
        """Lists the classes in the folders of one split."""
        classes: _Classes = {}
        for folder in folders:
            for name, images in self._classes(folder, division.beside).items():
                classes.setdefault(name, []).extend(images)
        return classes

    def _classes(self, below: str, beside: frozenset[str]) -> _Classes:
        """Lists the classes in one folder."""
        folder = os.path.join(self.path, below) if below else self.path
        scanned = self.walker.scan(folder)
        folders = [
            name for name in scanned.folders if os.path.join(below, name) not in beside
        ]
        classes: _Classes = {}
        others: collections.Counter[str] = collections.Counter()
        without = []
        for name in folders:
            prefix = f"{below}/{name}/" if below else f"{name}/"
            found = self.walker.find(os.path.join(folder, name), prefix)
            others.update(found.left_out)
            if found.images:
                classes.setdefault(self._class_name(name), []).extend(found.images)
            else:
                without.append(name)
        loose = sum(map(self.walker.is_image, scanned.files))
        if not classes and below:
            classes = _imagenet_validation(below, scanned.files)
            loose -= sum(map(len, classes.values()))
        if not classes:
            others.update(scanned.left_out)
            for name in scanned.files:
                self.walker.sort_out(name, others)
            raise UserError(_nothing_in(folder, folders, loose, others, bool(below)))
        if without:
            shown = shortened(without, repr)
            self.remarks.append(
                f"folders without images in {folder}, left out: {shown}"
            )
        self.left_out.update(others)
        if below:
            self._count(scanned, loose)
        return classes

    @property
    def _first(self) -> bool:
        return self.options.rules == FIRST_RULES

    def _count(self, scanned: image_files.Scanned, loose: int) -> None:
        """Counts what is left out in a folder of folders: also its files."""
        self.left_out.update(scanned.left_out)
        if loose:
            self.left_out[LOOSE] += loose
        for name in scanned.files:
            self.walker.sort_out(name, self.left_out)

    def _class_name(self, folder: str) -> str:
        return folder if self._first else unicodedata.normalize("NFC", folder)

    def _in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        # Folders "0" … "11" were ordered as text by the first rules.
        return tuple(sorted(names)) if self._first else in_order(names)

    def _unlabelled(
        self, found: Mapping[str, _Classes], division: Division
    ) -> dict[str, str]:
        """Returns split → its folder, for splits whose images have no labels.

        Also those with all images in one folder that is no class of the training data,
        as test/images.
        """
        unlabelled = dict(division.unlabelled)
        trained = found.get("train", {})
        for split, classes in found.items():
            folder = division.folders[split][0]
            single = len(classes) == 1 and not classes.keys() & trained.keys()
            if role(split) == "test" and trained and single and not self._first:
                unlabelled[split] = folder
                self.remarks.append(
                    f"{os.path.join(self.path, folder)} has one folder, "
                    f"{next(iter(classes))!r}, which is not a class: not used"
                )
        for split, folder in unlabelled.items():
            self.problems[split] = UserError(
                f"{os.path.join(self.path, folder)} has no folders of classes, so its "
                f"images have no labels. {_LAYOUTS}"
            )
        return unlabelled

    def _one_class(self, name: str, division: Division) -> str:
        """Writes the error message for a single class to train on."""
        folder, inner = os.path.join(self.path, division.folders["train"][0]), [name]
        while len(inner) == 1 and os.path.isdir(os.path.join(folder, inner[0])):
            folder = os.path.join(folder, inner[0])
            inner = self.walker.scan(folder).folders
        hint = f" Or is {folder} the data set, with {shortened(inner, repr)}?"
        return (
            f"found one class ({name!r}) to train on in {self.path}, expected at least "
            f"two. {_LAYOUTS}{hint if len(inner) > 1 else _NO_LABELS}"
        )


def _nothing_in(
    folder: str,
    folders: list[str],
    loose: int,
    others: collections.Counter[str],
    is_split: bool,
) -> str:
    """Writes the error message for a folder without any class."""
    names = shortened(folders, repr)
    seen = f"{len(folders)} folder(s)" + (f" ({names})" if folders else "")
    if loose:
        seen += f" and {loose} image(s) outside the folders of classes"
    if others:
        seen += ", with " + ", ".join(
            f"{number} × {ending}" for ending, number in others.most_common(5)
        )
    hint = (
        " If this folder is not a split, name those that are in data.splits, or pass "
        f"data.splits=none if every folder is a class {HOW_TO_SAY}."
    )
    return (
        f"no images of any class in {folder}; found {seen}. {_LAYOUTS}"
        f"{hint if is_split else _NO_LABELS if loose else ''}"
    )


def _imagenet_validation(below: str, files: list[str]) -> _Classes:
    classes = collections.defaultdict(list)
    for file in files:
        if imagenet.VALIDATION_FILE.fullmatch(file):
            name = imagenet.validation_class(file)
            if name is None:
                raise UserError(
                    f"{below}/{file}: ImageNet has no file of this number. Remove it."
                )
            classes[name].append(f"{below}/{file}")
    return dict(classes)
