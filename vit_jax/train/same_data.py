"""The check that a run continues with the data that it was trained on so far.

Data may have moved: the names of the classes, the numbers of examples and a fingerprint
of each split identify them, wherever they are.
"""

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from vit_jax.checkpoints.description import Description
from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError
from vit_jax.train.setup import Setup
from vit_jax.words import shortened

logger = logging.getLogger(__name__)

_FEW = 10  # classes, which a message lists


class DataFacts(NamedTuple):
    """The facts by which a run recognises its data.

    Attributes:
      class_names: () if the model has no outputs for classes.
      examples: split → number of examples.
      fingerprints: split → `Source.fingerprint`.
    """

    class_names: tuple[str, ...]
    examples: dict[str, int]
    fingerprints: dict[str, dict[str, str]]


def data_facts(setup: Setup, train: Source, held_out: Source) -> DataFacts:
    """Collects the facts of a run's training and evaluation examples."""
    splits = {setup.info.train_split: train, setup.info.eval_split: held_out}
    return DataFacts(
        tuple(train.class_names) if setup.architecture.num_classes else (),
        {name: len(source) for name, source in splits.items()},
        {name: source.fingerprint() for name, source in splits.items()},
    )


def check_same_data(
    dataset: str,
    facts: DataFacts,
    earlier: Description,
    read_otherwise: Sequence[str] = (),
) -> bool:
    """Checks that these are the data that the run was trained on so far.

    Args:
      dataset: where the data are now.
      facts: what they are now.
      earlier: description of the checkpoint that the run resumes from.
      read_otherwise: keys by which data are read that have other values than in the
        run, with both values. They are the likely reason for any difference.

    Returns:
      Whether the run may continue if the data were somewhere else before.

    Raises:
      UserError: they are other data; lists everything that differs.
    """
    before = earlier.config["dataset"]
    moved = f" (before: {before})" if before != dataset else ""
    if different := _differences(facts, earlier):
        if read_otherwise:
            link = ""
            if any(one.startswith("data.image_root:") for one in read_otherwise):
                link = ". If the images have moved, put a link to them at the old place"
            raise UserError(
                f"{dataset}{moved} has {'; '.join(different)}. It is not read as "
                f"before (there → here: {', '.join(read_otherwise)}): to continue that "
                f"run, pass its values; to start this one, pass another --workdir{link}"
            )
        end = ""
        if moved and any("paths" in one for one in different):
            end = (
                ". (Where a table has absolute paths, make them relative before the "
                "run begins: then its images may move.)"
            )
        raise UserError(
            f"{dataset}{moved} has {'; '.join(different)}: with other data it cannot "
            f"be the same run. Restore the data, or pass another --workdir{end}"
        )
    if not moved or facts.fingerprints == earlier.fingerprints:
        return True
    # An earlier version began this run, and recorded no fingerprint.
    same_name = os.path.basename(before) == os.path.basename(dataset)
    classes_known = earlier.class_names or not facts.class_names
    if not (same_name and classes_known and earlier.examples):
        return False
    logger.warning(
        "the data were at %s and are now at %s: classes and numbers of examples are "
        "those of the run, but the version that began it did not record which images "
        "and labels these were; make sure that they are the same",
        before,
        dataset,
    )
    return True


def _differences(facts: DataFacts, earlier: Description) -> list[str]:
    """Lists what the data have, where it differs from what the run recorded."""
    found = []
    now, then = facts.class_names, earlier.class_names
    if now and now != then:
        found.append(
            f"the classes {_classes(now, then)}, but the run so far was trained on "
            f"{_classes(then, now)}"
        )
    if earlier.examples and earlier.examples != facts.examples:
        found.append(
            f"{_counted(facts.examples)} examples, but the run so far had "
            f"{_counted(earlier.examples)}"
        )
    if found:  # then their lists differ too
        return found
    for split, digests in facts.fingerprints.items():
        recorded = earlier.fingerprints.get(split, digests)
        other = [
            name
            for name in {**recorded, **digests}
            if recorded.get(name) != digests.get(name)
        ]
        if other:
            found.append(f"other {' and '.join(other)} in {split} than the run so far")
    return found


def _classes(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Writes classes; of many, only those that are not among the others."""
    known = set(others)
    only = [name for name in names if name not in known]
    if len(names) <= _FEW or not only:
        return shortened(names)
    return f"{shortened(only)} (and {len(names) - len(only)} others)"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())
