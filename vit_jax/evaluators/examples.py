"""The examples of an evaluation, as batches on the devices: each exactly once."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vit_jax import sharding
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.protocol import Params, Subject, Watch

Step = Callable[[Params, Mapping[str, Array]], Any]


class Data(NamedTuple):
    """What an evaluator may read: the splits of one data set.

    Attributes:
      open_split: gives the examples of a split.
      split: what to evaluate on.
      train_split: what to fit on, for an evaluator that fits something.
      batch_size: images of a batch, rounded up to a multiple of the devices.
      bad_images: "error", or "skip" images that cannot be read.
    """

    open_split: Callable[[str], Source]
    split: str
    train_split: str
    batch_size: int
    bad_images: str = "error"

    def examples(self, subject: Subject, split: str = "") -> "Examples":
        """Those of a split, by default of the one to evaluate on."""
        return Examples(
            self.open_split(split or self.split),
            subject.preprocessing,
            subject.mesh,
            self.batch_size,
            self.bad_images,
        )


class Examples:
    """All examples of a split in order; the last batch is padded."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        mesh: Mesh,
        batch_size: int,
        bad_images: str = "error",
    ):
        self.source, self._preprocessing, self._mesh = source, preprocessing, mesh
        self._rows = sharding.padded_batch_size(
            min(batch_size, max(len(source), 1)), mesh
        )
        self._bad_images = bad_images

    def __len__(self) -> int:
        return len(self.source)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch."""
        source = self.source
        return abstract_batch(
            self._preprocessing,
            self._rows,
            self._mesh,
            num_classes=source.num_classes * source.multi_label,
        )

    @contextlib.contextmanager
    def batches(self) -> Iterator[Iterator[dict[str, np.ndarray]]]:
        """The rows of each batch that belong to this process; see `eval_batches`."""
        with eval_batches(
            self.source,
            batch_size=self._rows,
            preprocessing=self._preprocessing,
            bad_images=self._bad_images,
            rows=sharding.local_rows(self._mesh, self._rows),
        ) as batches:
            yield batches

    def sums(self, step: Step, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Adds up what a step gives for every batch; see `add_up`.

        Raises:
          UserError: an image cannot be read, or none can.
        """
        with self.batches() as batches:
            totals = add_up(
                step, params, watch(batches), self._mesh, examples=len(self)
            )
        if not totals.get("examples"):
            raise UserError(
                f"none of the {len(self)} images to evaluate on can be read; check "
                "that the dataset was copied completely"
            )
        return totals


def add_up(
    step: Step,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    examples: int,
) -> dict[str, Any]:
    """The sums of a step over all batches, as float64 and int64 of NumPy.

    Args:
      step: parameters and a batch on the devices → sums by name, on every device;
        `examples` (evaluated) and `bad_images` (left out) among them.
      params: on the devices of the mesh.
      batches: this process's rows.
      mesh: the devices.
      examples: how many examples the data have. Fewer or more in the batches are a
        bug, and raise AssertionError.
    """
    totals: dict[str, Any] = {}
    waiting: Any = None
    for rows in batches:
        # Which examples they are is not the step's concern.
        step_rows = {name: x for name, x in rows.items() if name != "index"}
        sums = step(params, sharding.place(step_rows, mesh))
        # The sums of one batch are fetched while the next is being computed.
        _add(totals, waiting)
        waiting = sums
    _add(totals, waiting)
    counted, bad = (int(totals.get(name, 0)) for name in ("examples", "bad_images"))
    assert counted + bad == examples, (
        f"evaluated {counted} examples and skipped {bad}, but the data have {examples}"
    )
    return totals


def abstract_batch(
    preprocessing: Preprocessing, rows: int, mesh: Mesh, *, num_classes: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch of an evaluation.

    Args:
      preprocessing: of the images.
      rows: number of examples, padding included.
      mesh: the devices.
      num_classes: width of the labels where an image may have several; 0 = one label.
    """
    columns = {
        "image": ((*preprocessing.image_size, preprocessing.channels), jnp.uint8),
        "label": ((num_classes,), jnp.float32) if num_classes else ((), jnp.int32),
        "mask": ((), jnp.float32),
        "bad": ((), jnp.int32),
    }
    return sharding.abstract_batch(columns, rows, mesh)


def _add(totals: dict[str, Any], sums: Any) -> None:
    """Adds in float64 and int64: float32 would lose examples of a large set."""
    for name, value in jax.device_get(sums or {}).items():
        wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
        totals[name] = totals.get(name, 0) + value.astype(wide)
