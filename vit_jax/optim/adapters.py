"""The freezing of everything beside a model's adapters."""

from collections.abc import Callable, Collection
from typing import Any

from vit_jax.models.adapters import adapters_of, is_adapter, is_head
from vit_jax.optim.groups import Groups


def beside_adapters(architecture: Any, model: Collection[str]) -> Callable[[str], bool]:
    """Returns a function that says which parameters rest beside a model's adapters.

    These are the model's own, except for the adapters and the head. Without adapters,
    none rests.

    Args:
      architecture: the model's architecture.
      model: names of the model's subtrees; others are the objective's.
    """
    if not adapters_of(architecture):
        return lambda _: False
    return lambda path: (
        path.partition("/")[0] in model and not is_adapter(path) and not is_head(path)
    )


def resting_adapters(architecture: Any, groups: Groups) -> list[str]:
    """Says which kinds of adapters are frozen, and so would have no effect.

    Args:
      architecture: the model's architecture.
      groups: how each parameter is trained.
    """
    of_path = groups.by_path
    return [
        f"{kind} has no effect: every parameter of these adapters is frozen, by groups "
        "or by the objective; train them, or leave out the adapters"
        for kind in adapters_of(architecture)
        if all(of_path[path].frozen for path in of_path if is_adapter(path, [kind]))
    ]
