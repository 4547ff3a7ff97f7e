"""The protocol of evaluators, which measure a model on a schedule or by command.

An evaluator is a class that is constructed from a `Subject`, the `Data` it may read,
and its options; `vit_jax.evaluators.choosing` has the table of names. It gets the
model, never the run, so `python -m vit_jax.evaluate` measures exactly what training
does.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from jax.sharding import Mesh

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import PatchModel, ViTOrMixer
from vit_jax.models.outputs import EXCLUSIVE
from vit_jax.sharding import PlacedModel

Params = Any  # a tree of arrays
# Wraps the batches that are read; it may end the evaluation by raising an exception.
Watch = Callable[[Iterable[Any]], Iterable[Any]]


class Subject(NamedTuple):
    """The model to measure, and the devices it runs on."""

    model: PatchModel
    preprocessing: Preprocessing
    mesh: Mesh
    class_names: tuple[str, ...] = ()  # in the order of the logits; () = unknown
    outputs: str = EXCLUSIVE  # what the outputs mean, a key of `MEANINGS`
    # Metrics that decide something, such as which checkpoint is the best. An evaluator
    # may leave out others if they are expensive, but never one of these.
    wanted: frozenset[str] = frozenset()

    @property
    def architecture(self) -> ViTOrMixer:
        """The function that the model computes."""
        return self.model.architecture

    @property
    def placed_model(self) -> PlacedModel:
        """The model as a function of parameters that are sharded over the mesh."""
        return PlacedModel(self.model, self.mesh)


class Evaluator:
    """The base class of evaluators, which measure parameters of a model.

    Attributes:
      better: metric → 1.0 if larger is better, −1.0 if smaller is. Any of these metrics
        can decide which checkpoint is best.
      reads_labels: whether it reads the labels of its data. If so, it is left out of a
        run whose data have none, unless its row names others.
    """

    reads_labels: ClassVar[bool] = True
    better: ClassVar[Mapping[str, float]] = {}

    def compile(self, params: Params) -> None:
        """Compiles whatever runs on the devices, before the first training step.

        Args:
          params: the model's parameters, or their shapes with shardings.
        """

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Measures the model and returns numbers by name.

        Args:
          params: the model's parameters, on the devices of the mesh.
          watch: must be called on every iterable of batches.
        """
        raise NotImplementedError
