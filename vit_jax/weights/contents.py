"""Parameters with the description that is needed to use them."""

from typing import Any, NamedTuple

from vit_jax.checkpoints.description import Description
from vit_jax.models import abstract_params


class Weights(NamedTuple):
    """Parameters, with the description that is needed to use them.

    If the description has a decoder, it is the subtree `DECODER` of the parameters.
    """

    description: Description
    params: Any  # nested dict of float32 numpy arrays


def split_params(weights: Weights) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits weights into the model's own parameters and those beside them."""
    names = abstract_params(weights.description.architecture)
    own, beside = {}, {}
    for name, value in weights.params.items():
        (own if name in names else beside)[name] = value
    return own, beside
