"""The adapter_config.json of PEFT: what an adapter computes, and which modules it has.

Its fields are those of LoraConfig in github.com/huggingface/peft (version 0.21.2,
src/peft/tuners/lora/config.py).
"""

import json
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.weights.files.directories import ADAPTER_CONFIG
from vit_jax.words import either, quoted

_LARGEST = 1 << 22  # bytes
_BIAS = ("none", "all", "lora_only")
# Initialisations that change the weights of the base, so that the adapter alone does
# not determine the model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNKNOWN_TO_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Fields that change what the model computes in ways that no adapter here has.
_UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "target_parameters": "adapters of single parameters",
    "trainable_token_indices": "trained tokens of a vocabulary",
    "layer_replication": "repeated layers",
    "megatron_config": "layers of Megatron",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Fields that matter in training only, or describe the file.
_HARMLESS = {
    *("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config"),
    *("fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_core", "peft_version", "qalora_group_size"),
    *("runtime_config", "task_type", "velora_config"),
}
_DEFAULT_ALPHA = 8  # PEFT's


class PeftConfig(NamedTuple):
    """A LoRA adapter's settings.

    Attributes:
      rank, alpha: r and α of all modules but those that a pattern names.
      rank_stabilized: α is divided by √r instead of r.
      targets: names of modules or their ends; one regular expression; None if the file
        does not say.
      excluded: likewise; these have no adapter.
      saved: names of modules that are saved whole.
      layers: numbers of the blocks with adapters; None for all.
      layers_patterns: names in front of these numbers; () for any.
      rank_patterns, alpha_patterns: regular expression of the end of a name → value.
      magnitudes: whether each output has a magnitude of its own (DoRA).
      base: name or path of the model below it; "" if unknown.
      revision: that of the base on the hub; "" for the newest.
    """

    rank: int
    alpha: float
    rank_stabilized: bool = False
    targets: tuple[str, ...] | str | None = None
    excluded: tuple[str, ...] | str = ()
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_patterns: tuple[str, ...] = ()
    rank_patterns: Mapping[str, int] = {}
    alpha_patterns: Mapping[str, float] = {}
    magnitudes: bool = False
    base: str = ""
    revision: str = ""

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's adapter."""
        return _matched(self.rank_patterns, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """Returns the factor of what a module's adapter adds."""
        alpha = _matched(self.alpha_patterns, module, self.alpha)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def has_adapter(self, module: str) -> bool:
        """Returns whether PEFT gives this module an adapter.

        The rules are those of `check_target_module_exists` in PEFT. True if the file
        does not say which modules are meant.
        """
        if _named(self.excluded, module) or any(
            re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved
        ):
            return False
        if self.targets is None:
            return True
        if not _named(self.targets, module):
            return False
        whole = isinstance(self.targets, str) or module in self.targets
        if whole or self.layers is None:
            return True
        starts = [rf"(?:^|.*?\.){start}" for start in self.layers_patterns]
        found = (
            re.match(rf"{start}\.(?P<number>\d+)\.", module)
            for start in starts or [r".*?\.[^.]*"]
        )
        number = next((int(match["number"]) for match in found if match), None)
        return number in self.layers


def read_config(folder: pathlib.Path) -> PeftConfig:
    """Reads adapter_config.json in a directory.

    Raises:
      UserError: it cannot be read, is that of another method than LoRA, or has fields
        that are missing, impossible or not supported. Lists all of them.
    """
    path = folder / ADAPTER_CONFIG
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): fetch the adapter again"
        ) from error
    if not isinstance(fields, dict) or "peft_type" not in fields:
        raise UserError(
            f"{path} is not the config of an adapter of PEFT: it has no 'peft_type'. "
            "Fetch the adapter again, or pass another directory"
        )
    kind = fields["peft_type"]
    if kind != "LORA":
        raise UserError(
            f"{path}: an adapter of the kind {quoted(str(kind))}; vit_jax reads those "
            "of the kind 'LORA'. Merge it into its model where it was trained, with "
            "merge_and_unload() of peft, and save the whole model"
        )
    if problems := [*_problems(fields)]:
        raise UserError(
            f"{path} describes no adapter that vit_jax can use:\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + "Fix these, or merge the adapter into its model where it was trained, "
            "with merge_and_unload() of peft, and save the whole model"
        )
    return _config(fields)


