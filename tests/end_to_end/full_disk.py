"""The training command on a disk that is full from a given step on.

    full_disk.py STEP ARGUMENTS...

A limit on the size of files simulates the disk: it works for every user, and a write
fails in the same place.
"""

import resource
import sys

from vit_jax import main
from vit_jax.train import recorder

LIMIT = 2_000  # bytes; smaller than any checkpoint, larger than what was written

if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    save = recorder.Checkpoints.save

    def limited_save(self, at, *state):
        if at == int(step):
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        save(self, at, *state)

    recorder.Checkpoints.save = limited_save
    sys.argv = ["vit_jax.main", *arguments]
    main.main()
