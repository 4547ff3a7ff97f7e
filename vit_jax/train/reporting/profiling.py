"""A trace of chosen steps, for XProf and TensorBoard."""

import contextlib
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import jax

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.workdir import locate
from vit_jax.config import Config

logger = logging.getLogger(__name__)

FOLDER = "profile"


def untraceable(config: Config, workdir: str) -> list[str]:
    """Lists why steps cannot be traced, before anything is compiled."""
    if any(config.profile_steps) and in_bucket(workdir):
        return [
            f"profile_steps={config.profile_steps}: traces cannot be written to a "
            "bucket; pass a --workdir on a disk, or 0,0 for no traces"
        ]
    return []


class Profile:
    """A trace from the first to the last of some steps; a context manager.

    Everything between the steps is traced too: waiting for data, evaluation, saving.
    """

    def __init__(self, workdir: str, steps: Sequence[int]):
        """Prepares the trace, which starts with the first call of `step` in range.

        Args:
          workdir: the run's directory; traces go to its folder "profile". With several
            processes, each has a folder there: JAX names the file after the host, which
            several of them may share.
          steps: the first and the last step, counted from 1; (0, 0) = none.
        """
        self._folder = locate(workdir) / FOLDER
        if jax.process_count() > 1:
            self._folder /= f"process_{jax.process_index()}"
        self._first, self._last = steps
        self._tracing = False

    def step(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Returns a context for the call of a step, which records its number."""
        if self._first <= number <= self._last and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stepped(self, number: int, result: object) -> None:
        """Ends the trace after the call of the last step, once `result` is computed."""
        if self._tracing and number >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        logger.info("the trace of the steps is in %s", self._folder)
