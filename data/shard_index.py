"""Where each sample lies in shards: the index that `write_shards` leaves, or one made of the headers of tar files."""

import json
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError, unknown_name
from .shard_folder import ShardFolder, cached, splits_of

# Where a sample's members lie in their shard, and what is known of it without reading an image. On disk: index.npy.
INDEX = np.dtype([("shard", "<i8"), ("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("group", "<i8")])
INDEX_FILE = "index.npy"
SPLITS = ("train", "val", "validation", "test")


def find_index(folder: ShardFolder, split: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    """The names of a split's shards, and its index, mapped from a file and not read: processes share its memory.

    Tar files without index.npy are looked through once; what was found is kept in the cache (GLASSZOO_CACHE) until one
    of them changes or, behind a URL, until their list does.

    Raises:
        InputError: No shards of this split, an index that does not fit them, or a tar file that `index_shards` refuses.
    """
    path = folder.file(f"{split}/{INDEX_FILE}")
    if path is None:
        shards = _tar_files(folder, split)
        return shards, _made_index(folder, split, shards)
    shards = folder.tar_files(split)
    try:
        index = np.load(path, mmap_mode="c")
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}): without it, the tar files are looked through") from None
    if index.dtype != INDEX or (len(index) and index["shard"].max() >= len(shards)):
        raise InputError(f"{path} does not fit the {len(shards)} tar files beside it")
    return shards, index


def _made_index(folder: ShardFolder, split: str, shards: list[str]) -> np.ndarray[Any, Any]:
    made: list[np.ndarray[Any, Any]] = []

    def write(path: Path) -> None:
        made.append(index_shards(folder, shards))
        with path.open("wb") as file:
            np.save(file, made[0])

    try:
        what = [folder.address, split, INDEX.descr]
        return np.load(cached(what, folder.state(shards), INDEX_FILE, write), mmap_mode="c")
    except OSError as error:
        print(f"the index of {folder} cannot be kept in the cache ({error})", file=sys.stderr)
        return made[0] if made else index_shards(folder, shards)


def index_shards(folder: ShardFolder, shards: list[str]) -> np.ndarray[Any, Any]:
    """The index (`INDEX`) of tar files that have none: every header is read, of the content labels alone.

    Each image is a group of its own, unless its json knows another number.

    Raises:
        InputError: A tar file cannot be read or is cut off, or a sample has no label.
    """
    print(f"{folder} has no {INDEX_FILE}: looking through {len(shards)} tar files", file=sys.stderr)
    rows: list[tuple[int, int, int, int, int]] = []
    for number, name in enumerate(shards):
        for offset, end, label, group in _spans(folder, name):
            rows.append((number, offset, end - offset, label, len(rows) if group is None else group))
    return np.array(rows, dtype=INDEX)


def _tar_files(folder: ShardFolder, split: str) -> list[str]:
    """The shards of a split: in a folder of that name, or beside each other with the split in their names."""
    own = folder.tar_files(split)
    if own:
        return own
    named: dict[str, list[str]] = {}
    for name in folder.tar_files():
        words = name.removesuffix(".tar").replace("_", "-").split("-")
        named.setdefault(next((word for word in SPLITS if word in words), "train"), []).append(name)
    if split not in named:
        others = [name for name in (*SPLITS, *splits_of(folder)) if folder.tar_files(name)]
        raise unknown_name(f"split of {folder}", split, {*named, *others})
    return named[split]


def _spans(folder: ShardFolder, name: str) -> Iterator[tuple[int, int, int, int | None]]:
    """Begin, end, label and, where known, group of each sample in a tar file."""
    path = folder.name(name)
    try:
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, begin, end, last = "", 0, 0, 0
            known: dict[str, Any] = {}
            for member in tar:
                last = member_end(member)
                if not member.isfile():
                    continue
                own_key, extension = member_key(member.name)
                if own_key != key and key:
                    yield begin, end, *_label(known, key, path)
                if own_key != key:
                    key, begin, known = own_key, member.offset, {}
                end = last
                if extension in ("cls", "json"):
                    content = tar.extractfile(member)
                    known[extension] = content.read() if content else b""
            if key:
                yield begin, end, *_label(known, key, path)
            # tarfile takes a header that is none for the end, which zeros make.
            file.seek(last)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise InputError(f"{path} is broken after sample {key!r}")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is cut off or no tar file ({error})") from None


def _label(known: dict[str, Any], key: str, path: str) -> tuple[int, int | None]:
    """The label of a sample, and its group where it has one, from the content of its `cls` and `json`."""
    try:
        label, about = own_label(known)
    except ValueError as error:
        raise InputError(f"{path}: {key}.json cannot be read ({error})") from None
    if label is None:
        raise InputError(f"{path}: sample {key!r} has no label: no number in a .cls or in .json's label")
    group = about.get("group")
    if group is not None and not isinstance(group, int):
        raise InputError(f"{path}: the group of sample {key!r} is {group!r}, where a number is expected")
    return label, group


def own_label(members: Mapping[str, bytes]) -> tuple[int | None, dict[str, Any]]:
    """The label that a sample's own members give, if any, and all that its `json` says.

    Raises:
        ValueError: That is no JSON.
    """
    about = json.loads(members.get("json", b"{}"))
    about = about if isinstance(about, dict) else {}
    try:
        return int(members["cls"] if "cls" in members else about["label"]), about
    except (KeyError, ValueError, TypeError):
        return None, about


def member_key(name: str) -> tuple[str, str]:
    """A member's key, with its folders, and its extension, which begins at the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def member_end(member: tarfile.TarInfo) -> int:
    """The byte after a member's content, which fills whole blocks."""
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
