"""Resolution of weights by path, address or published name, with a download cache.

A file is stored in the cache (vit_jax/cache.py) under the host and path of its address.
Models that are in Hugging Face's own cache already are read from there (hub_cache.py).
With VIT_JAX_OFFLINE=1 (or HF_HUB_OFFLINE=1) only the cache is used. HF_ENDPOINT selects
another host that serves the Hugging Face hub, and HF_TOKEN gives access to private
models there. HTTPS_PROXY and NO_PROXY set the proxies.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vit_jax.cache import cache_dir
from vit_jax.errors import UserError
from vit_jax.web import offline, shown
from vit_jax.weights.files.directories import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    COMPANIONS,
)
from vit_jax.weights.published.families import Mirror, Published
from vit_jax.weights.published.hub_cache import find_in_hub_cache, in_snapshot
from vit_jax.weights.published.names import (
    adapter_in_hub,
    alternatives,
    find,
    named_like,
    published_at,
    where_published,
)
from vit_jax.weights.published.transfer import (
    MissingFile,
    TransferError,
    transfer,
    wrong_checksum,
)
from vit_jax.weights.published.zoo import BUCKETS, HUB

logger = logging.getLogger(__name__)

_PIN = "#sha256="


class _Unavailable(UserError):
    """No mirror has the file, or downloads are disabled."""


class Resolved(NamedTuple):
    """The path of weights on this machine, and their row if they are published ones."""

    path: pathlib.Path
    published: Published | None


def resolve(
    source: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None
) -> Resolved:
    """Finds the file or folder of a source, and downloads it if necessary.

    Args:
      source: a path; a file://, gs:// or https:// address; or a name for `names.find`,
        such as "hf:OWNER/NAME[@REVISION][/FILE]". An address or a name may end in
        "#sha256=…", which the file's checksum must then match.
      cache: folder to download into; by default that of `vit_jax.cache`.

    Raises:
      UserError: nothing exists there, the name is unknown, or no mirror has the file.
    """
    # Unlike pathlib, os.path does not raise for very long names or unknown users.
    text = os.path.expanduser(source)
    path = pathlib.Path(text)
    if os.path.exists(text):
        _say_licence(named_like(path), path.name)
        return Resolved(in_snapshot(path), None)
    name, pin, sha256 = os.fspath(source).partition(_PIN)
    if pin and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(
            f"{source}: {_PIN}{sha256} is not a SHA-256, expected 64 hexadecimal digits"
        )
    if name.startswith("file:"):
        address = urllib.parse.urlsplit(name)
        path = pathlib.Path(urllib.request.url2pathname(address.path))
        if path.exists():
            return Resolved(path, None)
        raise UserError(_nothing_at(path))
    name = re.sub("^gs://", f"{BUCKETS}/", name)
    if re.match("https?://", name):
        row = published_at(name)
        _say_licence(row)
        mirrors = row.mirrors if row else ()
        known = next((mirror for mirror in mirrors if mirror.url == name), Mirror(name))
        return Resolved(fetch(known, sha256=sha256, cache=cache), row)
    if path.is_absolute() or name.startswith((".", "~")):
        raise UserError(_nothing_at(path))
    row = find(name)
    _say_licence(row)
    if row.note:
        logger.info("%s: %s", row.name, row.note)
    try:
        return Resolved(fetch(row, sha256=sha256, cache=cache), row)
    except _Unavailable:
        if (adapter := adapter_in_hub(name)) is None:
            raise
        with contextlib.suppress(UserError):
            return Resolved(fetch(adapter, sha256=sha256, cache=cache), None)
        raise


def fetch(
    source: Published | Mirror | str,
    *,
    sha256: str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Returns the path of published weights in the cache; downloads them if necessary.

    The mirrors are tried in order; `transfer` resumes and checks downloads. Weights
    from the Hugging Face hub come with config.json, preprocessor_config.json and all
    their shards.

    Args:
      source: a row of the table or one of its mirrors, or an https:// address.
      sha256: the expected checksum; by default the one in the table. It is compared
        each time, even if the file is in the cache already.
      cache: folder to download into; by default that of `vit_jax.cache`.

    Returns:
      The file with the weights, or the index of their shards.

    Raises:
      UserError: no mirror has the file (lists each address with its status, the place
        for a file fetched by hand, and its checksum); the checksum of the file in the
        cache differs; or the cache cannot be written.
    """
    if isinstance(source, str):
        source = Mirror(source)
    mirrors = (source,) if isinstance(source, Mirror) else source.mirrors
    folder = pathlib.Path(cache).expanduser() if cache else cache_dir()
    places = [(mirror, folder / _cache_path(mirror.url)) for mirror in mirrors]
    name = shown(source.url) if isinstance(source, Mirror) else source.name
    in_hub_cache = [
        (mirror, path)
        for mirror in mirrors
        if (path := find_in_hub_cache(mirror.url)) is not None
    ]
    for mirror, path in places + in_hub_cache:
        if _in_cache(path):
            if problem := wrong_checksum(path, _checksums(mirror, sha256)):
                raise UserError(
                    f"{path} is not the file that {shown(mirror.url)} should be: "
                    f"{problem}. Remove it to download it again."
                )
            if (mirror, path) in in_hub_cache:
                logger.info("%s: read from Hugging Face's cache, %s", name, path)
            return path
    if offline():
        raise _Unavailable(
            f"{name} is not in the cache, and downloads are disabled because "
            f"VIT_JAX_OFFLINE or HF_HUB_OFFLINE is set. {_by_hand(places, sha256)}"
        )
    failures: list[str] = []
    for mirror, path in places:
        try:
            _download(mirror.url, path, _checksums(mirror, sha256))
            return path
        except TransferError as error:
            # Files of one repository may fail with the same message.
            if str(error) not in failures:
                failures.append(str(error))
                logger.warning("download failed: %s", error)
        except OSError as error:
            raise UserError(
                f"the cache {folder} cannot be written: {error.strerror or error}. "
                "Free some space there, or set VIT_JAX_CACHE to another folder."
            ) from error
    listed = "".join(f"\n  {failure}" for failure in failures)
    by_hand = _by_hand(places, sha256)
    others = [] if isinstance(source, Mirror) else alternatives(source)
    hint = f"\nSimilar weights on other hosts: {', '.join(others)}." if others else ""
    raise _Unavailable(f"{name} could not be downloaded:{listed}\n{by_hand}{hint}")


