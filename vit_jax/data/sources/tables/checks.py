"""Checks of a table's rows for contradictions and for what is suspicious."""

import collections
import posixpath
import re
from collections.abc import Iterable, Sequence

from vit_jax.data.sources.tables.rows import Problems, TableRow
from vit_jax.words import quoted, shortened

_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+([.,]0*)?")
_FEW = 0.02  # share of rows that are exceptions
_NO_VALUE = ("nan", "none", "null", "n/a", "<na>", "nat", "?", "undefined")


def contradictions(rows: Iterable[TableRow], root: str) -> list[str]:
    """Returns a problem for each image that has different labels in different rows."""
    labels: dict[str, dict[tuple[str, ...], None]] = collections.defaultdict(dict)
    for row in rows:
        names = row.labels
        key = tuple(sorted(set(names)) if len(names) > 1 else names)
        labels[_plain(row.path, root)][key] = None
    found = []
    for path, some in labels.items():
        if len(some) < 2:
            continue
        if all(len(names) == 1 for names in some):
            shown = shortened([names[0] for names in some], quoted)
            found.append(f"{path} has several labels: {shown}")
        else:
            shown = shortened(["|".join(names) for names in some], quoted)
            found.append(f"{path} has different labels in different rows: {shown}")
    return found


def add_contradictions(
    rows: Sequence[TableRow], problems: Problems, separator: str, root: str
) -> None:
    """Adds a problem for each image that is labelled differently in different rows."""
    found = contradictions(rows, root)
    for problem in found:
        problems.add(problem)
    if found:
        problems.hint(
            f"If an image may have several labels, write them in one row, as "
            f"'a{separator}b' in a column labels, or with a column of zeros and ones "
            "for each class."
        )


def united(rows: list[TableRow], root: str) -> tuple[list[TableRow], list[str]]:
    """Unites rows that each give one of an image's several labels.

    Returns:
      The rows, and a remark if any were united.
    """
    of_image: dict[tuple[str, str], list[TableRow]] = collections.defaultdict(list)
    for row in rows:
        of_image[_plain(row.path, root), row.split].append(row)
    found, paths = [], []
    for (path, _), some in of_image.items():
        labels = list(dict.fromkeys(row.labels[0] for row in some if row.labels))
        if len(labels) < 2 or any(len(row.labels) != 1 for row in some):
            found += some
            continue
        weight = max(row.weight for row in some)
        found.append(some[0]._replace(labels=labels, weight=weight))
        paths.append(path)
    if not paths:
        return rows, []
    return found, [
        f"{len(paths):,} image(s) have one label in each of several rows, which are "
        f"united: {shortened(paths)}"
    ]


def add_vectors(rows: Sequence[TableRow], problems: Problems) -> None:
    """Adds a problem if all labels are lists of a zero or one for each class."""
    lengths = {len(row.labels) for row in rows}
    if len(rows) < 2 or len(lengths) != 1 or min(lengths) < 2:
        return
    if all(name in ("0", "1") for row in rows for name in row.labels):
        problems.add(
            f"labels are lists of {min(lengths)} zeros and ones, such as "
            f"{', '.join(rows[0].labels)}: expected the names, or the numbers, of the "
            "classes that an image has; or a column of zeros and ones for each class"
        )


def repeated(rows: Iterable[TableRow], root: str) -> list[str]:
    """Returns remarks about images that occur more than once."""
    splits: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        splits[_plain(row.path, root)].append(row.split)
    remarks = []
    shared = [path for path, some in splits.items() if len(set(some)) > 1]
    if shared:
        remarks.append(
            f"{len(shared):,} image(s) are in more than one split: "
            + shortened(
                [f"{path} ({', '.join(sorted(set(splits[path])))})" for path in shared]
            )
        )
    twice = [path for path, some in splits.items() if len(set(some)) < len(some)]
    if twice:
        remarks.append(
            f"{len(twice):,} image(s) occur in several rows of a split: "
            + shortened(twice)
        )
    return remarks


