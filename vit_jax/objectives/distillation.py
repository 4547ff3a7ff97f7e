"""Distillation: a student learns from frozen teachers, with labels or without.

DeiT (arXiv:2012.12877) adds the teacher's answer to the loss of the labels; function
matching (arXiv:2106.05237) learns from the teachers alone. Student and teachers see the
same crop, mirrored and mixed alike, each at its own size and in its own value range.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vit_jax.config import without_effect
from vit_jax.data.transforms.chains import parse_chain, rescale_chain
from vit_jax.errors import Problems, UserError, problems_of
from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT, MEANINGS, of_loss, readable
from vit_jax.models.vit import HEADS
from vit_jax.named import is_number
from vit_jax.objectives.classification import Classification, init_model
from vit_jax.objectives.distances import (
    DISTANCES,
    Distance,
    same_answers,
    same_class,
    sigmoid_hard,
    sigmoid_kl,
    softmax_hard,
    softmax_kl,
)
from vit_jax.objectives.flexible import at, drawn
from vit_jax.objectives.inputs import normalised, renormalised
from vit_jax.objectives.losses import to_targets
from vit_jax.objectives.mixing import Examples, make_mixing
from vit_jax.objectives.protocol import (
    OPTIONAL_KEYS,
    Batch,
    Context,
    Given,
    Images,
    Labels,
    Objective,
    Params,
    Sums,
)
from vit_jax.objectives.teachers import (
    BY_NAME,
    BY_ORDER,
    Teacher,
    load_teacher,
    sources_of,
)
from vit_jax.words import did_you_mean, either, pair

# Kind → the options that it reads, with their defaults: those of the published code.
KINDS: dict[str, dict[str, Any]] = {
    "hard": {"alpha": 0.5},
    "soft": {"alpha": 0.5, "temperature": 1.0},
    "matching": {"distance": "kl", "temperature": 1.0, "smoothing": 0.0},
}
_DEFAULTS = {name: value for row in KINDS.values() for name, value in row.items()}
# Distance → the options that it reads.
_OF_DISTANCES = {"kl": ("temperature",), "hard": ("smoothing",)}
_RANGES = {
    "alpha": (lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "temperature": (lambda x: x > 0, "a number above 0"),
    "smoothing": (lambda x: 0 <= x < 1, "a number from 0 to 1, without 1"),
}


class Outputs(NamedTuple):
    """A student's logits [b, k]: of the labels' head, the teachers' head, and both."""

    labels: Array
    teachers: Array
    mean: Array


