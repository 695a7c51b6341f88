"""Where shards lie: in a folder of this machine, or behind a URL that fsspec opens (https, s3, gs, hf …)."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from filelock import FileLock

from ..common.errors import InputError
from ..common.fetching import cache_folder, one_line, patiently
from ..common.files import replacing

INFO_FILE = "info.json"  # of timm's reader of WebDataset: the shards of each split
_OPEN = 64  # files kept open by a process
_AT_ONCE = 16  # requests of a process to a server

T = TypeVar("T")
Span = tuple[str, int, int]  # of a file's bytes: its name, the first, how many (at least 1)


class ShardFolder(Protocol):
    """Files by their names below a root, with "/" between folders. What says no other error raises OSError."""

    def __str__(self) -> str: ...

    def name(self, file: str) -> str:
        """How a message calls a file."""

    def text(self, file: str) -> str | None:
        """The content of a small file (UTF-8), None where there is none. Raises InputError where it cannot be had."""

    def file(self, file: str) -> Path | None:
        """A path on this machine with the content of `file`, None where there is none. Raises InputError likewise."""

    def tar_files(self, folder: str = "") -> list[str]:
        """The tar files in a folder, in sorted order; none where there is no such folder."""

    def open(self, file: str) -> BinaryIO:
        """To be read and searched."""

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """The content of each span, or what there is of it, or the error that was met instead."""

    def state(self, files: list[str]) -> list[Any]:
        """What is another list of plain values once one of `files` was written anew."""


def open_folder(root: str | Path) -> ShardFolder:
    """The folder at a path or a URL."""
    return RemoteFolder(str(root)) if is_url(root) else LocalFolder(Path(root).expanduser())


def is_url(root: str | Path) -> bool:
    """Whether it is fsspec that opens it."""
    return "://" in str(root)


def cached(key: list[Any], name: str, write: Callable[[Path], None]) -> Path:
    """A file in the cache that belongs to `key`; where it lacks, one of the processes that ask for it writes it."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache_folder() / "shards" / digest[:32] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with replacing(path) as temporary:
                write(temporary)
    return path


class LocalFolder:
    """A folder of this machine; each process keeps some of its files open, and a copy begins with none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()

    def __str__(self) -> str:
        return str(self._root)

    def __reduce__(self) -> tuple[type["LocalFolder"], tuple[Path]]:
        return LocalFolder, (self._root,)

    def __del__(self) -> None:
        self._close(0)

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
        """See `ShardFolder`."""
        return sorted(path.relative_to(self._root).as_posix() for path in (self._root / folder).glob("*.tar"))

    def open(self, file: str) -> BinaryIO:
        """See `ShardFolder`."""
        return (self._root / file).open("rb")

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """See `ShardFolder`."""
        return [_content_or_error(self._read, span) for span in spans]

    def _read(self, span: Span) -> bytes:
        file, offset, size = span
        if self._process != os.getpid():
            self._close(0)
            self._process = os.getpid()
        if file not in self._open:
            self._close(_OPEN - 1)
            self._open[file] = os.open(self._root / file, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(file)
        return os.pread(self._open[file], size, offset)

    def state(self, files: list[str]) -> list[Any]:
        """See `ShardFolder`."""
        known = [(file, (self._root / file).stat()) for file in files]
        return [str(self._root.resolve()), [[file, stat.st_size, stat.st_mtime_ns] for file, stat in known]]

    def _close(self, left: int) -> None:
        while len(self._open) > left:
            os.close(self._open.popitem(last=False)[1])


class _Broken(OSError):
    """No answer, or none that could be used; another try may go better."""


class RemoteFolder:
    """A folder behind a URL. Samples are read by requests for a part of a file, which the server must answer."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def name(self, file: str) -> str:
        """See `ShardFolder`."""
        return f"{self._url}/{file}"

    def text(self, file: str) -> str | None:
        """See `ShardFolder`."""
        try:
            content: bytes = self._ask(lambda system, path: system.cat_file(path), file)
            return content.decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.name(file)} cannot be read ({error})") from None

    def file(self, file: str) -> Path | None:
        """See `ShardFolder`; it is fetched into the cache, once for each state of the file."""
        try:
            state = self._ask(lambda system, path: system.info(path), file)
            known = sorted((key, str(value)) for key, value in state.items())
            return cached([self._url, file, known], Path(file).name, lambda path: self._fetch(file, path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.name(file)} cannot be fetched ({error})") from None

    def tar_files(self, folder: str = "") -> list[str]:
        """See `ShardFolder`: those that info.json lists, else what the server lists, where it does."""
        listed = splits_of(self).get(folder)
        if listed is not None:
            return listed
        try:
            names = self._ask(lambda system, path: [Path(name).name for name in system.ls(path, detail=False)], folder)
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{name}".lstrip("/") for name in names if name.endswith(".tar"))

    def open(self, file: str) -> BinaryIO:
        """See `ShardFolder`."""
        opened: BinaryIO = self._ask(lambda system, path: system.open(path, "rb"), file)
        return opened

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """See `ShardFolder`; some are asked for at once, those that do not come again one by one."""
        contents: list[bytes | OSError] = []
        for first in range(0, len(spans), _AT_ONCE):
            contents += self._read_at_once(spans[first : first + _AT_ONCE])
        return contents

    def _read_at_once(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        def ask(system: Any, root: str) -> list[Any]:
            files, offsets, sizes = zip(*spans, strict=True)
            ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
            return system.cat_ranges([f"{root}/{file}" for file in files], list(offsets), ends, on_error="return")

        try:
            contents = self._ask(ask)
        except OSError as error:
            return [error] * len(spans)
        return [
            _content_or_error(self._read, span) if isinstance(content, Exception) else _checked(content, span)
            for content, span in zip(contents, spans, strict=True)
        ]

    def _read(self, span: Span) -> bytes:
        file, offset, size = span
        return self._ask(lambda system, path: system.cat_file(path, start=offset, end=offset + size), file)

    def state(self, files: list[str]) -> list[Any]:
        """See `ShardFolder`; asking for the state of each of many files would take long: it is that of their list."""
        return [self._url, files, self.text(INFO_FILE)]

    def _fetch(self, file: str, path: Path) -> None:
        self._ask(lambda system, source: system.get_file(source, str(path)), file)

    def _ask(self, question: Callable[[Any, str], T], file: str = "") -> T:
        """What the file system answers about `file`, or the root; asked again where it gives no answer."""
        import fsspec

        def asked() -> T:
            try:
                # fsspec keeps one for each process: those of a parent do not work in its children.
                system, path = fsspec.url_to_fs(self.name(file).rstrip("/"))
                return question(system, path)
            except FileNotFoundError:
                raise
            except ImportError as error:
                raise InputError(f"{self._url} cannot be opened: {one_line(error)}") from None
            except ValueError as error:
                if "protocol" in str(error).lower():
                    raise InputError(f"{self._url} cannot be opened: {one_line(error)}") from None
                raise _Broken(one_line(error)) from error
            # Each protocol has errors of its own.
            except Exception as error:
                raise _Broken(one_line(error)) from error

        return patiently(asked, _Broken)


def _content_or_error(read: Callable[[Span], bytes], span: Span) -> bytes | OSError:
    try:
        return _checked(read(span), span)
    except OSError as error:
        return error


def _checked(content: bytes, span: Span) -> bytes | OSError:
    if len(content) <= span[2]:
        return content
    return OSError("the server hands out whole files only, where a part of one was asked for")


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
