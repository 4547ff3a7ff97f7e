"""Checks of a table's rows for contradictions and for what is suspicious."""

import collections
import posixpath
from collections.abc import Iterable, Sequence

from vit_jax.data.sources.tables.rows import Problems, TableRow
from vit_jax.words import quoted, shortened

_NO_VALUE = ("nan", "none", "null", "n/a", "<na>", "nat", "?", "undefined")


def contradictions(rows: Iterable[TableRow]) -> list[str]:
    """Returns a problem for each image that has different labels in different rows."""
    labels: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for row in rows:
        labels[_plain(row.path)][row.labels[0]] = None
    return [
        f"{path} has several labels: {shortened(list(some), quoted)}"
        for path, some in labels.items()
        if len(some) > 1
    ]


def add_contradictions(
    rows: Sequence[TableRow], problems: Problems, separator: str
) -> None:
    """Adds a problem for each image that is labelled differently in different rows."""
    found = contradictions(rows)
    for problem in found:
        problems.add(problem)
    if found:
        problems.hint(
            f"If an image may have several labels, write them in one row, as "
            f"'a{separator}b' in a column labels, or with a column of zeros and ones "
            "for each class."
        )


def repeated(rows: Iterable[TableRow]) -> list[str]:
    """Returns remarks about images that occur more than once."""
    splits: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        splits[_plain(row.path)].append(row.split)
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
    """Returns a remark if classes differ only in case or blanks."""
    alike = collections.defaultdict(list)
    for name in names:
        alike[" ".join(name.casefold().replace("_", " ").split())].append(name)
    found = [
        " and ".join(map(quoted, some)) for some in alike.values() if len(some) > 1
    ]
    if not found:
        return []
    return [f"classes that differ only in case or blanks: {shortened(found)}"]


def missing_values(names: Iterable[str]) -> list[str]:
    """Returns a remark if classes have names that programs write for no value."""
    found = [name for name in names if name.casefold() in _NO_VALUE]
    if not found:
        return []
    return [f"classes whose names may stand for no label: {shortened(found, repr)}"]


def unseparated(rows: Iterable[TableRow], separator: str) -> list[str]:
    """Returns a remark if labels seem to be separated by something else."""
    counts = collections.Counter()
    for row in rows:
        if len(row.labels) > 1:
            return []
        counts.update(mark for mark in ",;|" if row.labels and mark in row.labels[0])
    if not counts:
        return []
    mark, count = counts.most_common(1)[0]
    return [
        f"no cell of labels has the separator {separator!r}, but {count:,} have "
        f"{mark!r}: if it separates labels, set data.label_separator={mark!r}"
    ]


def _in(splits: Iterable[str]) -> str:
    return f"({', '.join(sorted(set(splits)))})"


def _plain(path: str) -> str:
    # Few paths need it, and it takes most of the time of a large table's checks.
    return posixpath.normpath(path) if "./" in path or "//" in path else path
