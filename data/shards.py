"""Data sets in shards: tar files as WebDataset has them, read at random places, so that nothing is held in memory."""

import json
import os
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, check_same_size, decode_image, stated_license
from .samples import Sample, Unreadable

# Where a sample's members lie in their shard, and what is known of it without reading an image. On disk: index.npy.
INDEX = np.dtype([("shard", "<i8"), ("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("group", "<i8")])
INDEX_FILE, TARGETS_FILE, CLASSES_FILE = "index.npy", "targets.npy", "classes.json"
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "tif", "tiff", "img", "image")
_SPLITS = ("train", "val", "validation", "test")
_OPEN = 64  # files kept open by a process


class Shards:
    """Images of one split below `root` that lie in tar files, as a data set (`ImageDataset`).

    The convention is WebDataset's: members KEY.EXTENSION of one KEY are neighbours and make a sample. Read are the
    image (`IMAGES`), `cls` (the label's number), `mask.png` and `json` (where known id, label, group, boxes, points,
    targets: see `Sample`). `root/SPLIT/index.npy` and `root/classes.json`, which `write_shards` leaves, say where each
    sample lies. Without the first, the tar files `root/SPLIT/*.tar` (or `root/*.tar`, with the split in their names, or
    none for "train") are looked through once, now; without the second, `root/classes.txt` has a class's name a line, or
    classes are called by their numbers. `shard_sizes` has the number of samples of each shard.

    Raises:
        InputError: No shards of this split, a tar file without labels or cut off, or lists that do not fit it.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        index = self.root / split / INDEX_FILE
        if index.is_file():
            shards = sorted(index.parent.glob("*.tar"))
            try:
                self._index = np.load(index, mmap_mode="r")
            except (ValueError, EOFError) as error:
                raise InputError(
                    f"{index} cannot be read ({error}): without it, the tar files are looked through"
                ) from None
            if self._index.dtype != INDEX or (len(self._index) and self._index["shard"].max() >= len(shards)):
                raise InputError(f"{index} does not fit the {len(shards)} tar files beside it")
        else:
            shards = _tar_files(self.root, split)
            print(f"{shards[0].parent} has no {INDEX_FILE}: looking through {len(shards)} tar files", file=sys.stderr)
            self._index = index_shards(shards)
        if not len(self._index):
            raise InputError(f"the shards in {shards[0].parent if shards else index.parent} hold no images")
        self._files = _Files(shards)
        self.labels = torch.from_numpy(np.array(self._index["label"]))
        self.groups = torch.from_numpy(np.array(self._index["group"]))
        self.shard_sizes: list[int] = np.bincount(self._index["shard"], minlength=len(shards)).tolist()
        self._starts = np.cumsum([0, *self.shard_sizes])
        targets = self.root / split / TARGETS_FILE
        if targets.is_file():
            self.targets = torch.from_numpy(np.load(targets))  # n c, where images can show several classes
        about = _about(self.root)
        count = max(int(self.labels.max()) + 1, len(about.get("classes", ())))
        self.classes = tuple(about.get("classes") or map(str, range(count)))
        if count > len(self.classes) or int(self.labels.min()) < 0:
            raise InputError(f"{self.root} names {len(self.classes)} classes, but an image has the label {count - 1}")
        self.part_names = tuple(about.get("part_names", ()))
        self.license: str | None = about.get("license") or stated_license(self.root)
        self.description: str | None = about.get("description")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and what is known of it, or `Unreadable` naming the shard and the sample."""
        shard, offset, size, label, _ = self._index[index].tolist()
        path = self._files.paths[shard]
        # The key stands in what may be unreadable; the place in the shard is known.
        name = f"{path.name}/{index - int(self._starts[shard])}"
        try:
            span = self._files.read(shard, offset, size)
            if len(span) < size:
                raise UnfitFile(f"{path} is truncated: it ends within sample {name}, {size - len(span)} bytes too soon")
            key, members = _members(span, f"{path}, sample {name},")
            return _sample(key, members, label, path)
        except OSError as error:
            return Unreadable(name, f"{path}, sample {name}, cannot be read ({error.strerror or error})")
        except UnfitFile as error:
            return Unreadable(name, str(error))


def is_shards(root: Path) -> bool:
    """Whether a folder holds tar files, by themselves or in the folders of splits."""
    return root.is_dir() and (
        any(root.glob(f"*/{INDEX_FILE}"))
        or any(root.glob("*.tar"))
        or any(path for split in _SPLITS for path in (root / split).glob("*.tar"))
    )


def index_shards(shards: list[Path]) -> np.ndarray[Any, Any]:
    """The index (`INDEX`) of tar files that have none: every header is read, of the content labels alone.

    Each image is a group of its own, unless its json knows another number.

    Raises:
        InputError: A tar file cannot be read or is cut off, or a sample has no label.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for number, path in enumerate(shards):
        for offset, end, label, group in _spans(path):
            rows.append((number, offset, end - offset, label, len(rows) if group is None else group))
    return np.array(rows, dtype=INDEX)


class _Files:
    """Tar files, opened when they are first read; each process has its own, and a copy begins with none open."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["_Files"], tuple[list[Path]]]:
        return _Files, (self.paths,)

    def __del__(self) -> None:
        self._close(0)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, or what there is of them; raises OSError."""
        if self._process != os.getpid():
            self._close(0)
            self._process = os.getpid()
        if shard not in self._open:
            self._close(_OPEN - 1)
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(shard)
        return os.pread(self._open[shard], size, offset)

    def _close(self, left: int) -> None:
        while len(self._open) > left:
            os.close(self._open.popitem(last=False)[1])


def _tar_files(root: Path, split: str) -> list[Path]:
    own = sorted((root / split).glob("*.tar"))
    if own:
        return own
    beside = sorted(root.glob("*.tar"))
    named: dict[str, list[Path]] = {}
    for path in beside:
        words = path.stem.replace("_", "-").split("-")
        named.setdefault(next((word for word in _SPLITS if word in words), "train"), []).append(path)
    if split not in named:
        folders = [folder.parent.name for folder in root.glob("*/*.tar")]
        raise unknown_name(f"split of {root}", split, {*named, *folders})
    return named[split]


def _about(root: Path) -> dict[str, Any]:
    """Classes and what else is known of a data set in shards."""
    if (root / CLASSES_FILE).is_file():
        try:
            about: dict[str, Any] = json.loads((root / CLASSES_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{root / CLASSES_FILE} cannot be read ({error})") from None
        return about
    if (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        return {"classes": [line.strip() for line in lines if line.strip()]}
    return {}


def _spans(path: Path) -> Iterator[tuple[int, int, int, int | None]]:
    """Begin, end, label and, where known, group of each sample in a tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, begin, end = "", 0, 0
            known: dict[str, Any] = {}
            for member in tar:
                own_key, extension = _key(member.name)
                if own_key != key and key:
                    yield begin, end, *_label(known, key, path)
                if own_key != key:
                    key, begin, known = own_key, member.offset, {}
                end = _end(member)
                if extension in ("cls", "json"):
                    content = tar.extractfile(member)
                    known[extension] = content.read() if content else b""
            if key:
                yield begin, end, *_label(known, key, path)
        # tarfile takes a header that is none for the end, which zeros make.
        with path.open("rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise InputError(f"{path} is broken after sample {key!r}")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is cut off or no tar file ({error})") from None


def _label(known: dict[str, Any], key: str, path: Path) -> tuple[int, int | None]:
    try:
        about = json.loads(known.get("json", b"{}"))
        about = about if isinstance(about, dict) else {}
        return int(known["cls"] if "cls" in known else about["label"]), about.get("group")
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{path}: sample {key!r} has no label: no number in a .cls or in .json's label") from None


def _key(name: str) -> tuple[str, str]:
    """A member's key, with its folders, and its extension, which begins at the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _members(span: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """The key of a sample and its members by extension."""
    members, end, key = {}, 0, ""
    try:
        with tarfile.open(fileobj=BytesIO(span), mode="r:") as tar:
            for member in tar:
                key, extension = _key(member.name)
                members[extension] = span[member.offset_data : member.offset_data + member.size]
                end = _end(member)
    except tarfile.TarError as error:
        raise UnfitFile(f"{where} is broken ({error})") from None
    if end != len(span):
        raise UnfitFile(f"{where} is broken: its members end at byte {end} of {len(span)}")
    return key, members


def _sample(key: str, members: dict[str, bytes], label: int, path: Path) -> Sample:
    try:
        about = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        raise UnfitFile(f"{path}: {key}.json cannot be read ({error})") from None
    about = about if isinstance(about, dict) else {}
    extension = next((kind for kind in IMAGES if kind in members), None)
    if extension is None:
        raise UnfitFile(f"{path}: sample {key} has no image, but {', '.join(members)}")
    image = decode_image(BytesIO(members[extension]), "RGB", f"{path}: {key}.{extension}")
    sample = Sample(image=image, label=label, id=str(about.get("id", key)))
    canvas = (image.height, image.width)
    if "mask.png" in members:
        name = f"{path}: {key}.mask.png"
        mask = decode_image(BytesIO(members["mask.png"]), "L", name)
        check_same_size(mask, image, name)
        sample["mask"] = tv_tensors.Mask(pil_to_tensor(mask)[0])
    try:
        if about.get("boxes") is not None:
            boxes = torch.tensor(about["boxes"]).reshape(-1, 4)
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
        if about.get("points") is not None:
            points = [[torch.nan if value is None else value for value in point] for point in about["points"]]
            sample["points"] = tv_tensors.KeyPoints(torch.tensor(points).reshape(-1, 2), canvas_size=canvas)
        if about.get("targets") is not None:
            sample["targets"] = torch.tensor(about["targets"], dtype=torch.uint8)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnfitFile(f"{path}: {key}.json has boxes, points or targets that are no numbers ({error})") from None
    return sample
