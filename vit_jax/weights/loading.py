"""Reads weights from wherever they are: a work directory, a file, a name, a URL."""

import json
import logging
import os
import pathlib
import re
from typing import Any, NamedTuple

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import CHECKPOINTS, CONFIG_FILE, locate
from vit_jax.config import default_config, to_plain
from vit_jax.errors import UserError
from vit_jax.models import ViTOrMixer, abstract_params
from vit_jax.weights.files.directories import (
    companion,
    holds_model,
    is_companion,
    says_model,
    weight_file,
)
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, Reading
from vit_jax.weights.formats.single_file import is_single_file, read_single_file
from vit_jax.weights.published.download import resolve
from vit_jax.words import plain, shortened

logger = logging.getLogger(__name__)

# In a bucket: a file to download, and no work directory.
_WEIGHT_FILE = re.compile(r"\.(npz|safetensors|bin|pth|pt)(#.*)?$")


class Weights(NamedTuple):
    """Parameters, and what they need to be used."""

    description: Description
    params: Any  # nested dict of float32 numpy arrays


def load_weights(
    source: str | pathlib.Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    trained_image_size: tuple[int, int] | None = None,
    ema: bool = True,
) -> Weights:
    """Reads weights; the format is recognised by what the file holds.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP,
        also in a bucket (gs://, s3://); a file in our own, Google's, big_vision's,
        timm's or Hugging Face's format; a directory with such a file and its
        config.json; a published name, see `python -m vit_jax.models`; "hf:owner/name";
        an https address.
      num_heads: for a file that does not say it.
      image_size: (height, width) that they are wanted for. It tells the grid of patches
        where their number is no square and nothing else does.
      trained_image_size: (height, width) that the weights were trained at, for a file
        whose grid is none of what it looks like.
      ema: the averaged weights of a work directory, if it has any; else the last ones.

    Raises:
      UserError: nothing is there, or it is none of these, or it is damaged, or was not
        trained at that size.
    """
    workdir = _workdir(source)
    if workdir is not None:
        path, step = workdir
        # Imported where it is used: Orbax takes longer than all the rest.
        from vit_jax.checkpoints.reading import load_checkpoint

        description, params, averaged = load_checkpoint(path, step, ema=ema)
        if averaged:
            logger.info("%s, step %d: the averaged weights", path, description.step)
        architecture = description.architecture
        # An objective may have trained more than the model: a decoder, a second head.
        names = abstract_params(architecture)
        params = {name: value for name, value in params.items() if name in names}
        weights = Weights(description, params)
        _check_told(architecture, path, num_heads, trained_image_size)
        return weights
    resolved = resolve(source)
    file = weight_file(resolved.path)
    with open_tensors(file) as tensors:
        if is_single_file(tensors):
            weights = Weights(*read_single_file(tensors))
            architecture = weights.description.architecture
            _check_told(architecture, file, num_heads, trained_image_size)
            if resolved.published is not None:
                resolved.published.check(architecture, file)
            return weights
        hints = Hints(
            # The file's own first: what lies beside it may be another's.
            config=_embedded(tensors.metadata) or companion(file, "config.json"),
            preprocessor=companion(file, "preprocessor_config.json"),
            num_heads=num_heads,
            image_size=image_size,
            trained_image_size=trained_image_size,
        )
        reading, params = read_tensors(tensors, hints)
    if resolved.published is not None:
        reading = resolved.published.complete(reading, file)
    _check_told(reading.architecture, file, num_heads, None)
    for sentence in reading.assumed:
        logger.warning("%s: %s", file.name, sentence)
    return Weights(_described(reading), params)


def _described(reading: Reading) -> Description:
    """As a checkpoint of ours says it, with the defaults for what nobody said."""
    config = to_plain(default_config()) | {
        "dataset": "",
        "image_size": list(reading.architecture.image_size),
        "loss": reading.loss,
        "posemb_resize": reading.posemb_resize,
    }
    return Description(
        reading.architecture, reading.preprocessing, reading.class_names, config, step=0
    )


def _check_told(
    architecture: ViTOrMixer,
    path: pathlib.Path,
    num_heads: int | None,
    trained_image_size: tuple[int, int] | None,
) -> None:
    """Refuses what the caller says otherwise than the weights do."""
    heads = getattr(architecture, "num_heads", None)
    if num_heads is not None and num_heads != heads:
        raise UserError(
            f"num_heads={num_heads}, but {path} is of a model with "
            f"{heads or 'no'} attention heads; leave num_heads out"
        )
    known = architecture.image_size
    if trained_image_size is not None and tuple(trained_image_size) != known:
        raise UserError(
            f"trained_image_size={trained_image_size}, but {path} says that it was "
            f"trained at {known}; leave trained_image_size out"
        )


def _workdir(source: str | pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
    """The work directory, and the step if the path names one; None if it is none.

    What lies there comes before what it is called.

    Raises:
      UserError: models of others are in it, called as steps are.
    """
    if in_bucket(source) and not _WEIGHT_FILE.search(str(source)):
        path = locate(source)
        is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
        return (path.parent.parent, int(path.name)) if is_step else (path, None)
    # Absolute, so that "." and "10" have a parent.
    path = pathlib.Path(source).expanduser().absolute()
    is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
    workdir = path.parent if path.name == CHECKPOINTS else path
    # By os.path, which finds nothing at an address that is too long for a path.
    if is_step and os.path.isdir(path.parent):
        foreign = os.path.isfile(path) or holds_model(path)
        return None if foreign else (path.parent.parent, int(path.name))
    if not os.path.isdir(path) or says_model(path):
        return None
    from vit_jax.checkpoints.reading import has_checkpoints

    if has_checkpoints(workdir):
        # Whatever else somebody has put there.
        return workdir, None
    if holds_model(path):
        return None
    checkpoints = workdir / CHECKPOINTS
    if checkpoints.is_dir():
        if models := [f.name for f in sorted(checkpoints.iterdir()) if holds_model(f)]:
            raise UserError(
                f"{checkpoints} holds models of others and no checkpoint of vit_jax: "
                f"pass one of them, {shortened(models, plain)} in it"
            )
        return workdir, None
    # Claimed by a run that has saved nothing yet: its own error says so.
    return (path, None) if (path / CONFIG_FILE).is_file() else None


def _embedded(metadata: Any) -> dict[str, Any]:
    """The config that our timm export puts into a file that has none beside it."""
    try:
        found = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if is_companion(found) else {}
