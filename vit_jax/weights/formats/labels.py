"""Class names in companion files: read in the order of the outputs, and checked."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.weights.formats.companion import TABLE, entry
from vit_jax.words import quoted, shortened

# The class names, () if unknown, and one sentence per assumption.
Names = tuple[tuple[str, ...], list[str]]


def from_tables(config: Mapping[str, Any], num_classes: int) -> Names:
    """Reads the tables `id2label` and `label2id` of transformers' config.json."""
    table = entry(config, "id2label", TABLE, {})
    inverse = entry(config, "label2id", TABLE, {})
    if not num_classes:
        return (), []
    if not table:
        table = {str(index): name for name, index in inverse.items()}
    if not table:
        return (), []
    names = [table.get(str(index)) for index in range(num_classes)]
    if len(table) != num_classes or None in names:
        named = sum(isinstance(name, str) for name in names)
        return (), [
            f"config.json has {len(table)} labels (id2label), {named} of them for the "
            f"{num_classes} outputs of the head, which are numbered from 0: ignored "
            "the labels"
        ]
    if not all(isinstance(name, str) for name in names):
        return (), ["the labels in config.json (id2label) are not texts: ignored them"]
    texts = tuple(map(str, names))
    if _are_placeholders(texts):
        return (), []
    return texts, [*_repeated(texts), *_contradictions(texts, inverse)]


def from_list(names: Sequence[str] | Mapping[str, str], num_classes: int) -> Names:
    """Reads timm's `label_names`: a list, or a table from the output's number."""
    if not names or not num_classes:
        return (), []
    listed = _by_number(names) if isinstance(names, Mapping) else list(names)
    if listed is None or len(listed) != num_classes:
        return (), [
            f"the companion file names {len(names)} classes, but the head has "
            f"{num_classes}: ignored the names"
        ]
    texts = tuple(listed)
    return ((), []) if _are_placeholders(texts) else (texts, _repeated(texts))


def from_saved(lists: Sequence[Sequence[str]], num_classes: int) -> Names:
    """Reads the class names that lie in a PyTorch file beside the weights.

    Args:
      lists: all that were found.
      num_classes: number of the head's outputs.
    """
    if not lists or not num_classes:
        return (), []
    fitting = [names for names in lists if len(names) == num_classes]
    if len(fitting) == 1:
        return from_list(fitting[0], num_classes)
    if fitting:
        return (), [
            f"the file names the {num_classes} classes in {len(fitting)} different "
            "ways: ignored the names"
        ]
    return (), [
        f"the file names {len(lists[0])} classes, but the head has {num_classes}: "
        "ignored the names"
    ]


def _by_number(table: Mapping[str, str]) -> list[str] | None:
    """Returns the names of outputs 0, 1, …; None if some have no name."""
    names = [table.get(str(index)) for index in range(len(table))]
    return None if None in names else [str(name) for name in names]


def _are_placeholders(names: Sequence[str]) -> bool:
    """Returns whether all names are those that transformers gives to unnamed classes.

    It writes them to its own config.json and to timm's.
    """
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def _repeated(names: Iterable[str]) -> list[str]:
    """Reports names that several outputs have, in a sentence."""
    counts = Counter(names)
    if several := [name for name, count in counts.items() if count > 1]:
        return [
            "several outputs have the same class name, so they can be told apart only "
            f"by their number: {shortened(several, quoted)}"
        ]
    return []


def _contradictions(names: Sequence[str], inverse: Mapping[str, Any]) -> list[str]:
    """Reports where `label2id` gives another output to a name, in a sentence."""
    outputs: dict[str, set[int]] = {}
    for index, name in enumerate(names):
        outputs.setdefault(name, set()).add(index)
    if wrong := [
        name
        for name, index in inverse.items()
        # Transformers may have left its placeholders here.
        if name != f"LABEL_{index}" and index not in outputs.get(name, ())
    ]:
        return [
            "label2id and id2label in config.json contradict each other about "
            f"{shortened(wrong, quoted)}: used id2label, from which transformers names "
            "its predictions"
        ]
    return []
