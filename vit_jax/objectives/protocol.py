"""The protocol of objectives, so that the step itself knows nothing about labels.

A step does this for every objective:

    batch, key = objective.prepare(key, batch, choice)        the whole batch, once
    sums, additive = objective.loss(…)                        each microbatch
    params = update(params, gradient of the summed loss / its summed weight)
    state = objective.after(state, additive, params, step)    once

An objective is a class that is constructed from `Given`; `vit_jax.objectives.choosing`
has the table of names. Inherit from `Objective` for its defaults: only `inputs`, `init`
and `loss` have to be written.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from vit_jax.checkpoints.description import MODEL, Description
from vit_jax.config import Config
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.data.transforms.chains import Chain
from vit_jax.models import PatchModel, ViTOrMixer
from vit_jax.models.decoder import DecoderFacts
from vit_jax.models.outputs import of_loss
from vit_jax.objectives.flexible import DrawnSizes
from vit_jax.sharding import PlacedModel

Params = Any  # a tree of arrays
Batch = Mapping[str, Array]
# A sum over examples, and the sum of their weights, by which it is finally divided.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Images(NamedTuple):
    """A batch column with one random view of each image, uint8 [b, h, w, c].

    Attributes:
      transform: makes the view.
      channels: number of channels.
      aligned: repeat the random draws of the first column, instead of drawing anew:
        the same part of the image at another size.
    """

    transform: Chain
    channels: int
    aligned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (height, width, channels)."""
        return (*self.transform.image_size, self.channels)

    @property
    def dtype(self) -> Any:
        """uint8: pixels are transferred to the device unconverted."""
        return np.uint8


