"""Shards behind a URL that fsspec opens (https, s3, gs, hf …), read part by part."""

import time
from collections.abc import Callable, Sequence
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from ..common.errors import InputError
from ..common.fetching import one_line
from .shard_folder import INFO_FILE, Span, cached, splits_of

_AT_ONCE = 16  # requests of a process to a server
_PART = 2**26  # bytes of a file that is fetched whole, a request
_BUFFER = 2**20  # bytes read ahead where headers are looked through
_WEB = ("http", "https")
# What a server tells of a file that may be otherwise each time: where it was found after a redirect, when it was read.
_NO_STATE = ("url", "name", "time")
_SILENCE = 20.0  # seconds without a byte from a web server that count as no answer
# Seconds before a question is asked again: of a server that never answered, and of one that did.
_FIRST_PAUSES, _PAUSES = (0.5, 1.0), (1.0, 2.0, 4.0, 8.0, 15.0)

T = TypeVar("T")


class RemoteFolder:
    """A folder behind a URL (`ShardFolder`). Its server must answer requests for a part of a file.

    A server that gives no answer, or refuses, is an InputError, whatever is done about unreadable images; a file that
    lacks is not.

    Raises:
        InputError: A URL with a user or password, or of a protocol that is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = self.address = url.rstrip("/")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise InputError(f"{url} is no URL ({error})") from None
        if parts.password or (parts.username and parts.scheme in _WEB):
            raise InputError(f"{parts.scheme}://…: a URL with a password would stand in recipe and model card")
        self._options = _web_options(self._url) if parts.scheme in _WEB else {}
        self._has_answered = False

    def __str__(self) -> str:
        return self._url

    def name(self, file: str) -> str:
        """See `ShardFolder`."""
        return f"{self._url}/{file}"

    def text(self, file: str) -> str | None:
        """See `ShardFolder`."""
        try:
            content = self._ask(lambda system, path: system.cat_file(path), file)
            return str(content, "utf-8")
        except (FileNotFoundError, PermissionError):  # a store that does not list its files refuses what lacks
            return None
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name(file)} cannot be read ({error})") from None

    def file(self, file: str) -> Path | None:
        """See `ShardFolder`; it is fetched into the cache, once for each state of the file."""
        try:
            # Some protocols take every trouble for a file that lacks when they are asked about it, not when they read.
            self._ask(lambda system, path: system.cat_file(path, start=0, end=1, **_unbuffered(system)), file)
        except (FileNotFoundError, PermissionError):
            return None
        about = self._about(file)
        state = sorted([key, str(value)] for key, value in about.items() if key not in _NO_STATE)
        try:
            return cached(
                [self._url, file], state, Path(file).name, lambda path: self._fetch(file, about["size"], path)
            )
        except OSError as error:
            raise InputError(f"{self.name(file)} cannot be kept in the cache ({error})") from None

    def tar_files(self, folder: str = "") -> list[str]:
        """See `ShardFolder`; where info.json does not list the split, the server may list its files."""
        listed = splits_of(self).get(folder)
        if listed is not None:
            return listed
        try:
            names = self._ask(lambda system, path: [Path(name).name for name in system.ls(path, detail=False)], folder)
        except FileNotFoundError:
            return []
        except PermissionError as error:
            raise InputError(f"{self.name(folder)} is not listed: {error}") from None
        return sorted(f"{folder}/{name}".lstrip("/") for name in names if name.endswith(".tar"))

    def open(self, file: str) -> BinaryIO:
        """See `ShardFolder`."""
        size: int = self._about(file)["size"]
        return BufferedReader(_RemoteFile(lambda offset, count: self._part((file, offset, count)), size), _BUFFER)

    def read(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        """See `ShardFolder`; some are asked for at once, those that do not come again one by one."""
        contents: list[bytes | OSError] = []
        for first in range(0, len(spans), _AT_ONCE):
            contents += self._read_at_once(spans[first : first + _AT_ONCE])
        return contents

    def state(self, files: list[str]) -> list[Any]:
        """See `ShardFolder`; to ask about each of many files would take long."""
        return [files, self.text(INFO_FILE)]

    def _about(self, file: str) -> dict[str, Any]:
        """What the server tells of a file that is there."""
        try:
            about: dict[str, Any] = self._ask(lambda system, path: system.info(path), file)
        except OSError as error:
            raise InputError(f"{self.name(file)} gives no answer ({error})") from None
        if about.get("size") is None:
            raise InputError(f"{self.name(file)}: the server does not tell its size")
        return about

    def _fetch(self, file: str, size: int, path: Path) -> None:
        with path.open("wb") as copy:
            for offset in range(0, size, _PART):
                copy.write(self._part((file, offset, min(_PART, size - offset))))

    def _read_at_once(self, spans: Sequence[Span]) -> list[bytes | OSError]:
        if not self._ask(lambda system, path: _is_async(system)):
            return [self._part_or_error(span) for span in spans]

        def ask(system: Any, root: str) -> list[Any]:
            files, offsets, sizes = zip(*spans, strict=True)
            ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
            return system.cat_ranges([f"{root}/{file}" for file in files], list(offsets), ends, on_error="return")

        answers = self._ask(ask)
        return [
            self._part_or_error(span) if isinstance(answer, Exception) else self._checked(answer, span)
            for answer, span in zip(answers, spans, strict=True)
        ]

    def _part_or_error(self, span: Span) -> bytes | OSError:
        try:
            return self._part(span)
        except FileNotFoundError as error:
            return error
        except PermissionError as error:
            raise InputError(f"{self.name(span[0])}: {error}") from None

    def _part(self, span: Span) -> bytes:
        file, offset, size = span

        def ask(system: Any, path: str) -> bytes:
            return system.cat_file(path, start=offset, end=offset + size, **_unbuffered(system))

        return self._checked(self._ask(ask, file), span)

    def _checked(self, content: bytes, span: Span) -> bytes:
        if len(content) > span[2]:
            raise InputError(f"{self._url}: the server hands out whole files only, where a part of one was asked for")
        return content

    def _ask(self, question: Callable[[Any, str], T], file: str = "") -> T:
        """What the file system answers about `file`, or the root; asked again, after a pause, where it does not.

        Raises:
            FileNotFoundError: It says that there is no such file.
            PermissionError: It refuses.
            InputError: No answer, or the protocol is not installed.
        """
        pauses = iter(_PAUSES if self._has_answered else _FIRST_PAUSES)
        while True:
            try:
                # fsspec keeps one for each process: those of a parent do not work in its children.
                system, path = fsspec.url_to_fs(self.name(file).rstrip("/"), **self._options)
                answer = question(system, path)
                self._has_answered = True
                return answer
            except (FileNotFoundError, PermissionError, InputError):
                self._has_answered = True
                raise
            except ImportError as error:
                raise InputError(f"{self._url} cannot be opened: {one_line(error)}") from None
            except Exception as error:  # each protocol has errors of its own
                if "Protocol not known" in str(error):
                    raise InputError(f"{self._url} cannot be opened: {one_line(error)}") from None
                if getattr(error, "status", None) in (401, 403):
                    raise PermissionError(f"the server refuses it ({one_line(error)})") from None
                pause = next(pauses, None)
                if pause is None:
                    raise InputError(f"{self.name(file)} gives no answer ({one_line(error)})") from None
                time.sleep(pause)


def _web_options(url: str) -> dict[str, Any]:
    """A server that hangs is one that gives no answer; a large file may take its time."""
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        raise InputError(f"reading {url} needs aiohttp: pip install 'glasszoo[data]'") from None
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)}}


def _is_async(system: Any) -> bool:
    return bool(getattr(system, "async_impl", False))


def _unbuffered(system: Any) -> dict[str, Any]:
    """For file systems that open a file to read a part of it: they would read megabytes ahead."""
    return {} if _is_async(system) else {"cache_type": "none"}


class _RemoteFile(RawIOBase):
    """A file read by requests for its parts."""

    def __init__(self, part: Callable[[int, int], bytes], size: int) -> None:
        self._part, self._size, self._place = part, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._place = offset + {SEEK_SET: 0, SEEK_CUR: self._place, SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._place)
        if count <= 0:
            return 0
        content = self._part(self._place, count)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
