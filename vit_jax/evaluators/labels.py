"""The labels of evaluation data as outputs of the model, matched by class name."""

import logging
from collections.abc import Sequence

from vit_jax.data.sources.class_names import Relabelled, match_names
from vit_jax.data.sources.protocol import Source, in_order
from vit_jax.errors import UserError
from vit_jax.evaluators.protocol import Subject
from vit_jax.models.outputs import INDEPENDENT
from vit_jax.words import did_you_mean, either, shortened

logger = logging.getLogger(__name__)

# Values of the option `classes`: how labels find their outputs.
BY_NAME = "names"  # by name; a class that the model does not know is an error
KNOWN = "known"  # by name; images of classes that the model does not know are left out
BY_ORDER = "order"  # class i of the data is output i, whatever the names
CHOICES = (BY_NAME, KNOWN, BY_ORDER)


def by_output(source: Source, subject: Subject, classes: str = BY_NAME) -> Source:
    """Relabels data by the outputs of a model; logs what is not self-evident.

    A part of the model's classes, in any order, is enough. If the names of either side
    are unknown, the order is assumed to be the same.

    Args:
      source: the data.
      subject: the model.
      classes: one of `CHOICES`.

    Raises:
      UserError: the model has no head, the data have classes that it does not know, or
        the order would have to be assumed and the numbers of classes differ.
    """
    if classes not in CHOICES:
        raise UserError(f"classes={classes!r}: choose {either(CHOICES)}")
    outputs = subject.architecture.num_classes
    if not outputs:
        raise UserError(
            "the model has no head, so it predicts no classes: fine-tune it "
            "(--config.pretrained=…), or measure its features with the evaluator knn"
        )
    known = subject.class_names if len(subject.class_names) == outputs else ()
    found = tuple(source.class_names or ())
    by_name = bool(known and found) and classes != BY_ORDER
    if outputs == 1 and subject.outputs == INDEPENDENT:
        return _yes_or_no(source, found, known if by_name else ())
    if not by_name:
        return _in_order(source, found, known, outputs)
    places = match_names(found, known)
    unknown = [name for name, place in zip(found, places, strict=True) if place < 0]
    if unknown and (classes == BY_NAME or len(unknown) == len(found)):
        raise _different(found, known, unknown)
    if places == list(range(outputs)):
        return source
    relabelled = Relabelled(source, places, known, outputs)
    if unknown:
        what = "their labels are" if source.multi_label else "their images are"
        count = "" if source.multi_label else f" ({relabelled.left_out:,})"
        logger.warning(
            "classes that the model does not know: %s; %s left out%s",
            *(shortened(unknown), what, count),
        )
    if (seen := len(found) - len(unknown)) < outputs:
        logger.info(
            "the data have %d of the model's %d classes: a prediction of any other "
            "class is wrong",
            *(seen, outputs),
        )
    return relabelled


def _in_order(
    source: Source, found: Sequence[str], known: Sequence[str], outputs: int
) -> Source:
    """Returns the source, whose classes are taken for the outputs in their order."""
    if source.num_classes != outputs:
        whose = "the model" if found and not known else "the data or the model"
        raise UserError(
            f"the data have different classes from the model: {source.num_classes:,} "
            f"in the data, {outputs:,} in the model. The class names of {whose} are "
            "unknown or ignored, so a part of the classes cannot be told from others. "
            "Pass data with exactly the model's classes"
        )
    if known and found:
        if tuple(known) != tuple(found):
            logger.warning("class names are ignored: %s", _pairs(known, found))
    elif found:
        logger.warning(
            "the model's class names are unknown: %s", _pairs(range(outputs), found)
        )
    else:
        logger.warning(
            "the class names of the data are unknown: %s",
            _pairs(range(outputs), known or range(outputs)),
        )
    return source


def _pairs(outputs: Sequence[object], classes: Sequence[object]) -> str:
    """Writes which output is taken for which class, as far as a line allows."""
    pairs = [
        f"{output} is taken for {name!r}"
        for output, name in zip(outputs, classes, strict=True)
    ]
    return f"output {shortened(pairs, most=3)}"


def _yes_or_no(source: Source, found: Sequence[str], known: Sequence[str]) -> Source:
    """Relabels data for a model with a single output, a yes or no.

    Without names, the yes is the second of two classes, as where 1 means yes.
    """
    classes = source.num_classes
    yes = match_names(known, found)[0] if known else classes - 1
    if yes < 0:
        raise _different(found, known, found)
    if classes == 1:
        if not known and found:
            logger.warning("the model's one output is taken for %r", found[0])
        return source
    if not known and (classes > 2 or source.multi_label):
        raise UserError(
            f"the model has one output, a yes or no, and its class name is unknown; "
            f"the data have {classes:,} classes. Pass data with two classes, of which "
            "the second is the yes"
        )
    names = found or tuple(map(str, range(classes)))
    others = [name for index, name in enumerate(names) if index != yes]
    logger.warning(
        "the model's one output is%s %r; no is %s",
        "" if known else " taken for",
        *(names[yes], shortened(others, repr, most=3)),
    )
    places = [0 if index == yes else -1 for index in range(classes)]
    return Relabelled(source, places, (names[yes],), 1, multi_label=True)


def _different(
    found: Sequence[str], known: Sequence[str], unknown: Sequence[str]
) -> UserError:
    missing = [
        name
        for name, place in zip(known, match_names(known, found), strict=True)
        if place < 0
    ]
    lines = [
        f"the data have different classes from the model: {len(found):,} in the data, "
        f"{len(known):,} in the model."
    ]
    if missing:
        lines.append(f"Only in the model: {shortened(in_order(missing))}.")
    hint = did_you_mean(unknown[0], missing) if len(unknown) < 1000 else ""
    lines.append(f"Only in the data: {shortened(in_order(unknown))}{hint}.")
    lines.append(
        "Pass data with classes of the model, or fine-tune it on these. The option "
        f"classes={KNOWN!r} leaves out the classes that the model does not know"
        + (
            f"; classes={BY_ORDER!r} takes class i of the data for output i, whatever "
            "the names."
            if len(found) == len(known)
            else "."
        )
    )
    return UserError(" ".join(lines))
