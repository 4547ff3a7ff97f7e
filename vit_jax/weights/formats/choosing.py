"""The choice of one model in a file that may hold several.

A model lies in an entry of a PyTorch file, behind a prefix of its names, or both. What
is taken is always said, and so are the others.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vit_jax.errors import UserError
from vit_jax.weights.files.entries import is_average, rank
from vit_jax.weights.files.tensors import Tensors
from vit_jax.weights.formats.layout import Format
from vit_jax.weights.formats.other_models import why_unknown
from vit_jax.weights.formats.prefixes import (
    find_prefixes,
    order,
    split,
    without_inner_wrappers,
)
from vit_jax.words import plain, shortened


class Candidate(NamedTuple):
    """A model in a file.

    Attributes:
      tensors: the tensors of its entry.
      prefix: the prefix of its names there, with the last separator.
      format: the format of its names without the prefix.
      entry: the keys of the entry, joined by "/".
    """

    tensors: Tensors
    prefix: str
    format: Format
    entry: str

    @property
    def parts(self) -> tuple[str, ...]:
        """All keys and parts of names that lead to the model."""
        return (*self.keys, *split(self.prefix))

    @property
    def keys(self) -> list[str]:
        """The keys of the entry."""
        return self.entry.split("/") if self.entry else []

    @property
    def name(self) -> str:
        """A name for messages, which also chooses it; "" for the file itself."""
        return "/".join(filter(None, (self.entry, ".".join(split(self.prefix)))))


def choose(
    tensors: Tensors, formats: Mapping[str, Format], entry: str = ""
) -> tuple[Candidate, list[Candidate]]:
    """Chooses the model in a file; also returns the others.

    Args:
      tensors: the opened file.
      formats: the known formats, in the order in which they are tried.
      entry: the name of an entry or prefix, or the beginning of it; "" = the usual one.

    Raises:
      UserError: no format recognises any names; there is no such entry; or several
        models may be meant (names them).
    """
    found = list(_candidates(tensors, formats))
    if not found:
        raise UserError(why_unknown(tensors, formats.values()))
    if entry:
        found = _named(found, entry, tensors)
    found.sort(key=lambda candidate: (rank(candidate.keys), order(candidate.prefix)))
    best, *others = found
    if rivals := [other for other in others if _is_rival(best, other)]:
        names = [plain(_shown(candidate)) for candidate in (best, *rivals)]
        raise UserError(
            f"{tensors.path} holds {len(names)} models: {shortened(names)}. Pass the "
            "name of one, as in vit_jax.load(…, entry=NAME), or append #entry=NAME to "
            "the path"
        )
    return best, others


def what_was_taken(best: Candidate, others: Sequence[Candidate]) -> str:
    """Describes the choice in a sentence; "" if the file is the model itself."""
    if not best.name and not others:
        return ""
    taken = "read the names without a prefix in the file"
    if best.name:
        taken = f"read the entry {plain(best.name)} of the file"
    if not others:
        return taken
    names = [plain(_shown(other)) for other in others]
    return (
        f"{taken}, which also has {shortened(names)}; entry=NAME, or #entry=NAME after "
        "the path, chooses another"
    )


def _candidates(tensors: Tensors, formats: Mapping[str, Format]) -> Iterator[Candidate]:
    for number, entry in enumerate(tensors.entries):
        try:
            opened = tensors.of(entry)
        except UserError:
            if number == 0:
                raise
            continue  # not a model, or one that cannot be read
        names = without_inner_wrappers(opened.specs)
        if names.keys() != opened.specs.keys():
            opened = opened.renamed(names)
        for format in formats.values():
            prefixes = [
                prefix
                for prefix in find_prefixes(opened.specs, format.anchors)
                if format.recognises([n for n in opened.specs if n.startswith(prefix)])
            ]
            if prefixes:
                yield from (Candidate(opened, p, format, entry) for p in prefixes)
                break


def _named(found: Sequence[Candidate], entry: str, tensors: Tensors) -> list[Candidate]:
    wanted = tuple(part for part in re.split("[/.]", entry) if part)
    chosen = [c for c in found if c.parts[: len(wanted)] == wanted] or [
        c
        for c in found
        if any(c.parts[i : i + len(wanted)] == wanted for i in range(len(c.parts)))
    ]
    if not chosen:
        names = [plain(_shown(candidate)) for candidate in found]
        raise UserError(
            f"{tensors.path} has no entry {entry!r} with a model; it has "
            f"{shortened(names)}. Pass one of these names, or none"
        )
    return chosen


def _is_rival(best: Candidate, other: Candidate) -> bool:
    """Returns whether the other model may be meant just as well."""
    mine, theirs = best.parts, other.parts
    shared = 0
    while shared < min(len(mine), len(theirs)) and mine[shared] == theirs[shared]:
        shared += 1
    mine, theirs = mine[shared:], theirs[shared:]
    if not mine or not theirs:
        return False
    if rank(mine[:1]) == rank(theirs[:1]):
        return True
    # A teacher of other sizes is not an average of the model beside it.
    return is_average(mine[0]) and _sizes(best) != _sizes(other)


def _sizes(candidate: Candidate) -> set[tuple[str, tuple[int, ...]]]:
    """Returns the shapes of the first layer and the blocks, by name."""
    specs = candidate.tensors.specs
    return {
        (name, spec.shape)
        for full, spec in specs.items()
        if full.startswith(candidate.prefix)
        and (name := full.removeprefix(candidate.prefix))
        and any(pattern.match(name) for pattern in candidate.format.anchors)
    }


def _shown(candidate: Candidate) -> str:
    return candidate.name or "(the names without a prefix)"
