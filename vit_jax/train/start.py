"""The start of a run: its examples, its directory, and its initial state."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.checkpoints.workdir import check_shared, claim, recorded_config
from vit_jax.config import Config, checks
from vit_jax.data.decode import DecodeError, UnsuitableImage
from vit_jax.data.loading.batches import Batches, train_batches
from vit_jax.data.preprocessing import to_pixels
from vit_jax.data.sources.options import DataOptions
from vit_jax.data.sources.protocol import Source
from vit_jax.data.suspicious import suspicious_at_start
from vit_jax.errors import UserError
from vit_jax.models import ViTOrMixer
from vit_jax.models.outputs import EXCLUSIVE, MEANINGS
from vit_jax.train.adapters_from_config import check_continued
from vit_jax.train.choices import CHOICES
from vit_jax.train.continuing import NO_CHANGES, Changes, defaults_of_old_runs
from vit_jax.train.processes import cluster
from vit_jax.train.saved_parts import (
    may_leave_out_frozen,
    restored_items,
    saves_frozen,
    with_frozen,
)
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState, from_items
from vit_jax.trees import chosen, leaves_by_path, overlaid
from vit_jax.weights.adapt import heads_by_name, new_head_because
from vit_jax.weights.base import check_same, fitted, record_of
from vit_jax.weights.contents import Weights, split_params
from vit_jax.weights.loading import load_weights
from vit_jax.words import plain, shortened

logger = logging.getLogger(__name__)


def as_begun(config: Config, workdir: str) -> Config:
    """Fills in what a run decided for itself when it began, so that it continues so.

    Args:
      config: the config, not yet resolved.
      workdir: the run's directory.
    """
    begun = recorded_config(workdir)
    if begun is None or config.data.rules:
        return config
    rules = DataOptions.from_config(begun.get("data")).rules
    return config_lib.changed(config, {"data.rules": rules})


def open_sources(setup: Setup) -> tuple[Source, Source]:
    """Opens the training and the evaluation examples.

    Raises:
      UserError: examples cannot be read or do not suit the transforms; or their classes
        are not those expected, or not those of the other split.
    """
    info, config = setup.info, setup.config
    train, held_out = (
        setup.dataset.split(split) for split in (info.train_split, info.eval_split)
    )
    if train.class_names != held_out.class_names:
        raise UserError(
            f"the split {info.train_split!r} has the classes {train.class_names}, but "
            f"{info.eval_split!r} has {held_out.class_names}; they must be the same"
        )
    if train.num_classes != info.num_classes:
        raise UserError(
            f"{config.dataset} has {train.num_classes} classes here, but a dataset of "
            f"this name should have {info.num_classes}"
        )
    if setup.architecture.num_classes:
        _warn_of_outputs(setup)
    if cluster.first():
        white_level = setup.preprocessing.white_level
        for line in suspicious_at_start(train, held_out, white_level):
            logger.warning("%s", line)
    # Errors that any image would cause appear now, before anything is compiled.
    with _unless_damaged():
        example, rng = train[0], np.random.default_rng(0)
        made = setup.preprocessing
        pixels = to_pixels(example.image, made.channels, example.name, made.white_level)
        for chain in setup.train_transforms.values():
            chain(pixels, rng, example.name)
    with _unless_damaged():
        setup.preprocessing.prepare(held_out[0].image, held_out[0].name)
    return train, held_out


def with_class_names(setup: Setup, train: Source) -> Setup:
    """Adds the names of the classes if only the opened data tell them."""
    if setup.info.class_names is not None:
        return setup
    names = tuple(train.class_names or ())
    info = dataclasses.replace(setup.info, class_names=names)
    return dataclasses.replace(setup, info=info)


def _warn_of_outputs(setup: Setup) -> None:
    """Warns if the outputs will not mean what the labels say."""
    info, config = setup.info, setup.config
    if setup.objective.outputs(config) != EXCLUSIVE:
        return
    if info.multi_label:
        logger.warning(
            "images of %s can have several labels, but the outputs are trained as "
            "classes that exclude each other; loss=sigmoid trains a yes or no for each",
            config.dataset,
        )
    if info.num_classes == 1:
        logger.warning(
            "%s has a single class, of which a softmax learns nothing: its loss is "
            "always 0. Add images of another class",
            config.dataset,
        )


@contextlib.contextmanager
def _unless_damaged() -> Iterator[None]:
    """Ignores a damaged image, which says nothing about the others."""
    try:
        yield
    except UnsuitableImage:
        raise
    except DecodeError:
        pass


@contextlib.contextmanager
def claimed(
    workdir: str, config: Config, changes: Changes = NO_CHANGES
) -> Iterator[None]:
    """Claims the directory for this run, in all processes, while inside; see `claim`.

    Args:
      workdir: the directory.
      config: the run's, resolved.
      changes: those with which it may continue.

    Raises:
      UserError: it belongs to another run, or the processes see different directories.
    """
    plain, first = config_lib.to_plain(config), cluster.first()
    with contextlib.ExitStack() as stack:
        if first:
            free = {*config_lib.FREE_TO_CHANGE, *changes.free}
            defaults = defaults_of_old_runs()
            stack.enter_context(claim(workdir, plain, free, defaults, changes.advice))
        cluster.wait_for_all("the first has claimed the directory")
        if not first:
            check_shared(workdir, plain)
        yield


def open_batches(setup: Setup, source: Source, start: int) -> Batches:
    """Opens the training batches from number `start` on, this process's rows only."""
    config = setup.config
    return train_batches(
        source,
        batch_size=config.batch_size,
        transform=setup.train_transforms,
        channels=setup.architecture.channels,
        white_level=setup.preprocessing.white_level,
        seed=config.seed,
        start=start,
        stop=config.total_steps,
        bad_images=config.bad_images,
        rows=sharding.local_rows(setup.mesh, config.batch_size),
        num_threads=config.loader_threads,
        num_processes=config.loader_processes,
        sampling=config.sampling,
        repeats=config.augment.repeats,
        aligned=setup.aligned,
    )


