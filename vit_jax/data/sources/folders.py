"""Image folders as data sets: one folder per class, with or without splits."""

import collections
import logging
import os
import time

from vit_jax.data.formats import EXTENSIONS
from vit_jax.data.sources import imagenet, kept_listings
from vit_jax.data.sources.listings import (
    Entry,
    Files,
    Listing,
    UnknownClasses,
    hold_out,
    mixed,
)
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.split_names import EVALUATION_NAMES
from vit_jax.errors import UserError
from vit_jax.words import shortened

logger = logging.getLogger(__name__)

_LAYOUTS = (
    "Expected one folder per class, FOLDER/<class>/*.jpg, or such folders in "
    "FOLDER/train and FOLDER/val (or test). Images end in "
    + ", ".join(EXTENSIONS)
    + "."
)


def list_folder(path: str, options: DataOptions = DEFAULT_OPTIONS) -> Listing:
    """Finds the classes and images below `path`.

    If all folders are named like splits, in upper or lower case, they are splits;
    without a training split the others can still be evaluated on. Without a folder for
    evaluation, a tenth of the images is held out; see `hold_out`. A large listing is
    cached; it is valid as long as no directory has changed.

    Raises:
      UserError: there is no such folder, or it has no images, only one class to train
        on, or classes to evaluate on that are not trained on.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise UserError(f"there is no folder {path}. {_LAYOUTS}")
    if not os.path.isdir(path):
        raise UserError(f"{path} is a file, not a folder. {_LAYOUTS}")
    if kept := kept_listings.load(path):
        return kept
    started, scan = time.time(), _Scan()
    try:
        listing = _list(path, scan, options)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be listed: {error.strerror}. "
            "Make the folder readable."
        ) from error
    kept_listings.keep(listing, scan.modified, started)
    return listing


def _list(path: str, scan: "_Scan", options: DataOptions) -> Listing:
    folders, _ = scan(path)
    # Split → its folder, whose name may be Train or VAL.
    given = {
        split: name
        for split in ("train", *EVALUATION_NAMES)
        for name in folders
        if name.lower() == split
    }
    divided = "train" in given and scan(os.path.join(path, given["train"]))[0]
    if divided or (folders and len(given) == len(folders)):
        found = {split: _classes(path, given[split], scan) for split in given}
    else:
        found = {"train": _classes(path, "", scan)}
    names = tuple(sorted(found.get("train") or set().union(*found.values())))
    if len(names) == 1 and "train" in found:
        raise UserError(
            f"found one class ({names[0]!r}) to train on in {path}, expected at least "
            f"two. {_LAYOUTS}"
        )
    unknown = {split: sorted(set(of) - set(names)) for split, of in found.items()}
    names = tuple(sorted(set().union(*found.values())))
    entries = {
        split: mixed(
            Entry(file, label)
            for label, name in enumerate(names)
            for file in classes.get(name, ())
        )
        for split, classes in found.items()
    }
    if held_out := list(entries) == ["train"]:
        entries = hold_out(entries["train"], options.hold_out, rules=options.rules)
    if not all(entries.values()):
        raise UserError(
            f"{path} has {len(entries['train'])} image(s), too few to hold one out for "
            "evaluation. Add images, or put some into FOLDER/val."
        )
    files = {split: Files.of(listed) for split, listed in entries.items()}
    called = f"the folder {path}"
    train_split = "train" if "train" in files else ""
    eval_split = list(files)[bool(train_split)]
    listing = Listing(
        path, called, names, files, train_split, eval_split, held_out=held_out
    )
    train = os.path.join(path, given.get("train", ""))
    problems = [
        f"{os.path.join(path, given[split])} has classes that {train} does not have: "
        f"{shortened(classes, repr)}. Classes to train on: "
        f"{shortened(sorted(found['train']), repr)}. Give the folders the same names."
        for split, classes in unknown.items()
        if classes
    ]
    if problems:
        raise UnknownClasses("\n".join(problems), listing)
    return listing


def _classes(root: str, below: str, scan: "_Scan") -> dict[str, list[str]]:
    """Returns class → its images, as paths relative to `root`, with "/"."""
    folder = os.path.join(root, below)
    folders, files = scan(folder)
    classes, others, without = {}, collections.Counter(), []
    for name in folders:
        images = []
        prefix = f"{below}/{name}" if below else name
        for file in _walk(os.path.join(folder, name), prefix, scan):
            if file.lower().endswith(EXTENSIONS):
                images.append(file)
            else:
                others[os.path.splitext(file)[1].lower() or "no extension"] += 1
        if images:
            classes[name] = images
        else:
            without.append(name)
    if classes and without:
        endings = f" (not images: {', '.join(sorted(others))})" if others else ""
        names = shortened(without, repr)
        logger.warning(
            "folders without images in %s, left out: %s%s", folder, names, endings
        )
    if not classes and below:
        classes = _imagenet_validation(below, files)
    if not classes:
        loose = sum(file.lower().endswith(EXTENSIONS) for file in files)
        names = shortened(folders, repr)
        seen = f"{len(folders)} folder(s)" + (f" ({names})" if folders else "")
        if loose:
            seen += f" and {loose} image(s) outside the folders of classes"
        if others:
            seen += ", with " + ", ".join(
                f"{number} × {ending}" for ending, number in others.most_common(5)
            )
        where = folder.rstrip("/")
        raise UserError(f"no images of any class in {where}; found {seen}. {_LAYOUTS}")
    return classes


def _imagenet_validation(below: str, files: list[str]) -> dict[str, list[str]]:
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


def _walk(
    folder: str, prefix: str, scan: "_Scan", links: tuple[str, ...] = ()
) -> list[str]:
    """Lists all files below a folder, prefixed with `prefix`; no stat for files."""
    folders, files = scan(folder)
    found = [f"{prefix}/{name}" for name in files]
    for name in folders:
        path, followed = os.path.join(folder, name), links
        if os.path.islink(path):
            target = os.path.realpath(path)
            if target in links or f"{os.path.realpath(folder)}/".startswith(target):
                continue  # a link to a folder that contains it
            followed = (*links, target)
        found += _walk(path, f"{prefix}/{name}", scan, followed)
    return found


class _Scan:
    """A lister of directories that records when each was last modified.

    Attributes:
      modified: directory → modification time in ns, read before it was listed.
    """

    def __init__(self):
        self.modified: dict[str, int] = {}

    def __call__(self, folder: str) -> tuple[list[str], list[str]]:
        """Returns names of the folders and of the files, without hidden ones."""
        self.modified.setdefault(folder, os.stat(folder).st_mtime_ns)
        folders, files = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
        return sorted(folders), sorted(files)
