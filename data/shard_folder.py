"""Where shards lie: in a folder of this machine, or behind a URL (`remote_folder.py`); what the cache keeps of them."""

import hashlib
import json
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

from filelock import FileLock

from ..common.errors import InputError
from ..common.fetching import cache_folder
from ..common.files import replacing

INFO_FILE = "info.json"  # of timm's reader of WebDataset: the shards of each split
_OPEN = 64  # files kept open by a process
_KEPT = 24 * 3600  # seconds for which the cache keeps what is no longer so

Span = tuple[str, int, int]  # of a file's bytes: its name, the first, how many (at least 1)


class ShardFolder(Protocol):
    """Files by their names below a root, with "/" between folders. All methods raise InputError for what goes wrong."""

    address: str  # wherever the process is

    def __str__(self) -> str: ...

    def name(self, file: str) -> str:
        """How a message calls a file."""

    def text(self, file: str) -> str | None:
        """The content of a small file (UTF-8), None where there is none."""

    def file(self, file: str) -> Path | None:
        """A path on this machine with the content of `file`, None where there is none."""

    def tar_files(self, folder: str = "") -> list[str]:
        """The shards that info.json lists for the split of that name; else the tar files in `folder`, sorted."""

    def open(self, file: str) -> BinaryIO:
        """To be read and searched. Raises OSError."""

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """The content of each span, or what there is of it, or the error that this file gave."""

    def state(self, files: list[str]) -> list[Any]:
        """Plain values that are others once a file of this machine, or the list of those elsewhere, is another."""


def is_url(root: str | Path) -> bool:
    """Whether it is fsspec that opens it."""
    return "://" in str(root)


def cached(what: list[Any], state: list[Any], name: str, write: Callable[[Path], None]) -> Path:
    """A file in the cache about `what`, whose older states it replaces.

    Where it lacks, one of the processes that ask for it writes it.
    """
    path = cache_folder() / "shards" / _digest(what) / _digest(state) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parents[1] / ".lock"):
        if not path.is_file():
            with replacing(path) as temporary:
                write(temporary)
            for other in path.parents[1].iterdir():
                # A younger one may be another process's, to which the server told another state.
                if other.is_dir() and other != path.parent and other.stat().st_mtime < time.time() - _KEPT:
                    shutil.rmtree(other, ignore_errors=True)
    return path


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


class LocalFolder:
    """A folder of this machine; each process keeps some of its files open."""

    def __init__(self, root: Path) -> None:
        self._root, self.address = root, str(root.resolve())
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def __str__(self) -> str:
        return str(self._root)

    def name(self, file: str) -> str:
        """See `ShardFolder`."""
        return str(self._root / file)

    def text(self, file: str) -> str | None:
        """See `ShardFolder`."""
        path = self.file(file)
        try:
            return None if path is None else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error})") from None

    def file(self, file: str) -> Path | None:
        """See `ShardFolder`."""
        path = self._root / file
        return path if path.is_file() else None

    def tar_files(self, folder: str = "") -> list[str]:
        """See `ShardFolder`; a file that is listed and not there is left out."""
        listed = splits_of(self).get(folder)
        if listed is not None:
            return [file for file in listed if (self._root / file).is_file()]
        return sorted(path.relative_to(self._root).as_posix() for path in (self._root / folder).glob("*.tar"))

    def open(self, file: str) -> BinaryIO:
        """See `ShardFolder`."""
        return (self._root / file).open("rb")

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """See `ShardFolder`."""
        return [self._read(*span) for span in spans]

    def _read(self, file: str, offset: int, size: int) -> bytes | OSError:
        try:
            with self._lock:
                if file not in self._open:
                    while len(self._open) >= _OPEN:
                        self._open.popitem(last=False)  # closed once no thread reads it
                    self._open[file] = _OpenFile(self._root / file)
                self._open.move_to_end(file)
                opened = self._open[file]
            return opened.read(offset, size)
        except OSError as error:
            return error

    def state(self, files: list[str]) -> list[Any]:
        """See `ShardFolder`."""
        known = [(file, (self._root / file).stat()) for file in files]
        return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in known]


class _OpenFile:
    """Read from any place by any thread, and by processes copied from this one."""

    def __init__(self, path: Path) -> None:
        self._number = -1
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = Lock()

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._number, size, offset)
        with self._lock:  # Windows; there no process is a copy of another
            os.lseek(self._number, offset, os.SEEK_SET)
            return os.read(self._number, size)


def splits_of(folder: ShardFolder) -> dict[str, list[str]]:
    """The shards of each split that info.json lists.

    Raises:
        InputError: It cannot be read, or is none of that kind.
    """
    text = folder.text(INFO_FILE)
    try:
        splits: dict[str, Any] = {} if text is None else json.loads(text).get("splits", {})
        return {split: [str(name) for name in about["filenames"]] for split, about in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.name(INFO_FILE)} does not list the files of splits ({error!r})") from None
