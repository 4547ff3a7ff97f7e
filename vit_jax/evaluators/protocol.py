"""What is measured of a model, on a schedule or by command, behind one protocol.

An evaluator is a class that is made from a `Subject`, the `Data` it may read, and its
options; `vit_jax.evaluators.choosing` has the table of names. It gets the model, never
the run: so `python -m vit_jax.evaluate` measures exactly what training does.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from jax.sharding import Mesh

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.models import PatchModel, ViTOrMixer
from vit_jax.sharding import PlacedModel

Params = Any  # a tree of arrays
# Wraps the batches that are read; it may end the evaluation by an exception.
Watch = Callable[[Iterable[Any]], Iterable[Any]]


class Subject(NamedTuple):
    """The model to measure, and where it runs."""

    model: PatchModel
    preprocessing: Preprocessing
    mesh: Mesh
    class_names: tuple[str, ...] = ()  # of the head's outputs; () = unknown

    @property
    def architecture(self) -> ViTOrMixer:
        """Which function the model is."""
        return self.model.architecture

    @property
    def placed_model(self) -> PlacedModel:
        """The model as a function of parameters that lie on the mesh."""
        return PlacedModel(self.model, self.mesh)


class Evaluator:
    """Measures parameters of a model.

    Attributes:
      better: metric → 1.0 where greater is better, −1.0 where smaller is. The best
        checkpoint can be chosen by these.
    """

    better: ClassVar[Mapping[str, float]] = {}

    def compile(self, params: Params) -> None:
        """Compiles whatever runs on the devices, before the first step of training.

        Args:
          params: the model's, or their shapes with shardings.
        """

    def __call__(self, params: Params, watch: Watch = iter) -> dict[str, Any]:
        """Numbers by name.

        Args:
          params: the model's, on the devices of the mesh.
          watch: to be called with every iterable of batches.
        """
        raise NotImplementedError
