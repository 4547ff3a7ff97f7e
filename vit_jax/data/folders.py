"""Image folders as data sets: one folder a class, with or without given splits."""

import collections
import dataclasses
import os

from vit_jax.data import splits
from vit_jax.data.examples import DatasetInfo, Example
from vit_jax.data.preprocessing import read_file
from vit_jax.data.stable import stable_hash
from vit_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EVALUATION_NAMES = ("val", "valid", "validation", "test")
HELD_OUT = 0.1  # of the images, where the folder does not say what to evaluate on

_LAYOUTS = (
    "Expected one folder a class, FOLDER/<class>/*.jpg, or the same below FOLDER/train "
    "and FOLDER/val (or test). Images end in " + ", ".join(EXTENSIONS) + "."
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
      path: the folder.
      class_names: sorted.
      files: split → (path relative to the folder, label), in an order that mixes the
        classes and depends on nothing but the paths, so that a slice of a split is a
        fair sample.
      train_split, eval_split: what to train and evaluate on unless told otherwise.
    """

    path: str
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    train_split: str
    eval_split: str

    @property
    def num_examples(self) -> dict[str, int]:
        return {name: len(files) for name, files in self.files.items()}


def describe(place: str, _data_dir: str = "") -> DatasetInfo:
    listing = list_folder(place)
    return DatasetInfo(
        place,
        len(listing.class_names),
        listing.num_examples,
        listing.class_names,
        listing.train_split,
        listing.eval_split,
    )


def open_split(place: str, split: str, _data_dir: str = "") -> "ImageFolder":
    return ImageFolder(list_folder(place), split)


class ImageFolder:
    """One split of a listed folder; files are read when an example is asked for."""

    multi_label = False

    def __init__(self, listing: Listing, split: str):
        self._path = listing.path
        self.class_names = listing.class_names
        parts = splits.resolve(split, listing.num_examples, f"the folder {self._path}")
        self._files = [
            listing.files[name][position]
            for name, positions in parts
            for position in positions
        ]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        relative, label = self._files[index]
        path = os.path.join(self._path, relative)
        return Example(read_file(path), label, path)


def list_folder(path: str) -> Listing:
    """Finds classes and images below `path`.

    Without a folder for evaluation, a tenth of the images is held out by a hash of
    each one's path: adding or removing files never moves another one to the other
    side. (Only where a whole side or a class's training images would be missing, in
    very small folders, one image a class changes sides.)

    Raises:
      UserError: nothing there, no images, one class, or classes to evaluate on that
        are not trained on.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise UserError(f"there is no folder {path}. {_LAYOUTS}")
    if not os.path.isdir(path):
        raise UserError(f"{path} is a file, not a folder. {_LAYOUTS}")
    try:
        return _list(path)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be listed: {error.strerror}. "
            "Make the folder readable."
        ) from error


def _list(path: str) -> Listing:
    folders, _ = _scan(path)
    if "train" in folders and _scan(os.path.join(path, "train"))[0]:
        found = {"train": _classes(path, "train")}
        for name in EVALUATION_NAMES:
            if name in folders:
                found[name] = _classes(path, name)
    else:
        found = {"train": _classes(path, "")}
    names = tuple(sorted(found["train"]))
    if len(names) == 1:
        raise UserError(
            f"found one class ({names[0]!r}) to train on in {path}, expected at least "
            f"two. {_LAYOUTS}"
        )
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(names))
        if unknown:
            raise UserError(
                f"{os.path.join(path, split)} has classes that "
                f"{os.path.join(path, 'train')} has not: {_some(unknown)}. "
                f"Classes to train on: {_some(names)}. Name the folders alike."
            )
    files = {
        split: sorted(
            (
                (file, label)
                for label, name in enumerate(names)
                for file in classes.get(name, ())
            ),
            key=lambda entry: stable_hash(entry[0]),
        )
        for split, classes in found.items()
    }
    if len(files) == 1:
        files = _hold_out(files["train"])
    if not all(files.values()):
        raise UserError(
            f"{path} has {len(files['train'])} image(s), too few to hold one out for "
            "evaluation. Add images, or put some below FOLDER/val."
        )
    return Listing(path, names, files, "train", list(files)[1])


def _hold_out(files: list[tuple[str, int]]) -> dict[str, list[tuple[str, int]]]:
    held_out = {file for file, _ in files if _held_out(file)}
    of_class = collections.defaultdict(list)  # each in the order of the hash
    for file, label in files:
        of_class[label].append(file)
    for members in of_class.values():
        if held_out.issuperset(members):
            held_out.discard(members[-1])
    if not held_out:
        held_out = {members[0] for members in of_class.values() if len(members) > 1}
    return {
        "train": [entry for entry in files if entry[0] not in held_out],
        "val": [entry for entry in files if entry[0] in held_out],
    }


def _held_out(file: str) -> bool:
    # Not the hash that orders the files: a slice of the training split would
    # otherwise be cut at the very place where the evaluation split ends.
    return stable_hash("held out\n" + file) < HELD_OUT * 2**64


def _classes(root: str, below: str) -> dict[str, list[str]]:
    """Class → its images, as paths relative to `root` written with "/"."""
    folder = os.path.join(root, below)
    folders, files = _scan(folder)
    classes, others = {}, collections.Counter()
    for name in folders:
        images = []
        prefix = f"{below}/{name}" if below else name
        for file in _walk(os.path.join(folder, name), prefix):
            if file.lower().endswith(EXTENSIONS):
                images.append(file)
            else:
                others[os.path.splitext(file)[1].lower() or "no extension"] += 1
        if images:
            classes[name] = images
    if not classes:
        loose = sum(file.lower().endswith(EXTENSIONS) for file in files)
        seen = f"{len(folders)} folder(s)" + (f" ({_some(folders)})" if folders else "")
        if loose:
            seen += f" and {loose} image(s) that are in no class's folder"
        if others:
            seen += ", with " + ", ".join(
                f"{number} × {ending}" for ending, number in others.most_common(5)
            )
        where = folder.rstrip("/")
        raise UserError(f"no images of any class in {where}: found {seen}. {_LAYOUTS}")
    return classes


def _walk(folder: str, prefix: str, links: tuple[str, ...] = ()) -> list[str]:
    """All files below, their names led by `prefix`; nothing else is asked of them."""
    folders, files = _scan(folder)
    found = [f"{prefix}/{name}" for name in files]
    for name in folders:
        path, followed = os.path.join(folder, name), links
        if os.path.islink(path):
            target = os.path.realpath(path)
            if target in links or f"{os.path.realpath(folder)}/".startswith(target):
                continue  # a link into itself
            followed = (*links, target)
        found += _walk(path, f"{prefix}/{name}", followed)
    return found


def _scan(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files, hidden ones left out."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), files


def _some(names) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" … ({len(names):,} in all)" if len(names) > 5 else "")
