"""A quick check of a data set's contents, also against a published set.

It takes seconds: labels are read only if that is quick, and one image per split.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data.any_format import own_channels
from vit_jax.data.decode import DecodeError
from vit_jax.data.preprocessing import to_pixels
from vit_jax.data.sources import imagenet, tfds_sets
from vit_jax.data.sources.datasets import PRESETS, open_dataset
from vit_jax.data.sources.listings import ListedImages, Listing, NotForTraining
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.data.sources.protocol import Contents, DatasetInfo, Source
from vit_jax.data.sources.splits import count
from vit_jax.data.suspicious import suspicious
from vit_jax.errors import UserError, problems_of
from vit_jax.words import shortened

# Examples of the smallest class: (training, evaluation). ImageNet's classes have 732 to
# 1,300 training images (Russakovsky et al. 2015, table 2).
_SMALLEST = {
    "cifar10": (5_000, 1_000),
    "cifar100": (500, 100),
    "imagenet2012": (732, 50),
}

_SIZES_LOOKED_AT = 20_000  # files per split, which takes under a second on a disk


@dataclasses.dataclass(frozen=True)
class Report:
    """Findings of `check`.

    Attributes:
      dataset: as given.
      kind: one of `datasets.KINDS`.
      location: the path, or the name of a set that has none.
      num_examples: split → number of examples, for all splits and for the parts of
        splits that are used.
      held_out: see `DatasetInfo`.
      class_names: in the order of the labels.
      multi_label: whether an example may have any number of labels.
      class_counts: split → examples per class; leaves out splits without labels, whose
        labels would take long to read, or that have several labels per example.
      first: the first example of each split in use: name, height and width.
      used: split → what it is used for by default.
      left_out: reason → number of files that are not in the data set.
      remarks: sentences about how the data were understood.
      problems: everything that is wrong or missing.
    """

    dataset: str
    kind: str
    location: str
    num_examples: dict[str, int]
    held_out: bool
    class_names: tuple[str, ...]
    multi_label: bool
    class_counts: dict[str, np.ndarray]
    first: dict[str, tuple[str, int, int]]
    used: dict[str, str]
    left_out: dict[str, int]
    remarks: tuple[str, ...]
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        splits: dict[str, Any] = {}
        for split, number in self.num_examples.items():
            splits[split] = {"examples": number}
            if split in self.class_counts:
                splits[split] |= {
                    which: {"class": name, "examples": number}
                    for which, (name, number) in self.extremes(split).items()
                }
        for split, (name, height, width) in self.first.items():
            splits[split]["first"] = {"name": name, "height": height, "width": width}
        return {
            "dataset": self.dataset,
            "kind": self.kind,
            "place": self.location,
            "splits": splits,
            "used_for": self.used,
            "held_out": self.held_out,
            "classes": len(self.class_names),
            "class_names": list(self.class_names),
            "multi_label": self.multi_label,
            "left_out": self.left_out,
            "remarks": list(self.remarks),
            "problems": self.problems,
        }

    def extremes(self, split: str) -> dict[str, tuple[str, int]]:
        """Returns the smallest and the largest class of a split in `class_counts`."""
        counts = self.class_counts[split]
        return {
            which: (self.class_names[index], int(counts[index]))
            for which, index in (
                ("smallest", int(counts.argmin())),
                ("largest", int(counts.argmax())),
            )
        }


def check(
    dataset: str,
    data_dir: str = "",
    like: str = "",
    options: DataOptions = DEFAULT_OPTIONS,
) -> Report:
    """Counts the labels that are quick to read, and decodes one image per split.

    Args:
      dataset: see `open_dataset`.
      data_dir: where tensorflow-datasets stores data sets; "" = its default.
      like: a preset to compare with; "" = none.
      options: how its files are read.

    Raises:
      UserError: there is no such data set or preset, or it cannot be opened at all.
    """
    if like and like not in PRESETS:
        raise UserError(f"--like={like}: expected one of {', '.join(PRESETS)}")
    opened = open_dataset(dataset, data_dir, options)
    if opened.kind == "tensorflow-datasets":  # opening it would prepare it
        try:
            tfds_sets.check_prepared(opened.location, opened.data_dir)
        except UserError as error:
            raise UserError("\n".join((*opened.about_name, str(error)))) from None
    opened.announces = False  # the report has the remarks
    problems: list[str] = []
    try:
        contents = opened.contents
    except NotForTraining as error:
        problems += problems_of(error)
        contents = error.listing
    info = contents.info
    if problem := info.problems.get(info.eval_split):
        problems.append(str(problem))
        if isinstance(problem, NotForTraining):
            contents = problem.listing
            info = contents.info
    sources = {
        split: contents.split(split)
        for split in dict.fromkeys((info.train_split, info.eval_split))
        if split
    }
    counts = {
        split: np.bincount(source.labels(), minlength=info.num_classes)
        for split, source in sources.items()
        if info.num_classes
        and not (source.multi_label or getattr(source, "labels_take_long", False))
    }
    first = {}
    for split, source in sources.items():
        try:
            first[split] = _first(source, options.white_level)
        except DecodeError as error:
            problems += problems_of(error)
    if like:
        problems += _missing(info, counts, like)
    others = _other_splits(contents, sources)
    problems += _empty_files({**sources, **others})
    unreadable: list[str] = []
    signs = suspicious(
        sources, info.eval_split, options.white_level, unreadable, others
    )
    if more := sorted(set(unreadable) - set(problems)):
        problems.append(
            f"{len(more)} more of the sampled images cannot be read: "
            + shortened(more, most=5, separator="; ")
        )
    return Report(
        dataset=dataset,
        kind=opened.kind,
        location=opened.location,
        num_examples=info.num_examples
        | {split: len(source) for split, source in sources.items()},
        held_out=info.held_out,
        class_names=info.class_names or (),
        multi_label=info.multi_label,
        class_counts=counts,
        first=first,
        used={split: what for split, what in _uses(info) if split},
        left_out=dict(getattr(contents, "left_out", {})),
        remarks=(
            *opened.about_name,
            *getattr(contents, "remarks", ()),
            *(f"suspicious: {sign}" for sign in signs),
        ),
        problems=problems,
    )


def _uses(info: DatasetInfo) -> list[tuple[str, str]]:
    """Lists the default splits with what they are used for."""
    if not info.num_classes:
        return [(info.train_split, "training without labels")]
    part = f", held out of {info.train_split}" if info.held_out else ""
    return [
        (info.train_split, "training"),
        (info.eval_split, f"evaluation{part}"),
    ]


def _other_splits(contents: Contents, used: Mapping[str, Source]) -> dict[str, Source]:
    """Opens the splits of a folder or table that are not used by default."""
    if not isinstance(contents, Listing):
        return {}
    info = contents.info
    return {
        split: contents.split(split)
        for split in info.num_examples
        if split not in used and split not in info.problems
    }


def _empty_files(sources: Mapping[str, Source]) -> list[str]:
    """Counts image files of no bytes among the first of each split."""
    found = []
    for split, source in sources.items():
        if not isinstance(source, ListedImages):
            continue
        looked_at = min(len(source), _SIZES_LOOKED_AT)
        empty = [path for path in map(source.path, range(looked_at)) if _is_empty(path)]
        if empty:
            found.append(
                f"{split}: {len(empty):,} of the {looked_at:,} files looked at are "
                f"empty: {shortened(empty)}"
            )
    return found


def _is_empty(path: str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except OSError:  # it is reported when it is read
        return False


def _first(source: Source, white_level: float) -> tuple[str, int, int]:
    example = source[0]
    image = example.image
    if isinstance(image, bytes):
        image = to_pixels(image, own_channels(image), example.name, white_level)
    return example.name, image.shape[0], image.shape[1]


def _missing(info: DatasetInfo, counts: dict[str, np.ndarray], like: str) -> list[str]:
    """Lists how a data set differs from a preset, one sentence per difference."""
    preset = PRESETS[like]
    problems = _classes(info, preset)
    # (name for messages, the splits compared, the preset's split)
    sides = [(info.train_split, [info.train_split], preset.train_split)]
    if not info.train_split:
        sides = []
        problems.append(f"nothing to train on ({like} has {preset.train_split})")
    elif info.held_out:
        sides = [("all", [info.train_split, info.eval_split], preset.train_split)]
        problems.append(
            f"nothing to evaluate on ({like} has {preset.eval_split}): part of the "
            "training data is held out instead"
        )
    least_to_train, least_to_evaluate = _SMALLEST.get(like, (1, 1))
    sides = [(*side, least_to_train) for side in sides]
    if not info.held_out:
        split = info.eval_split
        sides.append((split, [split], preset.eval_split, least_to_evaluate))
    for side, splits, theirs, least in sides:
        found = sum(count(split, info.num_examples, info.name) for split in splits)
        expected = count(theirs, preset.num_examples, like)
        if found != expected:
            difference = f"{abs(found - expected):,}"
            problems.append(
                f"{side}: {found:,} examples, {difference} too "
                f"{'many' if found > expected else 'few'}; {like} has {expected:,}"
            )
        if info.class_names and all(split in counts for split in splits):
            numbers = np.sum([counts[split] for split in splits], axis=0)
            few = [
                f"{name} ({number})"
                for name, number in zip(info.class_names, numbers, strict=True)
                if number < least
            ]
            if few:
                problems.append(
                    f"{side}: {len(few):,} class(es) with fewer than {least} examples: "
                    f"{shortened(few)}"
                )
    return problems


def _classes(info: DatasetInfo, preset: DatasetInfo) -> list[str]:
    names = preset.class_names
    if preset.name == "imagenet2012":
        names = imagenet.class_names()
    if names is None or info.class_names is None:
        if info.num_classes == preset.num_classes:
            return []
        return [
            f"{info.num_classes:,} classes; {preset.name} has {preset.num_classes:,}"
        ]
    missing = [name for name in names if name not in set(info.class_names)]
    unknown = [name for name in info.class_names if name not in set(names)]
    return [
        f"{len(some):,} {what} class(es): {shortened(some)}"
        for what, some in (("missing", missing), ("unknown", unknown))
        if some
    ]
