"""Access to the values of a config, and copies with other values."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config.keys import Config, default_config


def image_size(config: Config) -> tuple[int, int]:
    """Returns the image size as (height, width)."""
    return (config.image_size[0], config.image_size[-1])


def value_of(config: Config, dotted: str) -> Any:
    """Looks up the value of a key by its dotted name."""
    for part in dotted.split("."):
        config = config[part]
    return config


def is_default(config: Config, dotted: str) -> bool:
    """Returns whether a key, by its dotted name, has its default value."""
    ours, usual = (value_of(c, dotted) for c in (config, default_config()))
    return _comparable(ours) == _comparable(usual)


def _comparable(value: Any) -> Any:
    """Makes values equal that differ only in how they are held.

    Sections that are not locked differ from locked ones, and lists, which JSON has in
    place of tuples, from these.
    """
    if isinstance(value, ConfigDict):
        return value.to_dict()
    return tuple(map(_comparable, value)) if isinstance(value, list | tuple) else value


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Copies the config with other values of some keys, by dotted name."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(values))
    return config


def with_defaults(config: Config, keys: Iterable[str]) -> Config:
    """Copies the config with some of its keys, by dotted name, at their defaults."""
    default = default_config()
    return changed(config, {key: value_of(default, key) for key in keys})


def as_flags(values: Mapping[str, Any]) -> str:
    """Writes values by dotted name as command-line flags."""
    return " ".join(
        shlex.quote(f"--config.{key}={value}") for key, value in values.items()
    )


def to_plain(config: Config) -> dict[str, Any]:
    """Converts the config to a nested dict of JSON values."""
    return json.loads(config.to_json())


def flat_keys(config: Config) -> list[str]:
    """Lists all dotted key names."""
    return [
        f"{key}.{inner}" if inner else key
        for key, value in config.items()
        for inner in (flat_keys(value) if isinstance(value, ConfigDict) else [""])
    ]
