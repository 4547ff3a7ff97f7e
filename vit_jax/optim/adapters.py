"""The freezing of everything beside a model's adapters."""

from collections.abc import Callable, Collection
from typing import Any

from vit_jax.checkpoints.description import Description
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


def resting_adapters(
    architecture: Any, groups: Groups, pretrained: Description | None = None
) -> list[str]:
    """Says which kinds of new adapters are frozen, and so would learn nothing.

    Args:
      architecture: the model's architecture.
      groups: how each parameter is trained.
      pretrained: description of the weights that it starts from, whose own adapters may
        be frozen; None = not known.
    """
    of_path = groups.by_path
    theirs = adapters_of(pretrained.architecture) if pretrained else ()
    return [
        f"{kind} has no effect: every parameter of these adapters is frozen, by "
        'train_only, freeze, groups or the objective; add "adapters" to train_only, or '
        "use none"
        for kind in adapters_of(architecture)
        if kind not in theirs
        if all(of_path[path].frozen for path in of_path if is_adapter(path, [kind]))
    ]