class Distillation(Objective):
    """An objective: agree with one or several frozen teachers.

    Kinds "hard" and "soft" are DeiT's: (1 − α) times the loss of the labels on the
    class head plus α times the teachers' mean on the distillation head, both of which
    read the one head if the model has no distillation token. Kind "matching" ignores
    labels and sums a distance over the teachers.

    It also reports `agreement`, the share of the images for which student and teacher
    predict the same class; and, of the loss of the labels, `accuracy`, `label_loss` and
    `teacher_loss`. With several teachers, `agreement_1` … and `teacher_loss_1` … are
    those of each.
    """

    reads_schedule = False
    reads = tuple(key for key in OPTIONAL_KEYS if key != "loss_options")
    flexible = True  # the student; a teacher keeps its own patch size
    # The checksums in `facts` recognise teachers that were moved.
    locations = ("objective_options.teachers",)

    def __init__(
        self,
        given: Given,
        teachers: Any = "",
        kind: str = "hard",
        alpha: Any = None,
        temperature: Any = None,
        distance: str | None = None,
        smoothing: Any = None,
        teacher_size: Any = 0,
        classes: str = BY_NAME,
    ):
        """Reads the teachers' weights and checks them.

        Args:
          given: the run.
          teachers: anything that `load_weights` reads; ";" separates several. Options
            come from a command line, so all are checked here, whatever their type.
          kind: a key of `KINDS`.
          alpha: "hard", "soft": the teachers' share of the loss. The default of DeiT's
            code is 0.5; its paper uses 0.1 for "soft".
          temperature: "soft", and the distance "kl": logits are divided by it. The
            default of DeiT's code is 1, its paper uses 3; function matching 1 to 10.
          distance: "matching": a key of `DISTANCES`; by default "kl".
          smoothing: the distance "hard": label smoothing, spread over the other
            classes; by default 0.
          teacher_size: side or (height, width) of the images that the teachers see; 0 =
            each those of its own training.
          classes: "names", or "order": output i of a teacher is class i of the data,
            whatever the names.

        Raises:
          UserError: lists the options that are impossible or have no effect, and why a
            teacher cannot teach.
        """
        options = {
            "alpha": alpha,
            "temperature": temperature,
            "distance": distance,
            "smoothing": smoothing,
        }
        self._given, self._kind = given, kind
        size, problems = _size(teacher_size)
        sources = sources_of(teachers)
        if not sources:
            problems.append(
                "objective_options.teachers is empty: name the models to learn from, "
                "joined by ';', as in --config.objective_options.teachers=WORKDIR"
            )
        if classes not in (BY_NAME, BY_ORDER):
            problems.append(
                f"objective_options.classes={classes!r}: choose "
                f"{either((BY_NAME, BY_ORDER))}"
            )
        problems += _wrong_options(kind, options) + _without_effect(kind, given)
        self._options = KINDS.get(kind, {}) | {
            name: value for name, value in options.items() if value is not None
        }
        self._teachers: list[Teacher] = []
        for source in sources:
            try:
                teacher = Teacher(load_teacher(source), given, size, classes)
            except UserError as error:
                problems += problems_of(error)
                continue
            self._teachers.append(teacher)
            if kind in KINDS:
                problems += self._wrong_meaning(teacher)
        if problems:
            raise Problems(*problems)
        self._distances = [self._distance(teacher) for teacher in self._teachers]
        self._mixing = make_mixing(given.config.mixing)
        self._labels = None if kind == "matching" else Classification(given)
        self.inputs = self._inputs()

    @staticmethod
    def num_classes(config, info) -> int:
        """Returns the number of classes of the data."""
        del config
        return info.num_classes

    def facts(self) -> dict[str, Any]:
        """Returns the checksums of the teachers."""
        return {"teachers": [teacher.loaded.checksum for teacher in self._teachers]}

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws the student's parameters at random."""
        return init_model(self._given, key)

    def extra(self) -> Params:
        """Returns the parameters of each teacher."""
        return tuple(teacher.params() for teacher in self._teachers)

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Any
    ) -> tuple[Batch, Key[Array, ""]]:
        """Erases and mixes the images of all sizes alike if the config asks for it."""
        if self._mixing is None:
            return batch, key
        key, mixing_key = jax.random.split(key)
        given = self._given
        names = [name for name in self.inputs if name not in ("image", "label")]
        images, *others = (
            normalised(batch[name], given.preprocessing) for name in ("image", *names)
        )
        # Without labels, a placeholder: only images and weights are mixed.
        labels = batch.get("label", jnp.zeros_like(batch["bad"]))
        targets = to_targets(labels, given.architecture.num_classes)
        examples, others = self._mixing.all_sizes(
            mixing_key, Examples(images, targets, batch["mask"]), tuple(others)
        )
        mixed = {"image": examples.images, "mask": examples.weights}
        if self._labels is not None:
            mixed["label"] = examples.targets
        return {**batch, **mixed, **dict(zip(names, others, strict=True))}, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums the loss and what is reported over the examples, weighted by `mask`."""
        mask = batch["mask"]
        weight = jnp.sum(mask)
        student = self._student(params, batch, key, context.choice)
        agree = self._agreement
        distances, agreements = [], []
        for teacher, distance, frozen in zip(
            self._teachers, self._distances, context.extra, strict=True
        ):
            seen = renormalised(
                batch[teacher.column], self._given.preprocessing, teacher.preprocessing
            )
            answers = teacher(frozen, seen)
            distances.append(jnp.sum(distance(student.teachers, answers) * mask))
            agreements.append(jnp.sum(agree(student.mean, answers) * mask))
        count = len(distances)
        together = functools.reduce(jnp.add, distances)
        sums: dict[str, Array] = {
            "agreement": functools.reduce(jnp.add, agreements) / count
        }
        if count > 1:
            for index in range(count):
                sums[f"teacher_loss_{index + 1}"] = distances[index]
                sums[f"agreement_{index + 1}"] = agreements[index]
        if self._labels is None:
            sums["loss"] = together
            found = {name: (total, weight) for name, total in sums.items()}
            return found | drawn(context.choice, mask), ()
        of_labels = self._labels.judged(student.labels, batch)["loss"][0]
        if self._independent:
            # The mean over the classes, as in DeiT's code, so that α means the same.
            of_labels /= self._given.architecture.num_classes
        alpha = self._options["alpha"]
        sums["label_loss"], sums["teacher_loss"] = of_labels, together / count
        sums["loss"] = (1 - alpha) * of_labels + alpha * sums["teacher_loss"]
        return {
            **{name: (total, weight) for name, total in sums.items()},
            "accuracy": self._labels.judged(student.mean, batch)["accuracy"],
            **drawn(context.choice, mask),
        }, ()

    @property
    def _independent(self) -> bool:
        """Whether the student's outputs are a yes or no for each class."""
        classes = self._given.architecture.num_classes
        return readable(of_loss(self._given.config.loss), classes) == INDEPENDENT

    @property
    def _agreement(self) -> Distance:
        several = self._given.info.multi_label
        alone = self._given.architecture.num_classes == 1
        return same_answers if several or alone else same_class

    def _student(
        self, params: Params, batch: Batch, key: Array, choice: Any
    ) -> Outputs:
        """Computes the logits of each head, in training."""
        given = self._given
        images = normalised(batch["image"], given.preprocessing)
        compute = functools.partial(
            given.placed_model, params, images, train=True, key=key, **at(choice)
        )
        if getattr(given.architecture, "num_pooled", 1) == 1:
            logits = compute()
            return Outputs(logits, logits, logits)
        mean, heads = compute(intermediates=HEADS)
        if self._labels is None:
            return Outputs(mean, mean, mean)
        return Outputs(heads[HEADS[0]], heads[HEADS[1]], mean)

    def _inputs(self) -> dict[str, Images | Labels]:
        """Lists the columns: images of each size that a model sees, and labels."""
        given = self._given
        chain, channels = given.train_chain, given.architecture.channels
        found: dict[str, Images | Labels] = {"image": Images(chain, channels)}
        for teacher in self._teachers:
            size = teacher.architecture.image_size
            text = rescale_chain(chain.text, chain.image_size, size)
            column = Images(parse_chain(text, size), channels, aligned=True)
            found.setdefault(teacher.column, column)
        if self._labels is not None:
            info = given.info
            found["label"] = Labels(info.num_classes, info.multi_label)
        return found

    def _distance(self, teacher: Teacher) -> Distance:
        """Returns the loss of one teacher as a function of student and teacher."""
        options, classes = self._options, self._given.architecture.num_classes
        independent = teacher.outputs == INDEPENDENT
        if self._kind == "matching":
            name = options["distance"]
            given = {key: options[key] for key in _OF_DISTANCES.get(name, ())}
            return functools.partial(DISTANCES[name][teacher.outputs], **given)
        if self._kind == "soft":
            divergence = sigmoid_kl if independent else softmax_kl
            t = options["temperature"]
            # DeiT divides the sum over images and classes by the number of both.
            return lambda student, answers: (
                divergence(student, answers, temperature=t) / classes
            )
        if self._given.info.multi_label or classes == 1:
            return lambda student, answers: sigmoid_hard(student, answers) / classes
        return softmax_hard

    def _wrong_meaning(self, teacher: Teacher) -> list[str]:
        """Lists why the outputs of a teacher are not what the student's will mean."""
        name, theirs = teacher.loaded.source, teacher.outputs
        means = f"the teacher {name}: its outputs are {MEANINGS[theirs].words}"
        if theirs not in (EXCLUSIVE, INDEPENDENT):
            return [f"{means}, not classes; name a classifier"]
        if self._given.info.multi_label and theirs == EXCLUSIVE:
            return [
                f"{means}, but an image of these data can have several; name a teacher "
                "that was trained with loss=sigmoid"
            ]
        matching, loss = self._kind == "matching", self._given.config.loss
        if matching and (theirs == INDEPENDENT) != self._independent:
            return [
                f"{means}, so the student's will be too, but loss={loss} reads them "
                f"otherwise; set loss={MEANINGS[theirs].loss}"
            ]
        if self._kind == "soft" and theirs == INDEPENDENT and not self._independent:
            return [f"{means}, but loss={loss} is not; set loss=sigmoid, or kind=hard"]
        distance = str(self._options.get("distance"))
        if matching and distance in DISTANCES and theirs not in DISTANCES[distance]:
            fitting = [key for key, row in DISTANCES.items() if theirs in row]
            return [
                f"{means}, for which distance={distance!r} has no meaning; choose "
                f"{either(fitting)}"
            ]
        return []


