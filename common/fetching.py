"""What all sources share that fetch something: the cache, trying again, and one line of what went wrong."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import errors

T = TypeVar("T")
_TRIES = 3
# What the hub's client raises where the network fails: an error of its HTTP library, which changes with its version.
HTTPError: type[Exception] = vars(errors)["HTTPError"]


def cache_folder() -> Path:
    """Where what was fetched or found out is kept (GLASSZOO_CACHE); the hub has a cache of its own."""
    return Path(os.environ.get("GLASSZOO_CACHE") or "~/.cache/glasszoo").expanduser()


def patiently(fetch: Callable[[], T], broken: type[Exception]) -> T:
    """What `fetch` returns, called again where a connection breaks, which raises `broken`; an answer is an answer.

    huggingface_hub goes on by itself where a server ends the connection, but not where it is reset.
    """
    for _ in range(_TRIES - 1):
        try:
            return fetch()
        except broken as error:
            if getattr(error, "response", None) is not None:
                raise
    return fetch()


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """What `error` says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
