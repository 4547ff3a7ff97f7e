"""Names under which training scripts save a model's weights, and their order.

A file may hold several models: a state dict and its moving average, a teacher and a
student. Each lies in an entry of a PyTorch file or behind a prefix of the names.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# In order of preference. A moving average comes before the weights themselves, which is
# the order of timm's loader.
_USUAL = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "module",
    "net",
)
# Names that were added later come after them, so that a file is read as it was before.
_LATER = (
    "params_ema",
    "ema",
    "ema_state_dict",
    "ema_model",
    "model_ema_state_dict",
    "averaged_model",
    "params",
    "network",
    "weights",
    "model_state",
    "net_state_dict",
    "target_encoder",
    "teacher_model",
    "img",
    "image_encoder",
    "visual",
    "vision",
    "encoder",
    "backbone",
    "base_encoder",
    "student",
    "student_model",
    "momentum_encoder",
)
_ORDER = {name: rank for rank, name in enumerate((*_USUAL, *_LATER))}
# The model itself comes after the usual entries beside it, before all other ones.
_ITSELF, _UNKNOWN = len(_ORDER), len(_ORDER) + 1
# Averages and teachers, which are preferred only to a model of the same sizes.
_AVERAGES = re.compile(r"ema$|ema_|averaged|teacher|target|momentum")
# The state of training: moments of an optimizer, gradients, schedules.
_TRAINING = re.compile(
    r"(?i)optim|opt$|opt_state|sched|scaler|grad|momentum_buffer|exp_avg|^[mn]u$|"
    r"^trace$|^param_states$|^amp$"
)
_DEEPEST = 4  # keys on the way to a state dict
_LONGEST_LIST = 16  # items of a list in which state dicts are looked for
_LARGEST_HEAD = 8  # tensors of a head that is saved beside its model


def rank(parts: Sequence[str]) -> tuple[int, ...]:
    """Returns the rank of an entry with these keys; lower is preferred.

    Two entries have the same rank if nothing is known about either name.
    """
    return (*(_ORDER.get(part, _UNKNOWN) for part in parts), _ITSELF)


def is_average(part: str) -> bool:
    """Returns whether a key is that of a moving average or a teacher."""
    return bool(_AVERAGES.search(part))


def is_training_state(parts: Sequence[str]) -> bool:
    """Returns whether an entry holds the state of an optimizer rather than weights."""
    # Old checkpoints of Flax hold the weights at optimizer/target.
    return any(
        _TRAINING.search(part) and "target" not in parts[i + 1 : i + 2]
        for i, part in enumerate(parts)
    )


def is_head(part: str) -> bool:
    """Returns whether a module's name is that of a classifier on top of a model."""
    words = set(re.split(r"[_\d]+", part.lower()))
    return bool(words & _CLASSIFIERS) and not words & _NO_CLASSIFIERS


def says_head(part: str) -> bool:
    """Returns whether a module's name is that of a head of any kind."""
    words = set(re.split(r"[_\d]+", part.lower()))
    return bool(words & _CLASSIFIERS) and not words & _BELOW


def is_above(part: str) -> bool:
    """Returns whether a module lies above the encoder, such as a head or decoder."""
    words = set(re.split(r"[_\d]+", part.lower()))
    return bool(words & (_CLASSIFIERS | _ABOVE)) and not words & _BELOW


def is_neck(part: str) -> bool:
    """Returns whether a module's name is that of a layer before a head."""
    words = set(re.split(r"[_\d]+", part.lower()))
    return bool(words & _NECKS) and not words & _BELOW


def may_lie_between(part: str) -> bool:
    """Returns whether a module beside an encoder may lie between it and its head.

    Losses, decoders and other parts that training needs do not.
    """
    words = set(re.split(r"[_\d]+", part.lower()))
    return not words & (_ABOVE - _NECKS)


_CLASSIFIERS = {
    *("head", "heads", "fc", "classifier", "classifiers", "classification", "linear"),
    *("logits", "lin", "classify", "clf", "classes", "labels", "label"),
    *("output", "outputs", "out", "final", "last", "top", "probe", "prediction"),
    *("dense", "mlp"),
}
_NECKS = {"neck", "proj", "projection", "projections", "projector"}
_ABOVE = {
    *_NECKS,
    *("predictor", "predictors"),
    *("predictions", "decoder", "prototypes", "prototype", "logit", "dino"),
    *("ibot", "loss", "criterion", "center", "queue", "bank", "koleo", "text", "lm"),
    *("generator", "discriminator", "metric", "metrics"),
}
# A name with one of these is part of the encoder, whatever else it says.
_BELOW = {
    *("norm", "embed", "embedding", "embeddings", "token", "tokens", "pos", "pre"),
    *("ln", "bn", "layernorm", "batchnorm"),
    *("stem", "conv", "patch", "patches", "in", "input", "qkv"),
}
_NO_CLASSIFIERS = {*_BELOW, *_ABOVE}


def find_entries(saved: Any, is_tensor: Any) -> dict[str, dict[str, Any]]:
    """Finds the dicts of tensors in a saved object, the most likely model first.

    A head that was saved beside its model, as in {"backbone": …, "head": …}, is added
    to the entry with names such as "head.weight".

    Args:
      saved: what the file holds.
      is_tensor: value → whether it is a tensor.

    Returns:
      {keys joined by "/", "" = the saved object itself: its values by name}.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: set[int] = set()  # an object may contain itself, or one object very often

    def visit(node: Any, path: tuple[str, ...], beside: Mapping[str, Any]) -> None:
        if id(node) in seen or len(path) > _DEEPEST:
            return
        seen.add(id(node))
        children = _children(node)
        if isinstance(node, dict) and any(map(is_tensor, node.values())):
            found[path] = {**children, **_heads(beside, children, is_tensor)}
        for key in sorted(children, key=lambda key: _ORDER.get(key, _UNKNOWN)):
            if not is_training_state((key,)):
                visit(children[key], (*path, key), {**children, key: None})

    visit(saved, (), {})
    return {"/".join(path): found[path] for path in sorted(found, key=rank)}


def _children(node: Any) -> dict[str, Any]:
    # A tensor is a named tuple.
    if type(node) in (list, tuple) and len(node) <= _LONGEST_LIST:
        return {str(index): value for index, value in enumerate(node)}
    return node if isinstance(node, dict) else {}


def _heads(
    beside: Mapping[str, Any], own: Mapping[str, Any], is_tensor: Any
) -> dict[str, Any]:
    """Collects the tensors of heads beside a state dict that has none."""
    heads = {}
    for key, value in beside.items():
        small = isinstance(value, dict) and 0 < len(value) <= _LARGEST_HEAD
        if small and is_head(key) and all(map(is_tensor, value.values())):
            heads |= {f"{key}.{leaf}": tensor for leaf, tensor in value.items()}
    return {} if any(is_head(name.partition(".")[0]) for name in own) else heads