def shared_groups(rows: Iterable[TableRow]) -> list[str]:
    """Returns a remark if groups have images in more than one split."""
    splits: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.group:
            splits[row.group].add(row.split)
    shared = [group for group, some in splits.items() if len(some) > 1]
    if not shared:
        return []
    return [
        f"{len(shared):,} group(s) have images in more than one split: "
        + shortened(
            [f"{group} ({', '.join(sorted(splits[group]))})" for group in shared]
        )
    ]


def similar_names(names: Iterable[str]) -> list[str]:
    """Returns remarks if classes differ only in case, blanks or zeros in front."""
    alike = collections.defaultdict(list)
    for name in names:
        alike[" ".join(name.casefold().replace("_", " ").split())].append(name)
    equal = collections.defaultdict(list)
    for name in names:
        if name.isdecimal():
            equal[int(name)].append(name)
    return [
        f"classes that differ only in {what}: {shortened(found)}"
        for what, groups in (("case or blanks", alike), ("zeros in front", equal))
        if (
            found := [
                " and ".join(map(quoted, some))
                for some in groups.values()
                if len(some) > 1
            ]
        )
    ]


def nearly_exclusive(rows: Sequence[TableRow]) -> list[str]:
    """Returns a remark if only a few rows have no 1, or several, in their columns."""
    others = [row for row in rows if len(row.labels) != 1]
    if not 0 < len(others) <= _FEW * len(rows):
        return []
    shown = shortened([f"{row.path} ({len(row.labels)})" for row in others])
    return [
        f"an image may have any number of labels, only because of {len(others):,} of "
        f"{len(rows):,} rows, which have no 1 or several: {shown}"
    ]


def weighted(rows: Sequence[TableRow]) -> list[str]:
    """Returns a remark if the rows have different weights."""
    weights = {row.weight for row in rows}
    if len(weights) < 2:
        return []
    return [
        f"the column weight gives the weight of each example, from {min(weights):g} to "
        f"{max(weights):g}"
    ]


def amounts(names: Sequence[str]) -> list[str]:
    """Returns a remark if the classes are numbers with fractions, such as "0.37"."""
    if not names or not all(map(_NUMBER.fullmatch, names)):
        return []
    fractions = [name for name in names if not _WHOLE.fullmatch(name)]
    if not fractions:
        return []
    return [
        f"the labels are {len(names):,} different numbers with fractions, such as "
        f"{fractions[0]!r}: each is a class of its own, because amounts cannot be "
        "learnt from a table"
    ]


def missing_values(names: Sequence[str]) -> list[str]:
    """Returns a remark if classes have names that programs write for no value."""
    found = [name for name in names if name.casefold() in _NO_VALUE]
    if {"-1", "0"} <= set(names):
        found.append("-1")
    if not found:
        return []
    return [f"classes whose names may stand for no label: {shortened(found, repr)}"]


def unseparated(rows: Sequence[TableRow], separator: str) -> list[str]:
    """Returns a remark if labels seem to be separated by something else."""
    counts = collections.Counter()
    for row in rows:
        if len(row.labels) > 1:
            return []
        counts.update(mark for mark in ",;|" if row.labels and mark in row.labels[0])
    if not counts:
        count = _joined_by_blanks(rows)
        counts = collections.Counter({" ": count} if count else {})
    if not counts:
        return []
    mark, count = counts.most_common(1)[0]
    return [
        f"no cell of labels has the separator {separator!r}, but {count:,} have "
        f"{mark!r}: if it separates labels, set data.label_separator={mark!r}"
    ]


def _joined_by_blanks(rows: Sequence[TableRow]) -> int:
    """Counts the rows with several words, if these are evidently labels themselves.

    They are if most names of several words consist of words of other names.
    """
    names = {row.labels[0] for row in rows if row.labels}
    words = collections.Counter(word for name in names for word in set(name.split()))
    several = [name for name in names if " " in name]
    shared = [name for name in several if all(words[word] > 1 for word in name.split())]
    if len(several) < 2 or 2 * len(shared) < len(several):
        return 0
    return sum(bool(row.labels) and " " in row.labels[0] for row in rows)


def _plain(path: str, root: str) -> str:
    # Few paths need it, and it takes most of the time of a large table's checks.
    if path.startswith("/"):
        return posixpath.relpath(path, root)
    return posixpath.normpath(path) if "./" in path or "//" in path else path
