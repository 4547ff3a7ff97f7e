"""The choice of the training data that are held out for evaluation."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data.hashing import stable_hash
from vit_jax.data.sources.options import FIRST_RULES
from vit_jax.words import shortened

Label = int | tuple[int, ...]


def held_out(
    paths: Sequence[str],
    labels: Sequence[Label],
    share: float,
    groups: Sequence[str] | None,
    rules: int,
) -> np.ndarray:
    """Chooses the examples to hold out; see `listings.hold_out` for the rules.

    Args:
      paths: of all examples.
      labels: of all examples.
      share: part of them to hold out, more than 0 and less than 1.
      groups: name of each example's group; "" = it is in none. None = no groups.
      rules: see `DataOptions`.

    Returns:
      bool [n]: whether an example is held out.
    """
    if rules == FIRST_RULES:
        return _by_first_rules(paths, labels, share)
    # What stays together: a group, or an image that is listed several times.
    names = list(paths)
    if groups is not None:
        names = [group or path for group, path in zip(groups, paths, strict=True)]
    unit_of = {name: unit for unit, name in enumerate(dict.fromkeys(names))}
    labels_of: list[set[int]] = [set() for _ in unit_of]
    for name, label in zip(names, labels, strict=True):
        labels_of[unit_of[name]].update(_several(label))
    draws = [_draw(name) for name in unit_of]
    chosen = np.array([draw < share for draw in draws], bool)
    if groups is None and all(len(those) == 1 for those in labels_of):
        _even_out(chosen, draws, labels_of, share)
    elif groups is None:
        _cover_classes(chosen, draws, labels_of)
    if groups is not None or any(isinstance(label, tuple) for label in labels):
        _fill_both_sides(chosen, draws)
    return chosen[[unit_of[name] for name in names]]


def uncovered(
    train: Iterable[Label], evaluation: Iterable[Label], class_names: Sequence[str]
) -> list[str]:
    """Lists the classes that a division leaves without examples on one side."""
    seen = _labels_in(train), _labels_in(evaluation)
    found = []
    for which, here, there in (("training", *seen), ("held-out", *seen[::-1])):
        missing = [class_names[label] for label in sorted(there - here)]
        if missing:
            found.append(
                f"{len(missing):,} class(es) without a {which} example: "
                f"{shortened(missing, repr)}"
            )
    return found


def _even_out(
    chosen: np.ndarray,
    draws: Sequence[float],
    labels_of: Sequence[set[int]],
    share: float,
) -> None:
    """Holds out at least one of each class, and from half to twice its share."""
    for those in _by_class(draws, labels_of).values():
        usual = share * len(those)
        least = max(1, math.floor(usual / 2))
        most = max(1, math.ceil(usual * 2))
        # Those that are held out come first.
        count = min(max(int(chosen[those].sum()), least), most, len(those) - 1)
        chosen[those[:count]], chosen[those[count:]] = True, False


def _by_class(
    draws: Sequence[float], labels_of: Sequence[set[int]]
) -> Mapping[int, list[int]]:
    """Returns class → its examples, the smallest draw first."""
    members: Mapping[int, list[int]] = collections.defaultdict(list)
    for unit in sorted(range(len(draws)), key=draws.__getitem__):
        for label in labels_of[unit]:
            members[label].append(unit)
    return members


def _cover_classes(
    chosen: np.ndarray, draws: Sequence[float], labels_of: Sequence[set[int]]
) -> None:
    """Moves examples so that each class has one in training, and then one held out."""
    members = _by_class(draws, labels_of)
    for those in members.values():
        if all(chosen[unit] for unit in those):
            chosen[those[-1]] = False
    in_training = {
        label: sum(not chosen[unit] for unit in those)
        for label, those in members.items()
    }
    for those in members.values():
        if any(chosen[unit] for unit in those):
            continue
        for unit in those:
            # An example with several labels may be the last one of another class.
            if all(in_training[label] > 1 for label in labels_of[unit]):
                chosen[unit] = True
                for label in labels_of[unit]:
                    in_training[label] -= 1
                break


def _fill_both_sides(chosen: np.ndarray, draws: Sequence[float]) -> None:
    """Holds out the smallest draw, or returns the largest, if a side is empty."""
    if len(draws) < 2:
        chosen[:] = False
    elif not chosen.any():
        chosen[np.argmin(draws)] = True
    elif chosen.all():
        chosen[np.argmax(draws)] = False


def _draw(name: str) -> float:
    """Returns a number in [0, 1) that depends on a name alone.

    It is not the hash that orders the files: slices of the training split would
    otherwise be cut exactly where the evaluation split ends.
    """
    return stable_hash("held out\n" + name) / 2**64


def _several(label: Label) -> Sequence[int]:
    return label if isinstance(label, tuple) else (label,)


def _labels_in(labels: Iterable[Label]) -> set[int]:
    return {one for label in labels for one in _several(label)}


def _by_first_rules(
    paths: Sequence[str], labels: Sequence[Label], share: float
) -> np.ndarray:
    """Holds out the examples with a small hash, also if that leaves a class without.

    If one side, or a class's training examples, would be empty, one example per class
    changes sides.
    """
    hashes = [stable_hash("held out\n" + path) for path in paths]
    chosen = {
        path for path, one in zip(paths, hashes, strict=True) if one < share * 2**64
    }
    of_class = collections.defaultdict(list)  # in the given order
    for path, label in zip(paths, labels, strict=True):
        of_class["any" if isinstance(label, tuple) else label].append(path)
    for members in of_class.values():
        if chosen.issuperset(members):
            chosen.discard(members[-1])
    if not chosen:
        chosen = {members[0] for members in of_class.values() if len(members) > 1}
    return np.array([path in chosen for path in paths], bool)