def _size(value: Any) -> tuple[tuple[int, int] | None, list[str]]:
    """Reads `teacher_size`; returns None for 0, and what is wrong."""
    if value == 0:
        return None, []
    try:
        size = pair(value)
        if min(size) < 1:
            raise ValueError
    except (TypeError, ValueError):
        return None, [
            f"objective_options.teacher_size={value!r}: give a number of pixels or "
            "(height, width), or 0 for the size of each teacher"
        ]
    return size, []


def _wrong_options(kind: str, options: dict[str, Any]) -> list[str]:
    """Lists values that are impossible, or that this kind or distance ignores."""
    where = "objective_options."
    if kind not in KINDS:
        choose = f"choose {either([*KINDS])}{did_you_mean(kind, KINDS)}"
        return [f"{where}kind={kind!r}: {choose}"]
    problems, taken = [], KINDS[kind]
    chosen = options["distance"] or "kl"
    if kind == "matching" and chosen not in DISTANCES:
        problems.append(
            f"{where}distance={chosen!r}: choose {either([*DISTANCES])}"
            f"{did_you_mean(chosen, DISTANCES)}"
        )
    ignored = set(_RANGES) - {"alpha", *_OF_DISTANCES.get(chosen, ())}
    for name, value in options.items():
        if value is None:
            continue
        default = _DEFAULTS[name]
        if name not in taken:
            if value != default:
                problems.append(
                    f"{where}{name}={value!r} has no effect with kind={kind!r}, which "
                    f"reads {either([*taken])}; leave it at {default!r}"
                )
        elif kind == "matching" and name in ignored:
            if value != default:
                problems.append(
                    f"{where}{name}={value!r} has no effect with distance={chosen!r}; "
                    f"leave it at {default!r}"
                )
        elif name in _RANGES:
            holds, expected = _RANGES[name]
            if not is_number(value) or not holds(value):
                problems.append(f"{where}{name}={value!r}: expected {expected}")
    return problems


def _without_effect(kind: str, given: Given) -> list[str]:
    """Lists keys about labels where none are used."""
    if kind != "matching":
        return []
    return without_effect(
        given.config,
        ("label_smoothing", "mixing.binary_targets"),
        "kind='matching' uses no labels",
    )
