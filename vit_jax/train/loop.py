"""A training run from start to end, its phases in order."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.checkpoints.reading import has_checkpoint, load_description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.config import Config, checks
from vit_jax.errors import UserError
from vit_jax.optim.guard import skipped_updates
from vit_jax.train.autotune.choice import with_chosen_attention
from vit_jax.train.evaluation import Evaluation
from vit_jax.train.out_of_memory import out_of_memory_explained
from vit_jax.train.processes import cluster, peers
from vit_jax.train.processes.interrupts import Interrupted, Interrupts, StopRequest
from vit_jax.train.processes.watchdog import Watchdog
from vit_jax.train.reporting.metrics import MetricWriter, Progress
from vit_jax.train.reporting.profiling import Profile, untraceable
from vit_jax.train.reporting.summary import log_summary
from vit_jax.train.reporting.wandb_run import missing_wandb, wandb_runs
from vit_jax.train.reports import Reports
from vit_jax.train.setup import set_up
from vit_jax.train.start import (
    claimed,
    fit_weights,
    initial_state,
    open_batches,
    open_sources,
)
from vit_jax.train.state import TrainState
from vit_jax.train.workdir_name import default_workdir
from vit_jax.weights.loading import load_weights


def train_and_evaluate(config: Config, workdir: str = "") -> dict[str, Any]:
    """Trains as the config says; called again, goes on from the last checkpoint.

    Args:
      config: a recipe, see vit_jax.config.
      workdir: where checkpoints and metrics go; empty = a name made from the config.

    Returns:
      The numbers of the last evaluation: loss, top1, top5, examples.

    Raises:
      UserError: the config, the data, the weights or the directory cannot work, the
        loss is no longer finite, or a checkpoint could not be saved.
      Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    if not config.allow_cpu:
        sharding.refuse_idle_accelerator()
    workdir = workdir or default_workdir(config)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())

        # Where it starts: an earlier run of this directory, weights, or nothing.
        resumes = cluster.agreed("checkpoints:", has_checkpoint(workdir))
        earlier = load_description(workdir) if resumes else None
        weights = None
        problems = missing_wandb(config) + untraceable(config, workdir)
        if config.pretrained and earlier is None:
            sized = "image_size" not in checks.wrong_values(config)
            try:
                weights = load_weights(
                    config.pretrained,
                    num_heads=config.model.num_heads or None,
                    image_size=config_lib.image_size(config) if sized else None,
                )
            except UserError as error:
                problems.append(str(error))
        start = earlier or (weights and weights.description)
        setup = set_up(config, pretrained=start, problems=problems)
        config = setup.config
        stack.enter_context(out_of_memory_explained(setup))
        train_source, eval_source = open_sources(setup, earlier)
        params = weights and fit_weights(setup, weights, train_source.class_names)
        stack.enter_context(claimed(workdir, config))
        peers.going_on_in(workdir)
        setup = with_chosen_attention(setup, workdir)

        checkpoints = stack.enter_context(
            Checkpoints(workdir, config.keep_checkpoints, config.keep_best)
        )
        state = initial_state(setup, checkpoints, params)
        step, first = int(state.step), cluster.first()

        # The programs, compiled before the first batch is read.
        compiled = setup.lower().compile()
        evaluation = Evaluation(setup, eval_source)
        batches = stack.enter_context(open_batches(setup, train_source, step))
        log_summary(
            setup, workdir, step, compiled.memory_analysis(), batches.waiting_bytes
        )
        reports = Reports(
            setup,
            train_source.class_names,
            setup.info.num_examples,
            evaluation,
            checkpoints,
            stack.enter_context(
                MetricWriter(workdir, step, wandb_runs(config, workdir), first=first)
            ),
            stack.enter_context(Progress(config.total_steps, step, first=first)),
            stack.enter_context(Profile(workdir, config.profile_steps)),
            interrupts,
            stack.enter_context(Watchdog()),
            start=(step, int(state.bad_images)),
            skipped=int(skipped_updates(state.opt_state) or 0),
        )
        return _train(compiled, state, batches, reports)


def _train(
    compiled: Callable[..., Any],
    state: TrainState,
    batches: Iterator[Any],
    reports: Reports,
) -> dict[str, Any]:
    """From the given state to the last step; returns the last evaluation."""
    config, interrupts = reports.setup.config, reports.interrupts
    step = int(state.step)
    try:
        while True:
            # Also right after a start: what an interruption left undone at this step is
            # done first, so that no number depends on interruptions.
            if reports.due(step, config.eval_every):
                reports.evaluate(step, state)
            if reports.due(step, config.checkpoint_every) or reports.is_best(step):
                reports.save(step, state)
            if step == config.total_steps:
                reports.finish(step)
                return reports.writer.recorded(step, "eval") or {}
            if interrupts.requested():
                raise StopRequest
            with reports.fetching(step, state):
                batch = sharding.place(next(batches), reports.setup.mesh)
            step += 1
            interrupts.begin()
            with reports.profile.step(step):
                state, metrics = compiled(state, batch)
            reports.stepped(step, metrics)
    except StopRequest:
        if step:
            reports.save(step, state)
        reports.finish(step)
        assert interrupts.received is not None
        raise Interrupted(interrupts.received, step) from None
