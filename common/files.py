"""Writing files so that what was there before survives a crash, a kill or a full disk."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; on success move it there in one step, on any error remove it.

    The new content is on the disk (fsync) before the name changes hands, so that `path` always holds either the
    old file or the whole new one. The folder of `path` is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes files that only their owner can read; give the result an ordinary file's permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clear_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed while it wrote left in `folder` and below: files of `replacing`."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_vacant(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds something, so that nothing of before is mixed with what is to be written there.

    Raises:
        InputError: It holds something, or is a file.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a new folder")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step: readers see the old file or the new one, never a half."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
