"""A fingerprint of a model: equal for models that predict the same."""

import json
from typing import Any

import jax
import numpy as np

from vit_jax.data.hashing import digest


def fingerprint(params: Any, **facts: Any) -> str:
    """Returns a checksum of parameters and of JSON values that matter beside them."""
    values: list[np.ndarray | str] = [json.dumps(facts, sort_keys=True)]
    for path, leaf in jax.tree.leaves_with_path(params):
        values += [jax.tree_util.keystr(path), np.asarray(leaf)]
    return digest(*values)
