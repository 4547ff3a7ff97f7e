"""The training command, which kills or stops its own process at a chosen point.

    killed_run.py POINT ARGUMENTS...

POINT is `none`, `write:STEP:SPLIT` (before that line of the metrics), `torn:STEP`
(half a line written), `evaluating:STEP` (after the first batch), `save:STEP` (before
the arrays of that checkpoint are written), `rename:STEP` (before it is visible) or
`join` (once the processes are connected, before their devices are); `term:STEP` asks it
to stop before that line, and continues slowly, as `slow:STEP` does unasked. `compile`
never finishes the compilation; `compile:term` and `compile:usr1` are asked to stop
during it.
"""

import ctypes
import os
import signal
import sys
import threading
import time

import jax

from vit_jax import main
from vit_jax.evaluators import examples
from vit_jax.train.processes import peers
from vit_jax.train.reporting import metrics


def kill(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind, step="", split="train"):
    from orbax.checkpoint._src.path import atomicity

    if kind in ("write", "torn", "term", "slow"):
        write = metrics.MetricWriter.write

        def patched_write(self, at, of, values):
            if kind in ("term", "slow") and at >= int(step):
                if kind == "term" and at == int(step):
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1 if kind == "term" else 1.0)
            elif (at, of) == (int(step), split):
                if kind == "torn":
                    self._stream.write(f'{{"step": {at}, "spl')
                    self._stream.flush()
                kill()
            write(self, at, of, values)

        metrics.MetricWriter.write = patched_write
    elif kind == "evaluating":
        count = iter(range(1, 100))
        add_up = examples.add_up

        def patched_evaluate(eval_step, params, batches, mesh, **options):
            at = next(count) * EVAL_EVERY

            def some():
                for number, batch in enumerate(batches):
                    if number == 1 and at == int(step):
                        kill()
                    yield batch

            return add_up(eval_step, params, some(), mesh, **options)

        examples.add_up = patched_evaluate
    elif kind == "rename":
        finalize = atomicity.AtomicRenameTemporaryPath.finalize

        async def patched_finalize(self):
            if self.get_final().name == step:
                kill()
            await finalize(self)

        atomicity.AtomicRenameTemporaryPath.finalize = patched_finalize
    elif kind == "join":
        initialize = jax.distributed.initialize

        def patched_initialize(**arguments):
            initialize(**arguments)
            time.sleep(1)  # the others have joined too, and start their devices
            kill()

        jax.distributed.initialize = patched_initialize
    elif kind == "compile":
        from vit_jax.train.setup import Setup

        def patched_lower(self, choice=None):
            if step:
                # Once the handlers are set, while C code runs.
                number = signal.Signals[f"SIG{step.upper()}"]
                ask = os.kill, (os.getpid(), number)
                threading.Timer(0.5, *ask).start()
            # Locked twice it never returns, and no Python handler can run.
            mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
            while True:
                libc.pthread_mutex_lock(mutex)

        Setup.lower = patched_lower
    elif kind == "save":
        from vit_jax.train import recorder

        save = recorder.Checkpoints.save

        def patched_save(self, at, *state):
            if at == int(step):
                kill()
            save(self, at, *state)

        recorder.Checkpoints.save = patched_save


EVAL_EVERY = 4
peers.SILENCE = 8.0  # seconds; a test need not wait as long as a real run

if __name__ == "__main__":
    point, *arguments = sys.argv[1:]
    arm(*point.split(":"))
    sys.argv = ["vit_jax.main", *arguments]
    main.main()
