"""Class names that training scripts save in a file beside the weights."""

from collections.abc import Iterator, Sequence
from typing import Any

# Keys, without underscores and in lower case. mmpretrain has `classes` or `CLASSES` in
# its `meta`; `class_to_idx` is that of torchvision's ImageFolder.
_KEYS = {
    *("classes", "classnames", "classtoidx", "classtoindex", "idxtoclass", "labels"),
    *("labelnames", "label2id", "id2label", "labeltoidx", "idxtolabel", "categories"),
}
_DEEPEST = 3  # keys on the way to the names
_MOST = 1 << 17  # no head has so many classes


def find_class_names(saved: Any) -> list[tuple[str, ...]]:
    """Finds the lists of class names in a saved object, in the order of the outputs.

    Args:
      saved: what the file holds: dicts with texts as keys, lists and tuples.

    Returns:
      Each list once. Several contradict each other, or belong to several heads.
    """
    return list(dict.fromkeys(_visit(saved, 0)))


def _visit(node: Any, depth: int) -> Iterator[tuple[str, ...]]:
    if not isinstance(node, dict) or depth > _DEEPEST:
        return
    for key, value in node.items():
        if key.lower().replace("_", "") in _KEYS and (names := _names(value)):
            yield names
        else:
            yield from _visit(value, depth + 1)


def _names(value: Any) -> tuple[str, ...]:
    """Reads a list of names, or a table between names and numbers; () if it is none."""
    if not isinstance(value, list | tuple | dict) or not 0 < len(value) < _MOST:
        return ()
    if isinstance(value, dict):
        items = list(value.items())
        if all(type(number) is int for number in value.values()):
            items = [(number, name) for name, number in items]
        listed = _by_number(items)
    else:
        # A named tuple is something else, such as a tensor.
        listed = list(value) if type(value) in (list, tuple) else []
    return tuple(listed) if all(isinstance(name, str) for name in listed) else ()


def _by_number(items: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Returns the values for 0, 1, …; [] if a number is missing or there twice."""
    by_text = {str(number): name for number, name in items}
    numbers = [str(number) for number in range(len(items))]
    return [by_text[n] for n in numbers] if {*numbers} == by_text.keys() else []
