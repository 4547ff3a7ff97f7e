"""Resolution of split expressions such as "train[:98%]" or "train+test"."""

import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np

from vit_jax.errors import UserError


def resolve(
    spec: str, num_examples: Mapping[str, int], dataset: str
) -> list[tuple[str, range]]:
    """Returns the parts that `spec` joins, as (name of a split, positions in it).

    The notation is that of tensorflow-datasets, which parses it.

    Raises:
      UserError: a split is unknown, a slice is malformed, or no example is selected.
    """
    if spec in num_examples:  # the common case needs no tensorflow-datasets
        return [(spec, range(num_examples[spec]))]
    import tensorflow_datasets as tfds

    known = {
        name: SimpleNamespace(num_examples=count, shard_lengths=[count])
        for name, count in num_examples.items()
    }
    listed = ", ".join(f"{name} ({count:,})" for name, count in num_examples.items())
    help_text = (
        f"{dataset} has the splits {listed}. Name one of them, a part of one such as "
        "'train[:98%]' or 'train[100:]', or several joined by '+'."
    )
    try:
        instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(known)
        parts = [
            (part.splitname, range(num_examples[part.splitname])[part.from_ : part.to])
            for part in instructions
        ]
    except (ValueError, AssertionError):
        raise UserError(f"split {spec!r} cannot be read. {help_text}") from None
    if not any(len(positions) for _, positions in parts):
        raise UserError(f"split {spec!r} selects no example. {help_text}")
    return parts


def check(spec: str, problems: Mapping[str, UserError]) -> None:
    """Raises the problem of a split that `spec` names, if there is one.

    Args:
      spec: a split expression.
      problems: split → why it cannot be used.
    """
    if problem := problem_of(spec, problems):
        raise problem


def problem_of(spec: str, problems: Mapping[str, UserError]) -> UserError | None:
    """Returns the problem that `check` raises; None if there is none."""
    for split, problem in problems.items():
        if re.search(rf"(?<!\w){re.escape(split)}(?!\w)", spec):
            return problem
    return None


class Parts:
    """The examples of a split expression: a sequence of (name of a split, position)."""

    def __init__(self, spec: str, num_examples: Mapping[str, int], dataset: str):
        """Resolves `spec`; for arguments and errors see `resolve`."""
        self._parts = resolve(spec, num_examples, dataset)

    def __iter__(self) -> Iterator[tuple[str, slice]]:
        """Yields the name of each split that it selects from, and what it selects."""
        for name, part in self._parts:
            yield name, slice(part.start, part.stop)

    @property
    def names(self) -> list[str]:
        """Names of the splits that it selects from."""
        return [name for name, _ in self._parts]

    def __len__(self) -> int:
        return sum(len(positions) for _, positions in self._parts)

    def __getitem__(self, index: int) -> tuple[str, int]:
        index = range(len(self))[index]
        for name, positions in self._parts:
            if index < len(positions):
                return name, positions[index]
            index -= len(positions)
        raise IndexError(index)

    def gather(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the selected elements of arrays, one array per split."""
        return np.concatenate([columns[name][part] for name, part in self])


def common(spec: str, other: str, num_examples: Mapping[str, int], dataset: str) -> int:
    """Counts the examples that two expressions have in common; see `resolve`."""
    first, second = (resolve(one, num_examples, dataset) for one in (spec, other))
    return sum(
        len(range(max(here.start, there.start), min(here.stop, there.stop)))
        for part, here in first
        for name, there in second
        if part == name
    )


def count(spec: str, num_examples: Mapping[str, int], dataset: str) -> int:
    """Counts the examples that `spec` selects; see `resolve`."""
    return sum(len(part) for _, part in resolve(spec, num_examples, dataset))
