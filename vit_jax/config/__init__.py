"""Configuration: declared keys, derived values, and checks.

A recipe is a function `get_config(argument)` that starts from `default_config()` and
sets the keys that differ. The command line overrides it; then `resolve` fills in the
keys that depend on others, and `problems` lists everything that cannot work, before
anything is compiled.
"""

from vit_jax.config.combinations import problems, without_effect
from vit_jax.config.keys import (
    ARCHITECTURE_KEYS,
    FREE_TO_CHANGE,
    SIZE_KEYS,
    Config,
    default_config,
)
from vit_jax.config.length import override_length, resolve
from vit_jax.config.values import (
    as_flags,
    changed,
    flat_keys,
    image_size,
    to_plain,
    value_of,
    with_defaults,
)

__all__ = [
    "ARCHITECTURE_KEYS",
    "FREE_TO_CHANGE",
    "SIZE_KEYS",
    "Config",
    "as_flags",
    "changed",
    "default_config",
    "flat_keys",
    "image_size",
    "override_length",
    "problems",
    "resolve",
    "to_plain",
    "value_of",
    "with_defaults",
    "without_effect",
]
