"""Where shards lie: in a folder of this machine, or behind a URL (`remote_folder.py`); what the cache keeps of them."""

import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from filelock import FileLock

from ..common.errors import InputError
from ..common.fetching import cache_folder
from ..common.files import replacing

INFO_FILE = "info.json"  # of timm's reader of WebDataset: the shards of each split
_OPEN = 64  # files kept open by a process

Span = tuple[str, int, int]  # of a file's bytes: its name, the first, how many (at least 1)


class ShardFolder(Protocol):
    """Files by their names below a root, with "/" between folders. All methods raise InputError for what goes wrong."""

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
                if other.is_dir() and other != path.parent:
                    shutil.rmtree(other, ignore_errors=True)
    return path


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


class LocalFolder:
    """A folder of this machine; each process keeps some of its files open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, FileIO] = OrderedDict()
        self._process = os.getpid()

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
        if self._process != os.getpid():  # the place in a file is shared with the process that this one was copied from
            self._open.clear()
            self._process = os.getpid()
        try:
            if file not in self._open:
                while len(self._open) >= _OPEN:
                    self._open.popitem(last=False)[1].close()
                self._open[file] = FileIO(self._root / file)
            self._open.move_to_end(file)
            self._open[file].seek(offset)
            return self._open[file].read(size)
        except OSError as error:
            return error

    def state(self, files: list[str]) -> list[Any]:
        """See `ShardFolder`."""
        known = [(file, (self._root / file).stat()) for file in files]
        return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in known]


def splits_of(folder: ShardFolder) -> dict[str, list[str]]:
    """The shards of each split that info.json lists.

    Raises:
        InputError: It cannot be read, or is none of that kind.
    """
    text = folder.text(INFO_FILE)
    try:
        splits: dict[str, Any] = {} if text is None else json.loads(text)["splits"]
        return {split: [str(name) for name in about["filenames"]] for split, about in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.name(INFO_FILE)} does not list the files of splits ({error!r})") from None
