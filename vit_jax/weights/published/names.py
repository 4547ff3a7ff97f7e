"""Lookup of published weights by name or address."""

import dataclasses
import logging
import pathlib
import re
import urllib.parse

from vit_jax.errors import UserError
from vit_jax.weights.files.directories import ADAPTER_FILES
from vit_jax.weights.published.families import Published
from vit_jax.weights.published.zoo import HUB, MODELS, augreg, on_hub
from vit_jax.words import did_you_mean

logger = logging.getLogger(__name__)

# Files to try on the hub, in this order.
_HUB_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_HUB_NAME = re.compile(r"hf:(?://)?([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?")


def find(name: str) -> Published:
    """Finds published weights by name.

    Args:
      name: a row of the table (`python -m vit_jax.models` lists them); any AugReg file
        name; a bare variant such as "B/16" or "R50+L/32", which means the recommended
        ImageNet-21k weights; a name of timm with or without "timm/" and tag; one of
        Google's file names such as "ViT-B_16.npz"; "hf:OWNER/NAME[@REVISION][/FILE]".

    Raises:
      UserError: the name is unknown; lists the nearest names and other kinds of source.
    """
    if name.startswith("hf:"):
        return _in_hub(name)
    plain = re.sub(r"\.(npz|pth)$", "", name).removeprefix("timm/")
    if row := MODELS.get(plain) or augreg(plain):
        return row
    other = (
        _RECOMMENDED.get(plain) or _DEFAULT_TAGS.get(plain) or _FILES.get(plain.lower())
    )
    if other:
        logger.info("%s is taken as %s", name, other)
        return MODELS[other]
    known = [*_RECOMMENDED, *_DEFAULT_TAGS, *MODELS]
    end = did_you_mean(plain, known, count=5, cutoff=0.5) or "."
    raise UserError(
        f"{name!r} is neither a path on this machine nor published weights known by "
        f"name{end} python -m vit_jax.models lists the names. Weights can also be a "
        "work directory of vit_jax, a file or directory of weights, hf:OWNER/NAME on "
        "the Hugging Face hub, or an https:// address."
    )


def adapter_in_hub(name: str) -> Published | None:
    """Returns the adapter that a repository may hold instead of a model.

    Args:
      name: as for `find`; None if it is not "hf:OWNER/NAME[@REVISION]".
    """
    match = _HUB_NAME.fullmatch(name)
    if not match or match[3]:
        return None
    mirrors = on_hub(match[1], *ADAPTER_FILES, revision=match[2] or "main")
    return Published(name, mirrors)


def published_at(url: str) -> Published | None:
    """Finds published weights by address; None if they are not in the table."""
    address = url.partition("?")[0]
    if address in _ADDRESSES:
        return MODELS[_ADDRESSES[address]]
    folder, _, file = address.rpartition("/")
    return augreg(file.removesuffix(".npz")) if folder == _AUGREG_FOLDER else None


def named_like(path: str | pathlib.Path) -> Published | None:
    """Finds the published weights whose file has this file's name, ignoring case."""
    stem = re.sub(r"(?i)\.(npz|pth)$", "", pathlib.PurePath(path).name)
    return MODELS.get(_FILES.get(stem.lower(), "")) or augreg(stem)


def where_published(path: str | pathlib.Path) -> str | None:
    """Finds the address of the published file with this name, ignoring case."""
    row = named_like(path)
    return row.mirrors[0].url if row else None


def alternatives(row: Published) -> list[str]:
    """Lists at most three names of similar weights on other hosts."""

    def hosts(row: Published) -> set[str]:
        return {urllib.parse.urlsplit(mirror.url).netloc for mirror in row.mirrors}

    def likeness(row: Published) -> tuple:
        return row.variant, row.classes, row.resolution

    alike = [
        other.name
        for other in MODELS.values()
        if row.variant
        and likeness(other) == likeness(row)
        and hosts(other) - hosts(row)
    ]
    return alike[:3]


def _in_hub(name: str) -> Published:
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"{name!r}: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
            "hf:OWNER/NAME/FILE, as in hf:google/vit-base-patch16-224"
        )
    repository, revision, file = match.groups()
    # Slashes in a revision are written as %2F.
    files = (file,) if file else _HUB_FILES
    mirrors = on_hub(repository, *files, revision=revision or "main")
    row = MODELS.get(repository.removeprefix("timm/"))
    if row is None:
        return Published(name, mirrors)
    return dataclasses.replace(row, name=name, mirrors=mirrors)


def _bare_names() -> dict[str, str]:
    """Maps common spellings of a variant to the row recommended for it."""
    found: dict[str, str] = {}
    for row in MODELS.values():
        if row.classes == "i21k" and row.family in ("augreg", "google", "mixer"):
            bare = row.variant
            trunk, _, size = bare.rpartition("+")
            spellings = (bare, bare.replace("/", "_"), re.sub("[+/]", "_", bare))
            vit = f"{trunk}{'+' * bool(trunk)}ViT-{size}"
            for spelling in (*spellings, vit):
                found.setdefault(spelling, row.name)
    return found


def _default_tags() -> dict[str, str]:
    """Maps architectures of timm to the row of their default tag, which comes first."""
    found: dict[str, str] = {}
    for row in MODELS.values():
        if row.mirrors[0].url.startswith(f"{HUB}/timm/"):
            found.setdefault(row.name.partition(".")[0], row.name)
    return found


def _addresses() -> dict[str, str]:
    """Maps an address to the first row with that mirror."""
    found: dict[str, str] = {}
    for row in MODELS.values():
        found.setdefault(row.mirrors[0].url, row.name)
    for row in MODELS.values():
        for mirror in row.mirrors:
            found.setdefault(mirror.url, row.name)
    return found


def _files() -> dict[str, str]:
    """Maps lower-case names of .npz and .pth files without suffix to the first row."""
    found: dict[str, str] = {}
    for address, name in _ADDRESSES.items():
        if not address.startswith(HUB):
            stem = pathlib.PurePosixPath(urllib.parse.urlsplit(address).path).name
            found.setdefault(re.sub(r"\.(npz|pth)$", "", stem).lower(), name)
    return found


_AUGREG_FOLDER = "https://storage.googleapis.com/vit_models/augreg"
_RECOMMENDED = _bare_names()
_DEFAULT_TAGS = _default_tags()
_ADDRESSES = _addresses()
_FILES = _files()