def _say_licence(row: Published | None, file: str = "") -> None:
    """Logs the licence of weights unless it is a free one.

    Args:
      row: the published weights.
      file: the name of a local file, by which it is taken for them.
    """
    if row is None or not row.licence:
        return
    what = f"{file}, by its name the published file," if file else f"{row.name}"
    logger.warning(
        "%s has a licence that does not allow every use: %s", what, row.licence
    )


def _checksums(mirror: Mirror, sha256: str | None) -> dict[str, str]:
    """Returns the checksums to compare, by algorithm; the caller's comes first."""
    if sha256 or mirror.sha256:
        return {"sha256": sha256 or mirror.sha256 or ""}
    return {"md5": mirror.md5} if mirror.md5 else {}


def _download(url: str, path: pathlib.Path, checksums: Mapping[str, str]) -> None:
    """Downloads a file into the cache, with its companions and shards."""
    companions = COMPANIONS if _on_hub(url) else ()
    if companions and path.name in ADAPTER_FILES:
        companions = (ADAPTER_CONFIG,)
    # Companions first: once the weights are in the cache, nothing else is downloaded.
    for name in companions:
        with contextlib.suppress(MissingFile):
            _transfer(urllib.parse.urljoin(url, name), path.with_name(name))
    digest = _transfer(url, path, checksums)
    if digest:
        pin = ""
        if "sha256" not in checksums:
            pin = f"; append {_PIN}{digest} to require exactly this file"
        logger.info("downloaded %s from %s%s", path.name, shown(url), pin)
    for shard in _shards(path):
        _transfer(urllib.parse.urljoin(url, shard), path.with_name(shard))


def _transfer(
    url: str, path: pathlib.Path, checksums: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Calls `transfer`, for the hub with HF_ENDPOINT and HF_TOKEN."""
    sha256, md5 = checksums.get("sha256"), checksums.get("md5")
    if not _on_hub(url):
        return transfer(url, path, sha256=sha256, md5=md5)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = endpoint.rstrip("/") + url.removeprefix(HUB)
    try:
        return transfer(url, path, sha256=sha256, md5=md5, headers=headers)
    except TransferError as error:
        if error.status.startswith(("401", "403")):
            hint = "private, gated or misspelt; set HF_TOKEN if you have access"
            raise TransferError(url, f"{error.status} ({hint})") from None
        raise


def _in_cache(path: pathlib.Path) -> bool:
    """Returns whether the weights are in the cache, with all their shards."""
    try:
        return path.is_file() and all(
            path.with_name(shard).is_file() for shard in _shards(path)
        )
    except TransferError as error:
        raise UserError(
            f"{path} is damaged ({error.status}); remove it to download it again"
        ) from None


def _shards(path: pathlib.Path) -> list[str]:
    """Lists the files that an index names; [] for any other file."""
    if not path.name.endswith(".index.json"):
        return []
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        plain = all(pathlib.PurePath(name).name == name for name in names)
    except (ValueError, LookupError, TypeError, AttributeError):
        plain = False
    if not plain:  # a path would lead out of the cache
        raise TransferError(path.as_uri(), "not an index of shards beside it")
    return names


def _cache_path(url: str) -> pathlib.Path:
    """Returns the path of an address's file, relative to the cache."""
    try:
        address = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url!r} is not an address: {error}") from None
    host = address.netloc.rpartition("@")[2].replace(":", "_")
    parts = [part for part in address.path.split("/") if part]
    if not host or not parts or {".", ".."} & {*parts, host}:
        raise UserError(f"{shown(url)} is not the address of a file")
    if address.query:
        # Files whose addresses differ only in the query need different places.
        parts.insert(-1, hashlib.sha256(address.query.encode()).hexdigest()[:8])
    return pathlib.Path(host, *parts)


def _by_hand(places: Sequence[tuple[Mirror, pathlib.Path]], sha256: str | None) -> str:
    lines = "".join(
        f"\n  {shown(mirror.url)} belongs at {path} ({known})"
        for mirror, path in places
        for known in [_known(_checksums(mirror, sha256))]
    )
    return (
        "Fetch one of these by other means and put it into the cache, or pass its path "
        f"if you have it already:{lines}"
    )


def _known(checksums: Mapping[str, str]) -> str:
    for algorithm, value in checksums.items():
        name, length = {"sha256": ("SHA-256", 64), "md5": ("MD5", 32)}[algorithm]
        return f"its {name} {'is' if len(value) == length else 'begins with'} {value}"
    return "its checksum is unknown"


def _nothing_at(path: pathlib.Path) -> str:
    address = where_published(path)
    hint = (
        f"{path.name} is published at {address}: pass that address, or its name "
        "(python -m vit_jax.models lists them), to download it"
        if address
        else "pass a work directory, a file of weights, an https:// address, "
        "hf:OWNER/NAME, or a name that python -m vit_jax.models lists"
    )
    return f"there is nothing at {path}. {hint[0].upper()}{hint[1:]}."


def _on_hub(url: str) -> bool:
    return url.startswith(f"{HUB}/")