def _config(fields: Mapping[str, Any]) -> PeftConfig:
    layers = fields.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    targets = _names(fields.get("target_modules"))
    return PeftConfig(
        rank=fields["r"],
        alpha=fields.get("lora_alpha", _DEFAULT_ALPHA),
        rank_stabilized=bool(fields.get("use_rslora")),
        # PEFT replaces "all-linear" by names; another program may have left it.
        targets=None if targets == "all-linear" else targets or None,
        excluded=_names(fields.get("exclude_modules")),
        saved=tuple(fields.get("modules_to_save") or ()),
        layers=tuple(layers) if layers else None,
        layers_patterns=_listed(fields.get("layers_pattern")),
        rank_patterns=fields.get("rank_pattern") or {},
        alpha_patterns=fields.get("alpha_pattern") or {},
        magnitudes=bool(fields.get("use_dora")),
        base=fields.get("base_model_name_or_path") or "",
        revision=fields.get("revision") or "",
    )


def _names(value: Any) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(value or ())


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) and value else tuple(value or ())


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _named(names: Collection[str] | str, module: str) -> bool:
    """Returns whether a module is meant by a regular expression, a name or its end."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names)


def _problems(fields: Mapping[str, Any]):
    """Yields a sentence about each field that is wrong or not supported."""
    if "r" not in fields:
        yield "'r', the rank of the adapters, is missing"
    for name, (holds, expected) in _RULES.items():
        value = fields.get(name)
        if name in fields and not holds(value):
            yield f"{name} is {quoted(repr(value))}, expected {expected}"
    for name, what in _UNSUPPORTED.items():
        if fields.get(name):
            yield f"{name} asks for {what}, which vit_jax does not have"
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        yield (
            f"init_lora_weights is {start!r}, which changed the weights of the base: "
            "save the adapter with path_initial_model_for_weight_conversion= of peft"
        )
    elif not isinstance(start, bool) and start not in _UNKNOWN_TO_BASE:
        yield f"init_lora_weights is {quoted(repr(start))}, which is not known"
    known = {*_RULES, *_UNSUPPORTED, *_HARMLESS, "peft_type", "init_lora_weights"}
    for name, value in fields.items():
        if name not in known and value:
            yield (
                f"{quoted(name)} is {quoted(repr(value))}, and this release does not "
                "know what that changes: remove it if it changes nothing"
            )


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _names_or_pattern(value: Any) -> bool:
    pattern = isinstance(value, str) and _is_pattern(value)
    return value is None or pattern or _texts(value)


def _patterns_of(positive: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        value is None
        or (
            isinstance(value, dict)
            and all(map(_is_pattern, value))
            and all(map(positive, value.values()))
        )
    )


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_flag(value: Any) -> bool:
    return value is None or type(value) is bool


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


_NAMES = "a list of names of modules, or a regular expression"
# Field → the condition on its value, and the same in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number of 1 or more"),
    "lora_alpha": (_is_alpha, "a positive number"),
    "use_rslora": (_is_flag, "true or false"),
    "use_dora": (_is_flag, "true or false"),
    "lora_bias": (_is_flag, "true or false"),
    "bias": (lambda value: value in _BIAS, either(_BIAS)),
    "target_modules": (_names_or_pattern, _NAMES),
    "exclude_modules": (_names_or_pattern, _NAMES),
    "modules_to_save": (
        lambda value: value is None or (_texts(value) and all(map(_is_pattern, value))),
        "a list of names of modules",
    ),
    "layers_to_transform": (
        lambda value: (
            value is None
            or type(value) is int
            or (
                isinstance(value, list) and all(type(number) is int for number in value)
            )
        ),
        "numbers of blocks",
    ),
    "layers_pattern": (
        lambda value: (
            _names_or_pattern(value) and all(map(_is_pattern, _listed(value)))
        ),
        "names in front of the numbers of blocks",
    ),
    "rank_pattern": (
        _patterns_of(_is_rank),
        "a whole number of 1 or more for each name or pattern",
    ),
    "alpha_pattern": (
        _patterns_of(_is_alpha),
        "a positive number for each name or pattern",
    ),
    "base_model_name_or_path": (_is_text, "a name or a path"),
    "revision": (_is_text, "a revision on the hub"),
}
