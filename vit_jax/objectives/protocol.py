"""What a step minimises, behind one protocol; the step itself knows nothing of labels.

A step, for every objective:

    batch, key = objective.prepare(key, batch, choice)        the whole batch, once
    sums, additive = objective.loss(…)                        each microbatch
    params = update(params, gradient of the summed loss / its summed weight)
    state = objective.after(state, additive, params, step)    once

An objective is a class that is made from `Given`; `vit_jax.objectives.choosing` has the
table of names. Inherit from `Objective` for its defaults: only `inputs`, `init` and
`loss` have to be written.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from vit_jax.config import Config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.data.transforms.chains import Chain
from vit_jax.models import PatchModel, ViTOrMixer
from vit_jax.sharding import PlacedModel

Params = Any  # a tree of arrays
Batch = Mapping[str, Array]
# A sum over examples, and the sum of their weights, by which it is divided in the end.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Images(NamedTuple):
    """A column of the batch: one random view of each image, uint8 [b, h, w, c]."""

    transform: Chain
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example: (height, width, channels)."""
        return (*self.transform.image_size, self.channels)

    @property
    def dtype(self) -> Any:
        """Pixels cross to the device as they are."""
        return np.uint8


class Labels(NamedTuple):
    """The column `label`: int32 [b], or multi-hot float32 [b, classes]."""

    num_classes: int
    multi_label: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return (self.num_classes,) if self.multi_label else ()

    @property
    def dtype(self) -> Any:
        """Indices, or zeros and ones."""
        return np.float32 if self.multi_label else np.int32


class Given(NamedTuple):
    """What an objective is made from."""

    config: Config  # resolved
    info: DatasetInfo
    mesh: Mesh
    architecture: ViTOrMixer
    preprocessing: Preprocessing
    model: PatchModel  # of the architecture
    train_chain: Chain  # of `augment.train`, for the recipe's image size

    @property
    def placed_model(self) -> PlacedModel:
        """The model as a function of parameters that lie on the mesh."""
        return PlacedModel(self.model, self.mesh)


class Context(NamedTuple):
    """What a loss may read besides parameters and batch."""

    extra: Params  # as `Objective.extra` gives it, on the devices
    state: Any  # as it was before the step
    step: Array  # finished updates, int32
    choice: Hashable  # see `Objective.choice`


class Objective:
    """What a run minimises. Its methods are traced: pure functions of their arguments.

    Attributes:
      inputs: columns of the batch. Besides these a batch always has `mask` float32 [b],
        the weight of each example (0 = it does not count), and `bad` int32 [b].
      choices: all values that `choice` gives. The step is compiled once for each.
      sharding_rules: rows like those of `vit_jax.sharding.PARAMETERS`, for parameters
        and state that only this objective has.
    """

    inputs: Mapping[str, Images | Labels]
    choices: Sequence[Hashable] = (None,)
    sharding_rules: Sequence[tuple[str, tuple[Any, ...]]] = ()

    @staticmethod
    def num_classes(config: Config, info: DatasetInfo) -> int:
        """Outputs of the model's head for these data; 0 = the model has no head."""
        del config, info
        return 0

    def init(self, key: Key[Array, ""]) -> Params:
        """Random values of everything that is trained.

        The model's own parameters stand at the top, as `model.init` gives them;
        whatever else is trained (a decoder, a second head) is a subtree beside them. So
        the encoder of any run loads anywhere.
        """
        raise NotImplementedError

    def extra(self) -> Params:
        """What the loss reads and nothing changes, such as a teacher: NumPy arrays.

        It is spread over the mesh, passed to every step, and in no checkpoint.
        """
        return ()

    def init_state(self, params: Params) -> Any:
        """What `after` changes: a centre, an averaged teacher. Saved and resumed."""
        del params
        return ()

    def choice(self, step: int) -> Hashable:
        """What is fixed when step number `step` is compiled; one of `choices`."""
        del step
        return None

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Hashable
    ) -> tuple[Batch, Key[Array, ""]]:
        """Changes the whole batch, before it is divided into microbatches.

        Returns:
          The batch, and the key that is left for the loss.
        """
        del choice
        return batch, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Sums over the examples of a microbatch.

        Args:
          params: all parameters, those that are frozen too.
          batch: a part of the prepared batch.
          key: the microbatch's own.
          context: what else may be read.

        Returns:
          "loss", which is minimised, and metrics by name, each as (sum, weight): what
          is reported is their quotient over the whole batch. And a tree of sums for
          `after`, which is added up over the microbatches; () = none.
        """
        raise NotImplementedError

    def after(self, state: Any, additive: Any, params: Params, step: Array) -> Any:
        """The state after the update; not called for an update that is left out.

        Args:
          state: as the loss saw it.
          additive: the loss's second result, summed over the whole batch.
          params: after the update.
          step: finished updates, this one not counted.
        """
        del additive, params, step
        return state

    def models(self, params: Params, state: Any) -> Mapping[str, Params]:
        """Parameters of the model that are evaluated, by name.

        "" is the model that is trained; others are evaluated as the split "eval_NAME".
        Subtrees of the parameters that the model does not have are left out already.
        """
        del state
        return {"": params}


def shapes_of(objective: Objective) -> Params:
    """Shapes and dtypes of the parameters of an objective."""
    return jax.eval_shape(objective.init, jax.random.key(0))