class Labels(NamedTuple):
    """The column `label`: int32 [b], or multi-hot float32 [b, classes]."""

    num_classes: int
    multi_label: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (classes,) for multi-hot labels, else ()."""
        return (self.num_classes,) if self.multi_label else ()

    @property
    def dtype(self) -> Any:
        """int32 for class indices, float32 for multi-hot labels."""
        return np.float32 if self.multi_label else np.int32


class Given(NamedTuple):
    """The arguments that an objective is constructed from."""

    config: Config  # resolved
    info: DatasetInfo
    mesh: Mesh
    architecture: ViTOrMixer
    preprocessing: Preprocessing
    model: PatchModel  # the module of the architecture
    train_chain: Chain  # `augment.train` for the recipe's image size
    # Counts the training examples of each class, float64 [k]; may take a while.
    class_counts: Callable[[], np.ndarray]

    @property
    def placed_model(self) -> PlacedModel:
        """The model as a function of parameters that are sharded over the mesh."""
        return PlacedModel(self.model, self.mesh)


class Context(NamedTuple):
    """The values that a loss may read in addition to parameters and batch."""

    extra: Params  # what `Objective.extra` returns, on the devices
    state: Any  # the objective's state before the step
    step: Array  # finished updates, int32
    choice: Hashable  # see `Objective.choice`


# Keys of the config that only some objectives read: those from labels to a loss.
OPTIONAL_KEYS = (
    *("loss", "loss_options", "label_smoothing"),
    *("mixing.mixup_alpha", "mixing.cutmix_alpha", "mixing.erasing_prob"),
    "mixing.binary_targets",
)


class Objective:
    """The base class of everything that a run can minimise.

    Its methods are traced, so they must be pure functions of their arguments.

    Attributes:
      inputs: columns of the batch. A batch also always has `mask` float32 [b], the
        weight of each example (0 = it does not count), and `bad` int32 [b].
      choices: all values that `choice` returns. The step is compiled once for each.
      sharding_rules: rows like those of `vit_jax.sharding.PARAMETERS`, for parameters
        and state that only this objective has.
      groups: regular expression for the whole paths of parameters → their settings, by
        the names of `vit_jax.optim.groups.Group`. Rows of `config.groups` may replace
        them, but what is frozen here stays so.
      reads_schedule: whether it reads the length of the run or other keys of the
        learning rate. If not, a run may become longer, provided that the steps already
        made keep their rates.
      reads: which of `OPTIONAL_KEYS` it reads. If the config sets another one of them,
        it is refused.
      locations: keys of the config that only say where to find what `facts` identify.
        They may differ when a run resumes.
      flexible: whether it computes the model at the patch size that is the step's
        choice (`vit_jax.objectives.flexible.at`). If not, `config.flexible` is refused.
      patch_sizes: these sizes, set by `make_objective`; None = the choice is its own.
    """

    inputs: Mapping[str, Images | Labels]
    choices: Sequence[Hashable] = (None,)
    sharding_rules: Sequence[tuple[str, tuple[Any, ...]]] = ()
    groups: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    reads_schedule: bool = True
    reads: Collection[str] = ("loss",)
    locations: Sequence[str] = ()
    flexible: bool = False
    patch_sizes: DrawnSizes | None = None

    @staticmethod
    def num_classes(config: Config, info: DatasetInfo) -> int:
        """Returns the number of head outputs for these data; 0 = no head."""
        del config, info
        return 0

    @staticmethod
    def outputs(config: Config) -> str:
        """Returns what the head's outputs mean: a key of `MEANINGS`.

        It is saved with the model; see `vit_jax.models.outputs`.
        """
        return of_loss(config.loss)

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws random values for everything that is trained.

        The model's own parameters are at the top level, as `model.init` returns them;
        whatever else is trained (a decoder, a second head) is a subtree beside them. So
        the encoder of any run loads anywhere.
        """
        raise NotImplementedError

    def decoder_facts(self) -> DecoderFacts | None:
        """Describes the decoder among the parameters, for the checkpoints.

        Its parameters are the subtree "decoder". None if there is no decoder from which
        a saved model can reconstruct images.
        """
        return None

    def adopt(self, params: Params, description: Description) -> Params:
        """Takes what it trains beside the model from pretrained weights.

        Args:
          params: the subtrees of the weights that are not the model's own.
          description: that of the weights.

        Returns:
          Subtrees of what `init` draws; those that are left out start at random.

        Raises:
          UserError: lists why a subtree cannot be continued.
        """
        del params, description
        return {}

    def extra(self) -> Params:
        """Returns constants that the loss reads, such as a teacher, as NumPy arrays.

        They are sharded over the mesh, passed to every step, and saved in no
        checkpoint.
        """
        return ()

    def facts(self) -> dict[str, Any]:
        """Returns JSON values that identify what was read besides data and weights.

        A teacher's checksum, for example. They are recorded in checkpoints, and a run
        does not resume with others.
        """
        return {}

    def init_state(self, params: Params) -> Any:
        """Makes the state that `after` updates: a centre, an averaged teacher.

        It is saved in checkpoints and restored when a run resumes. If it is a dict with
        the key `MODEL`, that is a tree of some or all of the model's top-level
        subtrees, which are used in place of the trained ones wherever the model is
        evaluated, loaded or fine-tuned.
        """
        del params
        return ()

    def choice(self, step: int) -> Hashable:
        """Returns the static choice for step number `step`, one of `choices`."""
        return None if self.patch_sizes is None else self.patch_sizes(step)

    def prepare(
        self, key: Key[Array, ""], batch: Batch, choice: Hashable
    ) -> tuple[Batch, Key[Array, ""]]:
        """Changes the whole batch before it is divided into microbatches.

        Returns:
          The batch, and the key that remains for the loss.
        """
        del choice
        return batch, key

    def loss(
        self, params: Params, batch: Batch, key: Key[Array, ""], context: Context
    ) -> tuple[Sums, Any]:
        """Computes sums over the examples of a microbatch.

        Args:
          params: all parameters, including frozen ones.
          batch: a part of the prepared batch.
          key: the microbatch's own key.
          context: what else the loss may read.

        Returns:
          "loss", which is minimised, and metrics by name, each as (sum, weight); their
          quotient over the whole batch is reported. Also a tree of sums for `after`,
          which is added up over the microbatches; () = none.
        """
        raise NotImplementedError

    def after(self, state: Any, additive: Any, params: Params, step: Array) -> Any:
        """Returns the state after the update; has no effect if the update is skipped.

        Args:
          state: the state that the loss saw.
          additive: the loss's second result, summed over the whole batch.
          params: parameters after the update.
          step: finished updates, not counting this one.
        """
        del additive, params, step
        return state

    def models(self, params: Params, state: Any) -> Mapping[str, Params]:
        """Returns the sets of model parameters to evaluate, by name.

        "" is the model as it will be loaded; others are evaluated as the split
        "eval_NAME". `params` holds only the subtrees that the model has.
        """
        return {"": served(params, state)}


def served(params: Params, state: Any) -> Params:
    """Replaces subtrees of the model by those in an objective's state, if any."""
    return params | state.get(MODEL, {}) if isinstance(state, dict) else params


def shapes_of(objective: Objective) -> Params:
    """Returns the shapes and dtypes of an objective's parameters."""
    # Within the trace: outside of it the key would be compiled and computed.
    return jax.eval_shape(lambda: objective.init(jax.random.key(0)))
