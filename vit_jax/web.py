"""Requests over HTTP: which addresses are allowed, retries, and small downloads."""

import os
import re
import urllib.parse
from collections.abc import Mapping

import requests
import urllib3
from requests.adapters import HTTPAdapter

from vit_jax.errors import UserError
from vit_jax.words import byte_size

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of a response
# Errors that may be temporary are retried. Retry-After is ignored, because there are
# other mirrors.
RETRY = urllib3.Retry(
    total=3,
    connect=1,
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=0.5,
    raise_on_status=False,
    respect_retry_after_header=False,
)
PIECE = 1 << 16  # bytes; an incomplete piece is lost with the connection
_MOST_REDIRECTS = 10
_LOCAL = ("localhost", "127.0.0.1", "::1")


def fetch(url: str, most_bytes: int) -> bytes:
    """Downloads a small file into memory.

    Args:
      url: an https address; http is allowed only for this machine.
      most_bytes: limit of the file's size.

    Raises:
      UserError: downloads are disabled, the address is not allowed, the server does not
        send the file, or it is too large.
    """
    try:
        name = shown(url)
    except ValueError as error:
        raise UserError(f"{url!r} is not an address: {error}") from None
    try:
        return _content(url, most_bytes)
    except (_Refused, requests.RequestException, ValueError) as error:
        raise UserError(f"{name} cannot be downloaded: {cause(error)}") from error


class _Refused(Exception):
    """A download that our own rules do not allow."""


def _content(url: str, most_bytes: int) -> bytes:
    if offline():
        raise _Refused("VIT_JAX_OFFLINE or HF_HUB_OFFLINE is set")
    with session({}, RETRY) as opened:
        for _ in range(_MOST_REDIRECTS):
            # Before it is asked: a redirection may lead anywhere.
            if problem := insecure(url):
                raise _Refused(problem)
            with opened.get(
                url, stream=True, timeout=TIMEOUT, allow_redirects=False
            ) as response:
                if response.next is None:
                    return _body(response, most_bytes)
                url = response.next.url or ""
    raise _Refused("too many redirections")


def _body(response: requests.Response, most_bytes: int) -> bytes:
    if response.status_code != 200:
        raise _Refused(f"{response.status_code} {response.reason or ''}".strip())
    content = bytearray()
    for piece in response.iter_content(PIECE):
        content += piece
        if len(content) > most_bytes:
            raise _Refused(
                f"it has more than {byte_size(most_bytes)}; fetch it by other means "
                "and pass its path"
            )
    return bytes(content)


def offline() -> bool:
    """Returns whether the environment disables downloads."""
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("VIT_JAX_OFFLINE", "HF_HUB_OFFLINE")
    )


def shown(url: str) -> str:
    """Removes the parts of an address that may be secret: user, password and query."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def insecure(url: str) -> str:
    """Explains why an address is not allowed; "" if it is."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return ""
    return f"{parts.scheme}:// is not secure, expected https://"


def session(headers: Mapping[str, str], retry: urllib3.Retry) -> requests.Session:
    """Opens a session that retries failed requests and gets files as they are stored.

    Args:
      headers: HTTP headers of every request.
      retry: which failures are retried, and how often.
    """
    opened = requests.Session()
    opened.headers.update({"Accept-Encoding": "identity", **headers})
    for scheme in ("https://", "http://"):
        opened.mount(scheme, HTTPAdapter(max_retries=retry))
    return opened


def cause(error: BaseException) -> str:
    """Returns the innermost reason of a failed request in one line."""
    while True:
        inner = getattr(error, "reason", None) or (
            error.args[0] if error.args else None
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    # urllib3 prepends the connection object.
    text = re.sub(r"^<?[\w.]*Connection[^:]*: ", "", str(error))
    return " ".join(text.split()) or type(error).__name__
