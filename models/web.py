"""Checkpoints on any web server: a folder whose SHA256SUMS says the hash of every file, itself pinned by its own hash.

One hash, in the name, so settles every byte, the configuration's too. The listing is what `sha256sum` prints; `pin`
writes it.
"""

import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from huggingface_hub.file_download import http_get

from ..common.errors import InputError
from ..common.fetching import HTTPError, cache_folder, one_line, patiently, sha256
from ..common.files import replacing, write_text
from .layout import check_complete, check_folder, check_names, is_checkpoint_file, why_refused

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_OWN_HOSTS = {"localhost", "127.0.0.1", "::1"}


def from_web(name: str) -> Path:
    """The folder of "https://HOST/FOLDER#sha256=HEX", where HEX is the SHA-256 of the folder's SHA256SUMS (see `pin`).

    Files get their names in the cache when they are whole and their hash is right. A download that breaks off is
    continued; what has arrived needs no network again.

    Raises:
        InputError: No hash, a pickle, an archive, no encryption, no such file, a wrong hash, a name that leads out of
            the folder, or no checkpoint.
    """
    address, digest = _parsed(name)
    folder = cache_folder() / "https" / digest
    _fetch(f"{address}/{SUMS}", folder / SUMS, digest)
    sums = _sums((folder / SUMS).read_bytes(), address)
    check_names(sums, address)
    check_complete(sums, address)
    for file, file_digest in sums.items():
        if is_checkpoint_file(file):
            _fetch(f"{address}/{quote(file)}", folder / file, file_digest)
    return folder


def pin(folder: str | os.PathLike[str]) -> str:
    """Write SHA256SUMS into a checkpoint's folder; returns what its address has to end in, "#sha256=HEX".

    Raises:
        InputError: `folder` holds no checkpoint.
    """
    folder = Path(folder)
    check_folder(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if is_checkpoint_file(name)]
    write_text(folder / SUMS, "".join(lines))
    return f"#sha256={sha256(folder / SUMS)}"


def _parsed(name: str) -> tuple[str, str]:
    """The folder's address without a slash at its end, and the hash."""
    address, _, fragment = name.partition("#")
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InputError(f"{name!r} is no address: {one_line(error)}") from None
    if reason := why_refused(parts.path):
        raise InputError(f"{address} is refused: {reason}")
    if parts.scheme != "https" and parts.hostname not in _OWN_HOSTS:
        raise InputError(f"{address} is not encrypted: https:// expected")
    if parts.query or not parts.hostname or ".." in parts.path.split("/"):
        raise InputError(f"{name!r}: https://HOST/FOLDER#sha256=HEX expected")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise InputError(
            f"{address} needs the SHA-256 of its {SUMS} behind it, as https://HOST/FOLDER#sha256=HEX (64 digits), "
            "so that nothing else can be loaded in its place"
        )
    return address.rstrip("/"), match[1].lower()


def _sums(content: bytes, address: str) -> dict[str, str]:
    """File → hash, as `sha256sum` writes them."""
    sums = {}
    for line in content.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(f"{address}/{SUMS}: {line[:80]!r} is no line of sha256sum's")
        sums[match[2].removeprefix("./")] = match[1]
    return sums


def _fetch(url: str, path: Path, digest: str) -> None:
    """Download `url` to `path`, unless it is there already."""
    if path.is_file():
        return
    with replacing(path) as temporary:
        try:
            patiently(partial(_download, url, temporary), HTTPError)
        except (HTTPError, OSError) as error:
            raise InputError(f"{url} cannot be fetched: {one_line(error)}") from error
        if (found := sha256(temporary)) != digest:
            raise InputError(f"{url} has the SHA-256 {found}, not {digest}: it was changed, or another was meant")


def _download(url: str, path: Path) -> None:
    """By the hub's client: it goes on where a connection broke off, and respects HF_HUB_OFFLINE; no token is sent."""
    with path.open("wb") as file:
        http_get(url, file, headers={"Accept-Encoding": "identity"})  # compressed, it would be of another length
