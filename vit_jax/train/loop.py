"""A training run from start to end, in phases."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from vit_jax import accelerators, sharding
from vit_jax.checkpoints.reading import has_checkpoint, load_description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.config import Config
from vit_jax.data.decode import DecodeError
from vit_jax.errors import UserError, problems_of
from vit_jax.optim.guard import skipped_updates
from vit_jax.train.autotune.choice import with_chosen_attention
from vit_jax.train.continuing import allowed_changes, tell_of_similar_run
from vit_jax.train.evaluation import Evaluations
from vit_jax.train.guardrails import DIVERGED, Guardrails
from vit_jax.train.out_of_memory import out_of_memory_explained
from vit_jax.train.processes import cluster, peers
from vit_jax.train.processes.interrupts import Interrupted, Interrupts, StopRequest
from vit_jax.train.processes.watchdog import Watchdog
from vit_jax.train.recorder import Recorder
from vit_jax.train.reporting.metrics import MetricWriter, Progress
from vit_jax.train.reporting.profiling import Profile, untraceable
from vit_jax.train.reporting.summary import log_summary
from vit_jax.train.reporting.wandb_run import missing_wandb, wandb_runs
from vit_jax.train.same_data import data_facts
from vit_jax.train.saved_parts import saves_frozen
from vit_jax.train.setup import set_up
from vit_jax.train.start import (
    as_begun,
    claimed,
    fit_weights,
    initial_state,
    open_batches,
    open_sources,
    read_weights,
    with_class_names,
)
from vit_jax.train.state import TrainState
from vit_jax.train.workdir_name import default_workdir


def train_and_evaluate(config: Config, workdir: str = "") -> dict[str, Any]:
    """Trains according to the config, or resumes from the last checkpoint.

    Args:
      config: a recipe, see vit_jax.config.
      workdir: directory for checkpoints and metrics; empty = a name derived from the
        config.

    Returns:
      The numbers of the last evaluation: loss, top1, top5, examples.

    Raises:
      UserError: the config, the data, the weights or the directory cannot work, the
        loss is no longer finite, or a checkpoint could not be saved.
      Interrupted: a signal, such as SIGTERM or Ctrl-C; the state is saved.
    """
    if not config.allow_cpu:
        accelerators.refuse_idle_accelerator()
    named, workdir = bool(workdir), workdir or default_workdir(config)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())

        # The starting point: an earlier run in this directory, weights, or nothing.
        resumes = cluster.agreed("checkpoints:", has_checkpoint(workdir))
        earlier = load_description(workdir) if resumes else None
        weights, base = None, {}
        problems = missing_wandb(config) + untraceable(config, workdir)
        try:
            weights, base = read_weights(config, earlier)
        except UserError as error:
            problems += problems_of(error)
        start = earlier or (weights and weights.description)
        setup = set_up(as_begun(config, workdir), pretrained=start, problems=problems)
        config = setup.config
        stack.enter_context(out_of_memory_explained(setup))
        train_source, eval_source = open_sources(setup)
        setup = with_class_names(setup, train_source)
        facts = data_facts(setup, train_source, eval_source)
        changes = allowed_changes(setup, facts, earlier, workdir, base)
        if not (named or earlier):
            tell_of_similar_run(workdir, config)
        names, again = train_source.class_names, earlier is not None
        params = weights and fit_weights(setup, weights, names, quiet=again)
        stack.enter_context(claimed(workdir, config, changes))
        peers.going_on_in(workdir)
        setup = with_chosen_attention(setup, workdir)

        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                config.keep_checkpoints,
                config.keep_best,
                setup.better.get(config.keep_best, 1.0),
            )
        )
        state = initial_state(setup, checkpoints, params)
        step, first = int(state.step), cluster.first()

        # The programs, compiled before the first batch is read.
        choices = setup.objective.choices
        programs = {choice: setup.lower(choice).compile() for choice in choices}
        evaluations = Evaluations(setup, eval_source)
        batches = stack.enter_context(open_batches(setup, train_source, step))
        memory = programs[choices[0]].memory_analysis()
        log_summary(setup, workdir, step, memory, batches.waiting_bytes)
        recorder = Recorder(
            setup,
            facts,
            evaluations,
            checkpoints,
            stack.enter_context(
                MetricWriter(workdir, step, wandb_runs(config, workdir), first=first)
            ),
            stack.enter_context(Progress(config.total_steps, step, first=first)),
            base={} if saves_frozen(setup) else base,
        )
        skipped = int(skipped_updates(state.opt_state) or 0)
        return _Training(
            programs,
            state,
            batches,
            recorder,
            Guardrails(setup, len(train_source), state, skipped),
            interrupts,
            stack.enter_context(Profile(workdir, config.profile_steps)),
            stack.enter_context(Watchdog()),
        ).run()


@dataclasses.dataclass
class _Training:
    """The steps of a run, and everything that happens between two of them.

    Attributes:
      programs: the compiled step for each choice of the objective.
      state: the training state, which each step consumes and replaces.
      unread: number and metrics of the last step. They are fetched only after the next
        step has been dispatched, so that the devices never wait for this process.
    """

    programs: Mapping[Hashable, Callable[..., Any]]
    state: TrainState
    batches: Iterator[Any]
    recorder: Recorder
    guardrails: Guardrails
    interrupts: Interrupts
    profile: Profile
    watchdog: Watchdog
    unread: tuple[int, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Trains up to the last step; returns the last evaluation."""
        recorder, interrupts = self.recorder, self.interrupts
        setup = recorder.setup
        config, objective, extra = setup.config, setup.objective, setup.extra()
        constants = (extra,) if jax.tree.leaves(extra) else ()
        step = int(self.state.step)
        try:
            while True:
                # Also right after a start: what an interruption left undone at this
                # step is done first, so that no number depends on interruptions.
                if recorder.evaluations.due(step):
                    self._evaluate(step)
                due = recorder.due(step, config.checkpoint_every)
                ends = recorder.stops_early(step) or step == config.total_steps
                if due or ends or recorder.is_best(step):
                    self._save(step)
                if ends:
                    recorder.finish(step)
                    return recorder.writer.recorded(step, "eval") or {}
                if interrupts.requested():
                    raise StopRequest
                batch = self._next_batch(step)
                program = self.programs[objective.choice(step)]
                step += 1
                interrupts.begin()
                with self.profile.step(step):
                    self.state, metrics = program(self.state, batch, *constants)
                recorder.checkpoints.check()
                with recorder.clock.stopped("tracing"):
                    self.profile.stepped(step, metrics)
                # Those of the step before; see `unread`.
                self._read_metrics()
                self.unread = step, metrics
        except StopRequest:
            if step:
                self._save(step)
            recorder.finish(step)
            assert interrupts.received is not None
            raise Interrupted(interrupts.received, step) from None

    def _next_batch(self, step: int) -> dict[str, jax.Array]:
        setup = self.recorder.setup
        self.watchdog.begin("a training step")
        with (
            self._saving_if_data_fail(step, "bad_images"),
            self.recorder.clock.waiting(),
        ):
            self.guardrails.check_data()
            rows = next(self.batches)
            read = {name: rows[name] for name in setup.columns}
            return sharding.place(read, setup.mesh)

    def _read_metrics(self) -> None:
        """Judges and records the metrics of the last step, unless that was done."""
        if self.unread is None:
            return
        step, values = self.unread[0], jax.device_get(self.unread[1])
        self.unread = None
        verdict = self.guardrails.judge(step, values)
        self.recorder.write(step, values, always=verdict.left_out)
        if verdict.stop:
            self._stop(f"{verdict.stop}; training stops.")

    def _evaluate(self, step: int) -> None:
        self._read_metrics()
        with self._saving_if_data_fail(step, "eval_bad_images"):
            diverged = self.recorder.evaluate(step, self.state, self._watched)
        self.watchdog.begin("")
        if diverged:
            self._stop(diverged)

    def _save(self, step: int) -> None:
        # Save only after the metrics are known to be finite, and after all records of
        # earlier steps are on the disk.
        self._read_metrics()
        self.watchdog.begin("saving a checkpoint")
        self.recorder.save(step, self.state)
        self.watchdog.begin("")

    def _stop(self, reason: str) -> NoReturn:
        raise UserError(f"{reason} {self.recorder.last_good()} {DIVERGED}")

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        self.watchdog.begin("a batch of the evaluation")
        for batch in self.interrupts.watch(batches):
            yield batch
            self.watchdog.begin("a batch of the evaluation")

    @contextlib.contextmanager
    def _saving_if_data_fail(self, step: int, policy: str) -> Iterator[None]:
        """Saves before reporting unreadable data, so that the run can resume here."""
        try:
            yield
        except UserError as error:
            lines = [str(error)]
            if step > 0:
                self._save(step)
                self.recorder.checkpoints.wait()
                lines.append(
                    f"Stopped at step {step}, which is saved. Once that is fixed, "
                    "the same command continues from there."
                )
            if isinstance(error, DecodeError):
                lines.append(
                    f"To skip such images, pass --config.{policy}=skip and another "
                    "--workdir."
                )
            raise UserError("\n".join(lines)) from error
