"""Loading of weights from a work directory, a file, a published name or a URL."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from functools import partial
from typing import Any

from vit_jax.checkpoints.buckets import in_bucket
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.workdir import CHECKPOINTS, CONFIG_FILE, locate
from vit_jax.config import default_config, to_plain
from vit_jax.errors import UserError
from vit_jax.models import ViTOrMixer
from vit_jax.models.adapters import adapters_of, lora_of, merged_lora
from vit_jax.models.outputs import MEANINGS
from vit_jax.weights.adapter_directories import (
    adapter_folder,
    read_directory,
)
from vit_jax.weights.base import completed
from vit_jax.weights.contents import Weights
from vit_jax.weights.decoders import as_told, with_target
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
from vit_jax.weights.published.names import named_like
from vit_jax.words import plain, shortened

logger = logging.getLogger(__name__)

# In a bucket, a path that matches is a file to download; others are work directories.
_WEIGHT_FILE = re.compile(r"\.(npz|safetensors|bin|pth|pt|pth\.tar|ckpt)(#.*)?$")
# Names one of several models in a file, at the end of a source.
_ENTRY = re.compile(r"#entry=([^#]*)")


def load_weights(
    source: str | pathlib.Path,
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    trained_image_size: tuple[int, int] | None = None,
    ema: bool | float = True,
    entry: str = "",
    say_outputs: bool = False,
    decoder_heads: int | None = None,
    normalize_pixels: bool | None = None,
    base: str | pathlib.Path | None = None,
) -> Weights:
    """Reads weights; recognises the format by the content of the file.

    Args:
      source: a work directory (its newest checkpoint) or WORKDIR/checkpoints/STEP,
        also in a bucket (gs://, s3://); a file in our own, Google's, big_vision's,
        timm's, torchvision's, mmpretrain's or Hugging Face's format; a directory with
        such a file and its config.json; a directory with an adapter of PEFT, which is
        applied to its base; a published name, listed by `python -m
        vit_jax.models`; "hf:owner/name"; an https address. "#entry=NAME" at its end
        does the same as `entry`.
      num_heads: needed if the file does not record it.
      image_size: (height, width) at which the weights will be used. It determines the
        grid if the number of patches is not a square and nothing else determines it.
      trained_image_size: (height, width) at which the weights were trained, for a file
        that suggests a wrong grid.
      ema: read the averaged weights of a work directory if it has any; otherwise, or
        with False, the last ones. A number reads the average with that decay.
      entry: the name of the model to read from a file with several, such as "ema" or
        "teacher.backbone": keys of a PyTorch file, a prefix of the names, or both.
      say_outputs: log what the outputs are assumed to mean if nothing records it.
      decoder_heads: number of attention heads of a masked autoencoder's decoder; needed
        if the file does not record it and it is not the published 16.
      normalize_pixels: whether that decoder predicts pixels that are normalised within
        each patch, if the file does not record it.
      base: for a work directory that holds only adapters and a head, or a directory of
        PEFT: the weights that they were trained beside, if these are not in the place
        that it records.

    Raises:
      UserError: the source does not exist, is not one of these, is damaged, or was not
        trained with `num_heads` or at `trained_image_size`, or its decoder is another;
        or the base of its adapters cannot be read, or is another.
    """
    source, entry = _without_entry(source, entry)
    workdir = _workdir(source)
    if workdir is not None:
        path, step = workdir
        if entry:
            raise UserError(
                f"entry={entry!r}, but {path} is a work directory, which has no "
                "entries: omit it; ema=False (--raw) reads the last weights in place "
                "of the averaged ones"
            )
        # Imported here because importing Orbax takes longer than everything else.
        from vit_jax.checkpoints.reading import load_checkpoint

        description, params, averaged = load_checkpoint(path, step, ema=ema)
        if averaged:
            which = "" if isinstance(ema, bool) else f" with decay {ema}"
            logger.info(
                "%s, step %d: averaged weights%s used", path, description.step, which
            )
        architecture = description.architecture
        # An objective may train more than the model and its decoder, such as a second
        # head.
        names = description.param_shapes
        params = {name: value for name, value in params.items() if name in names}
        _check_told(architecture, path, num_heads, trained_image_size)
        if description.base:
            params = _with_base(description, params, path, base)
        else:
            _check_no_base(base, path)
        told = decoder_heads, normalize_pixels
        return Weights(as_told(description, path, *told), params)
    if not isinstance(ema, bool):
        raise UserError(
            f"ema={ema}, but {source} is not a work directory, whose averages have "
            "decays: omit it"
        )
    resolved = resolve(source)
    if folder := adapter_folder(resolved.path):
        if entry:
            raise UserError(
                f"entry={entry!r}, but {folder} holds a single adapter: omit it"
            )
        load_base = partial(
            load_weights,
            num_heads=num_heads,
            image_size=image_size,
            trained_image_size=trained_image_size,
            decoder_heads=decoder_heads,
            normalize_pixels=normalize_pixels,
        )
        return read_directory(folder, base, load_base)
    _check_no_base(base, source)
    file = weight_file(resolved.path)
    with open_tensors(file) as tensors:
        if is_single_file(tensors):
            if entry:
                raise UserError(
                    f"entry={entry!r}, but {file} holds a single model: omit it"
                )
            description, params = read_single_file(tensors)
            architecture = description.architecture
            _check_told(architecture, file, num_heads, trained_image_size)
            if resolved.published is not None:
                resolved.published.check(architecture, file)
            told = decoder_heads, normalize_pixels
            return Weights(as_told(description, file, *told), params)
        hints = Hints(
            # The embedded config first: one beside the file may be another model's.
            config=_embedded(tensors.metadata) or companion(file, "config.json"),
            preprocessor=companion(file, "preprocessor_config.json"),
            num_heads=num_heads,
            image_size=image_size,
            trained_image_size=trained_image_size,
            decoder_heads=decoder_heads,
        )
        reading, params = read_tensors(tensors, hints, entry)
    if resolved.published is not None:
        reading = resolved.published.complete(reading, file)
    _check_told(reading.architecture, file, num_heads, None)
    reading = with_target(reading, named_like(file), normalize_pixels)
    description = as_told(_described(reading), file, decoder_heads, normalize_pixels)
    sentences = [*reading.assumed, *(_about_outputs(reading) if say_outputs else ())]
    for sentence in sentences:
        logger.warning("%s: %s", file.name, sentence)
    return Weights(description, params)


def merged(weights: Weights) -> Weights:
    """Returns the weights of the same function without LoRA adapters."""
    description, params = weights.description, weights.params
    if not lora_of(description.architecture):
        logger.warning("there are no LoRA adapters to merge")
        return weights
    params, architecture = merged_lora(params, description.architecture)
    base = description.base if adapters_of(architecture) else {}
    description = dataclasses.replace(description, architecture=architecture, base=base)
    return Weights(description, params)


def _with_base(
    description: Description,
    trained: Any,
    path: pathlib.Path,
    base: str | pathlib.Path | None,
) -> dict[str, Any]:
    """Reads the base of adapters, and returns all parameters of the model.

    Raises:
      UserError: the base cannot be read, or is another.
    """
    recorded, config = description.base["source"], description.config
    source, size = base or recorded, config["image_size"]
    try:
        weights = load_weights(
            source,
            num_heads=config["model"]["num_heads"] or None,
            image_size=(size[0], size[-1]),
        )
    except UserError as error:
        raise UserError(
            f"{path} holds only what was trained beside pretrained weights, which are "
            f"needed to use it. They cannot be read from {source}: {error}\nIf they "
            "have moved, pass their place: base= in vit_jax.load, --base= in commands. "
            "To make weights that need no others: python -m vit_jax.convert "
            f"{path} WHOLE.safetensors --to=vit_jax --base=…"
        ) from error
    return completed(description, trained, weights, os.fspath(source))


def _check_no_base(base: str | pathlib.Path | None, source: str | pathlib.Path) -> None:
    """Raises UserError if a base was named for weights that are whole."""
    if base:
        raise UserError(
            f"base={os.fspath(base)!r}, but {source} holds all parameters of its "
            "model: omit it"
        )


def _without_entry(
    source: str | pathlib.Path, entry: str
) -> tuple[str | pathlib.Path, str]:
    """Splits the name of an entry off a source.

    Raises:
      UserError: `entry` names another one.
    """
    text = os.fspath(source)
    match = _ENTRY.search(text)
    if not match or os.path.exists(os.path.expanduser(text)):
        return source, entry
    if entry and match[1] != entry:
        raise UserError(
            f"entry={entry!r}, but {source} names the entry {match[1]!r}: pass one of "
            "them"
        )
    return _ENTRY.sub("", text), match[1]


def _described(reading: Reading) -> Description:
    """Turns what was read into a checkpoint's description; unknown values are defaults.

    The config's dataset is empty, because the weights were not trained here.
    """
    config = to_plain(default_config()) | {
        "dataset": "",
        "image_size": list(reading.architecture.image_size),
        "loss": MEANINGS[reading.outputs].loss or "softmax",
        "posemb_resize": reading.posemb_resize,
    }
    return Description(
        reading.architecture,
        reading.preprocessing,
        reading.class_names,
        config,
        step=0,
        outputs=reading.outputs,
        decoder=reading.decoder,
    )


def _about_outputs(reading: Reading) -> tuple[str, ...]:
    """Says what the outputs are assumed to mean; () if it is known."""
    classes = reading.architecture.num_classes
    if reading.outputs_known or not classes:
        return ()
    mean = "the model's output means"
    if classes > 1:
        mean = f"the model's {classes:,} outputs mean"
    return (
        f"nothing records what {mean}: assumed {MEANINGS[reading.outputs].words}; if "
        "that is wrong, pass outputs= (in commands --outputs=)",
    )


def _check_told(
    architecture: ViTOrMixer,
    path: pathlib.Path,
    num_heads: int | None,
    trained_image_size: tuple[int, int] | None,
) -> None:
    """Raises UserError if the caller's arguments contradict the weights."""
    heads = getattr(architecture, "num_heads", None)
    if num_heads is not None and num_heads != heads:
        raise UserError(
            f"num_heads={num_heads}, but the model in {path} has {heads or 'no'} "
            "attention heads; omit num_heads"
        )
    known = architecture.image_size
    if trained_image_size is not None and tuple(trained_image_size) != known:
        raise UserError(
            f"trained_image_size={trained_image_size}, but {path} records that it was "
            f"trained at {known}; omit trained_image_size"
        )


def _workdir(source: str | pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
    """Returns the work directory, and the step if any; None for any other source.

    The content of a directory counts more than its name.

    Raises:
      UserError: foreign models lie in the place of checkpoints.
    """
    if in_bucket(source) and not _WEIGHT_FILE.search(str(source)):
        path = locate(source)
        is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
        return (path.parent.parent, int(path.name)) if is_step else (path, None)
    # Absolute, so that "." and "10" have a parent.
    path = pathlib.Path(source).expanduser().absolute()
    is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
    workdir = path.parent if path.name == CHECKPOINTS else path
    # os.path and not pathlib, which raises if an address is too long for a path.
    if is_step and os.path.isdir(path.parent):
        foreign = os.path.isfile(path) or holds_model(path)
        return None if foreign else (path.parent.parent, int(path.name))
    if not os.path.isdir(path) or says_model(path):
        return None
    from vit_jax.checkpoints.reading import has_checkpoints

    if has_checkpoints(workdir):
        # Regardless of other files in it.
        return workdir, None
    if holds_model(path):
        return None
    checkpoints = workdir / CHECKPOINTS
    if checkpoints.is_dir():
        if holds_model(checkpoints):  # such as those of Lightning
            return None
        if models := [f.name for f in sorted(checkpoints.iterdir()) if holds_model(f)]:
            raise UserError(
                f"{checkpoints} holds foreign models but no checkpoint of vit_jax: "
                f"pass the path of one, such as {shortened(models, plain)} in it"
            )
        return workdir, None
    # A run that has saved nothing yet: reading it raises an error that says so.
    return (path, None) if (path / CONFIG_FILE).is_file() else None


def _embedded(metadata: Any) -> dict[str, Any]:
    """Returns the config that our timm export embeds in a single file; {} if none."""
    try:
        found = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if is_companion(found) else {}