def read_weights(
    config: Config, earlier: Description | None
) -> tuple[Weights | None, dict[str, str]]:
    """Reads the pretrained weights, if the run needs any, and makes their record.

    A run that continues needs them only for the parameters that its checkpoints lack.
    The record is empty if no checkpoint can lack any.

    Args:
      config: the config, not yet resolved.
      earlier: description of the checkpoint that the run continues from.

    Raises:
      UserError: they cannot be read, are not those that the run began with, or have
        adapters other than those of the config.
    """
    if not config.pretrained or (earlier and not earlier.base):
        return None, {}
    sized = "image_size" not in checks.wrong_values(config, CHOICES)
    try:
        weights = load_weights(
            config.pretrained,
            num_heads=config.model.num_heads or None,
            image_size=config_lib.image_size(config) if sized else None,
        )
    except UserError as error:
        if earlier is None:
            raise
        raise UserError(
            "the checkpoints of this run lack the frozen parameters of its pretrained "
            f"weights, and these cannot be read: {error}\nIf they have moved, pass "
            "their place as --config.pretrained"
        ) from error
    about = weights.description
    check_continued(about.architecture, config, config.pretrained)
    if not earlier and not may_leave_out_frozen(config):
        return weights, {}  # the checksum of a large model takes seconds
    base = record_of(config.pretrained, about, weights.params)
    if earlier:
        check_same(earlier.base, base)
    return weights, base


