"""The form of an optimiser's row in the table, and what its parts are made from."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from vit_jax.config import Config
from vit_jax.optim.groups import Group


class Option(NamedTuple):
    """An option of one optimiser: a key of `config.optimizer_options`.

    Attributes:
      default: its value if it is not set; the type of other values.
      low: smallest value of a number.
      high: largest value of a number.
      choices: the values of text.
    """

    default: bool | int | float | str
    low: float = 0.0
    high: float = math.inf
    choices: tuple[str, ...] = ()


class RuleInputs(NamedTuple):
    """Everything that the parts of an optimiser may be made from.

    Attributes:
      config: a resolved config.
      options: all options of this optimiser by name, with defaults.
      dtype: dtype of the momentum.
      groups: path → how the parameter is trained.
      mesh: the devices that parameters are sharded over; None = they are whole.
    """

    config: Config
    options: Mapping[str, Any]
    dtype: Any
    groups: Mapping[str, Group]
    mesh: Mesh | None = None


Part = Callable[[RuleInputs], optax.GradientTransformation]


class Rule(NamedTuple):
    """One optimiser, in the two parts of it that weight decay comes between.

    Attributes:
      before: makes the transformation of gradients.
      source: where it is published.
      reads: the keys of the config that it reads, among `READ_BY_SOME`.
      options: its own options by name; the config's values are `optimizer_options`.
      after: makes the transformation of the result with its weight decay; None = there
        is nothing to do.
      decay_in_norms: whether `after` divides by a norm that weight decay is part of.
      averages: whether it averages the parameters, and these averages are to be used in
        place of those that are trained; see `vit_jax.optim.schedule_free`.
    """

    before: Part
    source: str
    reads: tuple[str, ...] = ()
    options: Mapping[str, Option] = MappingProxyType({})
    after: Part | None = None
    decay_in_norms: bool = False
    averages: bool = False


# Keys of the config that some optimisers read and others do not.
READ_BY_SOME = ("b1", "b2", "eps", "momentum", "momentum_dtype")
