"""The examples of an evaluation, each exactly once, as batches on the devices."""

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
# Receives arrays with a row per example of a batch, as NumPy.
Columns = Callable[[Mapping[str, np.ndarray]], None]


class Data(NamedTuple):
    """The splits of one data set, which an evaluator may read.

    Attributes:
      open_split: returns the examples of a split.
      split: split to evaluate on.
      train_split: split to fit on, for an evaluator that fits something.
      batch_size: images per batch; rounded up to a multiple of the devices.
      bad_images: "error", or "skip" images that cannot be read.
      white_level: the value of white in deep images; 0 = that of the model's
        preprocessing.
      common: counts the examples that two splits have in common; by default none are
        known of.
    """

    open_split: Callable[[str], Source]
    split: str
    train_split: str
    batch_size: int
    bad_images: str = "error"
    white_level: float = 0.0
    common: Callable[[str, str], int] = lambda split, train_split: 0

    def examples(
        self,
        subject: Subject,
        split: str = "",
        relabelled: Callable[[Source], Source] | None = None,
    ) -> "Examples":
        """Returns the examples of a split.

        Args:
          subject: the model that will read them.
          split: by default the one to evaluate on.
          relabelled: changes the labels of the source, as `labels.by_output` does.
        """
        source = self.open_split(split or self.split)
        return Examples(
            relabelled(source) if relabelled else source,
            subject.preprocessing.for_white(self.white_level),
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
        """Returns the shapes, dtypes and shardings of a batch."""
        source = self.source
        return abstract_batch(
            self._preprocessing,
            self._rows,
            self._mesh,
            num_classes=source.num_classes * source.multi_label,
        )

    @contextlib.contextmanager
    def batches(self) -> Iterator[Iterator[dict[str, np.ndarray]]]:
        """Yields the batches, with this process's rows only; see `eval_batches`."""
        with eval_batches(
            self.source,
            batch_size=self._rows,
            preprocessing=self._preprocessing,
            bad_images=self._bad_images,
            rows=sharding.local_rows(self._mesh, self._rows),
        ) as batches:
            yield batches

    def sums(
        self,
        step: Step,
        params: Params,
        watch: Watch = iter,
        columns: Columns | None = None,
    ) -> dict[str, Any]:
        """Adds up a step's results over all batches; see `add_up`.

        Raises:
          UserError: an image cannot be read, or none can.
        """
        with self.batches() as batches:
            totals = add_up(
                *(step, params, watch(batches), self._mesh),
                examples=len(self),
                columns=columns,
            )
        if not totals.get("examples"):
            raise UserError(
                f"none of the {len(self)} evaluation images can be read; check that "
                "the dataset was copied completely"
            )
        return totals


def add_up(
    step: Step,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    examples: int,
    columns: Columns | None = None,
) -> dict[str, Any]:
    """Adds up a step's results over all batches, as NumPy float64 and int64.

    Args:
      step: parameters and a batch on the devices → sums by name, on every device,
        including `examples` (evaluated) and `bad_images` (skipped).
      params: parameters on the devices of the mesh.
      batches: this process's rows of each batch.
      mesh: the devices.
      examples: number of examples in the data. If the batches have fewer or more, that
        is a bug and raises AssertionError.
      columns: gets the arrays that the step returns under the name "columns", which
        have a row per example and are not added up.
    """
    totals: dict[str, Any] = {}
    waiting: Any = None
    for rows in batches:
        # The step does not need to know which examples these are.
        step_rows = {name: x for name, x in rows.items() if name != "index"}
        sums = step(params, sharding.place(step_rows, mesh))
        # Fetch the sums of one batch while the next is being computed.
        _add(totals, waiting, columns)
        waiting = sums
    _add(totals, waiting, columns)
    counted, bad = (int(totals.get(name, 0)) for name in ("examples", "bad_images"))
    assert counted + bad == examples, (
        f"evaluated {counted} examples and skipped {bad}, but the data have {examples}"
    )
    return totals


def abstract_batch(
    preprocessing: Preprocessing, rows: int, mesh: Mesh, *, num_classes: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of an evaluation batch.

    Args:
      preprocessing: the preprocessing of the images.
      rows: number of examples, including padding.
      mesh: the devices.
      num_classes: width of multi-hot labels; 0 = one label per image.
    """
    columns = {
        "image": ((*preprocessing.image_size, preprocessing.channels), jnp.uint8),
        "label": ((num_classes,), jnp.float32) if num_classes else ((), jnp.int32),
        "mask": ((), jnp.float32),
        "bad": ((), jnp.int32),
    }
    return sharding.abstract_batch(columns, rows, mesh)


def _add(totals: dict[str, Any], sums: Any, columns: Columns | None) -> None:
    """Adds `sums` to `totals` in float64 and int64; float32 would drop examples."""
    found = jax.device_get(sums or {})
    rows = found.pop("columns", None)
    if rows is not None and columns is not None:
        columns(rows)
    for name, value in found.items():
        wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
        totals[name] = totals.get(name, 0) + value.astype(wide)