def fit_weights(
    setup: Setup, weights: Weights, class_names: Sequence[str], *, quiet: bool = False
) -> dict[str, Any]:
    """Adapts pretrained parameters to this run's grid and classes; see `adapt`.

    What the objective takes beside the model's own, such as a decoder, is added. With
    `quiet`, the changes are not logged.

    Raises:
      UserError: the parameters do not fit, or the head to be kept does not, or what
        lies beside them cannot be continued.
    """
    config, source = setup.config, weights.description
    architecture, names = source.architecture, source.class_names
    params, beside = split_params(weights)
    adopted = setup.objective.adopt(beside, source)
    for name in sorted(beside.keys() - adopted.keys()):
        logger.warning("pretrained weights: the %s is not used", name)
    if not config.reset_head:
        params, architecture, names = heads_by_name(
            params, architecture, names, class_names
        )
        _check_kept_head(setup, source, architecture, names, class_names)
    adapted = fitted(
        params,
        architecture,
        setup.architecture,
        source.preprocessing,
        source_class_names=names,
        target_class_names=class_names,
        keep_head=not config.reset_head,
        head_bias=config.model.head_bias,
        head_std=config.model.head_std,
        seed=config.seed,
        posemb_resize=config.posemb_resize,
        quiet=quiet,
    )
    return adapted | adopted


def _check_kept_head(
    setup: Setup,
    source: Description,
    architecture: ViTOrMixer,
    names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Raises UserError if the pretrained head cannot be kept; logs what is assumed."""
    reason = new_head_because(architecture, setup.architecture, names, class_names)
    if reason:
        unknown = [name for name in class_names if names and name not in set(names)]
        among = f" (not in the weights: {shortened(unknown, plain)})" if unknown else ""
        raise UserError(
            f"reset_head=False, but the pretrained head cannot be kept: {reason}"
            f"{among}. Train on data with its classes, or pass "
            "--config.reset_head=true for a new head"
        )
    if class_names and not names and architecture.num_classes:
        logger.warning(
            "the pretrained weights do not name their classes: assumed that their "
            "order is that of the data, %s",
            shortened(class_names, plain),
        )
    outputs = setup.objective.outputs(setup.config)
    if source.outputs != outputs:
        logger.warning(
            "the pretrained head was trained for %s, and this run continues it as %s",
            MEANINGS[source.outputs].words,
            MEANINGS[outputs].words,
        )


def initial_state(
    setup: Setup, checkpoints: Checkpoints, params: dict[str, Any] | None
) -> TrainState:
    """Restores the newest sound checkpoint, or starts from `params` or at random."""
    abstract = setup.abstract_state()
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    cluster.agreed("step", checkpoints.latest_step() or 0)
    found = checkpoints.restore_newest(restored_items(setup, abstract))
    if found is not None:
        step = found.description.step
        logger.info("resuming from the checkpoint of step %d", step)
        items = found.items
        if not saves_frozen(setup):
            first = _first_params(setup, params, shardings.params)
            items = with_frozen(items, first)
        return from_items(items, step, abstract)
    if params is None:
        return jax.jit(
            lambda: setup.new_state(setup.init_params()), out_shardings=shardings
        )()
    placed = _placed(params, shardings.params)

    def completed(params: dict[str, Any]) -> TrainState:
        return setup.new_state(_all_params(setup, params))

    return jax.jit(completed, out_shardings=shardings)(placed)


def _first_params(setup: Setup, params: dict[str, Any] | None, where: Any) -> Any:
    """Makes the parameters before the first step."""
    placed = _placed(params or {}, where)
    return jax.jit(partial(_all_params, setup), out_shardings=where)(placed)


def _placed(params: dict[str, Any], where: Any) -> Any:
    """Moves some of the parameters to their devices."""
    return jax.device_put(params, chosen(where, leaves_by_path(params).__contains__))


def _all_params(setup: Setup, params: dict[str, Any]) -> Any:
    """Adds what starts at random: adapters, and what the objective trains besides."""
    if jax.tree.structure(params) == jax.tree.structure(setup.param_shapes):
        return params
    return overlaid(params, setup.init_params())
