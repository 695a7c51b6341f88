"""Data sets in shards: tar files as WebDataset has them, read at random places, so that nothing is held in memory."""

import json
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from ..common.errors import InputError
from .folder import UnfitFile, check_same_size, decode_image, stated_license
from .remote_folder import RemoteFolder
from .samples import Sample, Unreadable
from .shard_folder import LocalFolder, ShardFolder, Span, is_url
from .shard_index import INDEX_FILE, SPLITS, find_index, member_end, member_key, own_label

TARGETS_FILE, CLASSES_FILE = "targets.npy", "classes.json"
_PIECE = 2**20  # rows of the index that are copied at a time
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "pbm", "tif", "tiff", "img", "image")


class Shards:
    """Images of one split below `root` that lie in tar files, as a data set (`ImageDataset`).

    The convention is WebDataset's: members KEY.EXTENSION of one KEY are neighbours and make a sample. Read are the
    image (`IMAGES`), `cls` (the label's number), `mask.png` and `json` (where known id, label, group, boxes, points,
    targets: see `Sample`). `root/SPLIT/index.npy` and `root/classes.json`, which `write_shards` leaves, say where each
    sample lies. Without the first, the tar files `root/SPLIT/*.tar` (or `root/*.tar`, with the split in their names, or
    none for "train") are looked through once, and what was found is kept in the cache; without the second,
    `root/classes.txt` has a class's name a line, or classes are called by their numbers. `shard_sizes` has the number
    of samples of each shard.

    `root` is a folder, or a URL that fsspec opens (https://, s3://, hf://datasets/ …): the index is fetched into the
    cache, and each sample by a request of its own. Which tar files there are says `root/info.json`, which
    `write_shards` leaves, else the server.

    Raises:
        InputError: No shards of this split, a tar file without labels or cut off, lists that do not fit it, a URL of a
            protocol that is not installed, or no answer.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self._root, self._split = root, split
        self._folder: ShardFolder = RemoteFolder(str(root)) if is_url(root) else LocalFolder(Path(root).expanduser())
        self._names, self._index = find_index(self._folder, split)
        if not len(self._index):
            raise InputError(f"the shards of the split {split!r} in {self._folder} hold no images")
        # Columns of the mapped file, of which no process holds a copy.
        self.labels = torch.from_numpy(self._index["label"])
        self.groups = torch.from_numpy(self._index["group"])
        self.shard_sizes = _counts(self._index["shard"], len(self._names))
        self._starts = np.cumsum([0, *self.shard_sizes])
        targets = self._folder.file(f"{split}/{TARGETS_FILE}")
        if targets is not None:
            # n c, where images can show several classes
            self.targets = torch.from_numpy(np.load(targets, mmap_mode="c"))
        about = _about(self._folder)
        count = max(int(self.labels.max()) + 1, len(about.get("classes", ())))
        self.classes = tuple(about.get("classes") or map(str, range(count)))
        if count > len(self.classes) or int(self.labels.min()) < 0:
            raise InputError(
                f"{self._folder} names {len(self.classes)} classes, but an image has the label {count - 1}"
            )
        self.part_names = tuple(about.get("part_names", ()))
        known = None if is_url(root) else stated_license(Path(root).expanduser())
        self.license: str | None = about.get("license") or known
        self.description: str | None = about.get("description")
        if is_url(root):
            self._folder.read([self._span(0)])  # a server that cannot hand out a part of a file says so now

    def __reduce__(self) -> tuple[type["Shards"], tuple[str | Path, str]]:
        """Another process opens them anew: a copy would hold the whole index."""
        return Shards, (self._root, self._split)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and what is known of it, or `Unreadable` naming the shard and the sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """Several samples in one call: behind a URL they are fetched side by side."""
        spans = [self._span(index) for index in indices]
        contents = self._folder.read(spans)
        return [self._sample(*found) for found in zip(indices, spans, contents, strict=True)]

    def _span(self, index: int) -> Span:
        shard, offset, size, *_ = self._index[index].tolist()
        return self._names[shard], offset, size

    def _sample(self, index: int, span: Span, content: bytes | OSError) -> Sample | Unreadable:
        file, _, size = span
        path = self._folder.name(file)
        # The key stands in what may be unreadable; the place in the shard is known.
        name = f"{file.rpartition('/')[2]}/{index - int(self._starts[self._index['shard'][index]])}"
        if isinstance(content, OSError):
            return Unreadable(name, f"{path}, sample {name}, cannot be read ({content.strerror or content})")
        try:
            if len(content) < size:
                missing = size - len(content)
                raise UnfitFile(f"{path} is truncated: it ends within sample {name}, {missing} bytes too soon")
            key, members = _members(content, f"{path}, sample {name},")
            return _sample(key, members, int(self.labels[index]), path)
        except UnfitFile as error:
            return Unreadable(name, str(error))


def is_shards(root: Path) -> bool:
    """Whether a folder holds tar files, by themselves or in the folders of splits."""
    return root.is_dir() and (
        any(root.glob(f"*/{INDEX_FILE}"))
        or any(root.glob("*.tar"))
        or any(path for split in SPLITS for path in (root / split).glob("*.tar"))
    )


def _counts(column: np.ndarray[Any, Any], length: int) -> list[int]:
    """How often each number below `length` occurs; in pieces, since counting copies what it counts."""
    counts = np.zeros(length, np.int64)
    for start in range(0, len(column), _PIECE):
        counts += np.bincount(column[start : start + _PIECE], minlength=length)
    return counts.tolist()


def _about(folder: ShardFolder) -> dict[str, Any]:
    """Classes and what else is known of a data set in shards."""
    text = folder.text(CLASSES_FILE)
    if text is not None:
        try:
            about: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise InputError(f"{folder.name(CLASSES_FILE)} cannot be read ({error})") from None
        return about
    lines = (folder.text("classes.txt") or "").splitlines()
    return {"classes": [line.strip() for line in lines if line.strip()]}


def _members(span: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """The key of a sample and its members by extension."""
    members, end, key = {}, 0, ""
    try:
        with tarfile.open(fileobj=BytesIO(span), mode="r:") as tar:
            for member in tar:
                end = member_end(member)
                if member.isfile():
                    key, extension = member_key(member.name)
                    members[extension] = span[member.offset_data : member.offset_data + member.size]
    except tarfile.TarError as error:
        raise UnfitFile(f"{where} is broken ({error})") from None
    if end != len(span):
        raise UnfitFile(f"{where} is broken: its members end at byte {end} of {len(span)}")
    return key, members


def _sample(key: str, members: dict[str, bytes], label: int, path: str) -> Sample:
    try:
        known, about = own_label(members)
    except ValueError as error:
        raise UnfitFile(f"{path}: {key}.json cannot be read ({error})") from None
    if known is not None and known != label:
        raise UnfitFile(f"{path}: {key} has the label {known}, but {label} in the index, which is older than the shard")
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
