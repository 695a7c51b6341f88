"""A folder of images as a data set: with an index.csv that knows masks, boxes and groups, or plain class folders."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from ..common.errors import InputError, unknown_name
from .samples import Sample, Unreadable
from .shard_index import INDEX_FILE, SPLITS

_REQUIRED = ("split", "class", "image")
_EXTENSIONS = set(Image.registered_extensions())


@dataclass(frozen=True)
class _Record:
    image: Path
    label: int
    group: str
    mask: Path | None = None
    box: tuple[float, float, float, float] | None = None
    targets: tuple[int, ...] | None = None


class ImageFolder:
    """Images of one split below `root`, as a data set (`ImageDataset`).

    With `root/index.csv` (header: split, class, image; where known mask, x1, y1, x2, y2, group): paths are relative
    to `root`, boxes are pixels with x2 and y2 exclusive, masks as in `Sample`. Without it: `root/SPLIT/CLASS/…`, or
    `root/CLASS/…` taken as the split "train". Classes are all that the folder knows, in sorted order, whatever the
    split. An image's id is its path below `root`. `license` is what `root/LICENSE` calls itself.

    `labels`: for images that can show several classes at once, the columns of `index.csv` that say 1 where a class is
    there and 0 where it is not; these are the classes then, in this order, and `class` need not be there.

    Raises:
        InputError: No such folder, an index without the needed columns, an unknown split, no images, or a label that is
            neither 0 nor 1.
    """

    def __init__(self, root: str | Path, split: str = "train", labels: Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise InputError(f"data set folder {self.root} does not exist")
        index = self.root / "index.csv"
        if index.is_file():
            self.classes, self._records = _read_index(index, split, labels)
        elif labels is not None:
            raise InputError(f"{self.root} has no index.csv, whose columns could be the labels {', '.join(labels)}")
        else:
            self.classes, self._records = _scan(self.root, split)
        self.labels = torch.tensor([record.label for record in self._records])
        names = sorted({record.group for record in self._records})
        numbers = {name: number for number, name in enumerate(names)}
        self.groups = torch.tensor([numbers[record.group] for record in self._records])
        targets = [record.targets for record in self._records if record.targets is not None]
        self.targets = torch.tensor(targets, dtype=torch.uint8) if targets else None
        self.license = stated_license(self.root)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def ids(self) -> list[str]:
        """The ids of all samples: paths below the folder."""
        return [self._id(record) for record in self._records]

    def _id(self, record: _Record) -> str:
        return record.image.relative_to(self.root).as_posix()

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and what is known of it, or `Unreadable` naming the file that is at fault."""
        record, identifier = self._records[index], self._id(self._records[index])
        try:
            sample = Sample(image=open_image(record.image, "RGB"), label=record.label, id=identifier)
            width, height = sample["image"].size
            if record.mask is not None:
                mask = open_image(record.mask, "L")
                check_same_size(mask, sample["image"], str(record.mask))
                sample["mask"] = tv_tensors.Mask(pil_to_tensor(mask)[0])
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        if record.targets is not None:
            sample["targets"] = torch.tensor(record.targets, dtype=torch.uint8)
        if record.box is not None:
            boxes = torch.tensor([record.box])
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        return sample

    def image_file(self, index: int) -> Path:
        """The file of an image."""
        return self._records[index].image


def is_image_folder(root: Path) -> bool:
    """Whether an index.csv or class folders with images lie here, whatever tar files lie beside them.

    These may hold the same images once more, test images among them. Folders with tar files are no class folders, and
    beside an index of shards nothing else counts.
    """
    if not root.is_dir() or any(root.glob(f"*/{INDEX_FILE}")):
        return False
    if (root / "index.csv").is_file():
        return True
    tops = [root / split for split in SPLITS if (root / split).is_dir()] or [root]
    return any(_holds_images(folder) for top in tops for folder in _class_folders(top))


def _class_folders(top: Path) -> list[Path]:
    """The folders in `top`, but not what was unpacked so far of the tar files beside it, one a class."""
    folders, tar_files = set(_subfolders(top)), {path.stem for path in top.glob("*.tar")}
    unpacked = folders & tar_files if tar_files - folders else set()
    return [top / name for name in sorted(folders - unpacked)]


def _holds_images(folder: Path) -> bool:
    return not any(folder.glob("*.tar")) and any(path.suffix.lower() in _EXTENSIONS for path in folder.rglob("*"))


def stated_license(root: Path) -> str | None:
    """The first line of `root/LICENSE` (or LICENSE.txt), which is a licence's name; None without one."""
    for path in (root / "LICENSE", root / "LICENSE.txt"):
        if path.is_file():
            lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
            return next(filter(None, lines), None)
    return None


class UnfitFile(Exception):
    """A file that cannot be used, in one sentence."""


def read_image(path: str | Path) -> Image.Image:
    """An image file as an RGB PIL image, decoded whole.

    Raises:
        InputError: The file is missing, truncated, or no image.
    """
    try:
        return open_image(Path(path), "RGB")
    except UnfitFile as error:
        raise InputError(str(error)) from None


def open_image(path: Path, mode: str) -> Image.Image:
    """An image file decoded whole; raises `UnfitFile`."""
    return decode_image(path, mode, str(path))


def check_same_size(mask: Image.Image, image: Image.Image, name: str) -> None:
    """Raises `UnfitFile`, which calls the mask `name`, where it is not of its image's size."""
    if mask.size != image.size:
        raise UnfitFile(f"{name} is {mask.size}, but its image is {image.size} (width, height)")


def decode_image(source: Path | IO[bytes], mode: str, name: str) -> Image.Image:
    """An image decoded whole from a path or what reads like a file; raises `UnfitFile`, which calls it `name`."""
    try:
        with Image.open(source) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise UnfitFile(f"image {name} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL's word for a file that is no image names the path again; for a broken one it says what broke.
        reason = "no image" if "cannot identify" in str(error) else f"not readable ({error})"
        raise UnfitFile(f"{name} is {reason}") from None


def _read_index(path: Path, split: str, labels: Sequence[str] | None) -> tuple[tuple[str, ...], list[_Record]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = [column for column in _REQUIRED if column != "class" or labels is None]
        lacking = [column for column in needed if column not in (reader.fieldnames or ())]
        if lacking:
            raise InputError(f"{path} lacks the column {lacking[0]!r}")
        for label in labels or ():
            if label not in (reader.fieldnames or ()):
                raise unknown_name(f"column of {path}", label, reader.fieldnames or ())
        rows = list(reader)
    classes = tuple(sorted({row["class"] for row in rows})) if labels is None else tuple(labels)
    _check_split(split, {row["split"] for row in rows}, path)
    records = [_record(row, path, classes, labels is not None) for row in rows if row["split"] == split]
    return classes, records


def _record(row: dict[str, str], path: Path, classes: tuple[str, ...], has_several: bool) -> _Record:
    edges = [row.get(edge) or "" for edge in ("x1", "y1", "x2", "y2")]
    box = None
    if any(edges):
        try:
            x1, y1, x2, y2 = map(float, edges)
        except ValueError:
            raise InputError(f"{path}: the box of {row['image']} is {','.join(edges)}, not four numbers") from None
        box = (x1, y1, x2, y2)
    targets = _targets(row, path, classes) if has_several else None
    return _Record(
        image=path.parent / row["image"],
        # Of several classes the first, of none number 0 (`Sample`).
        label=classes.index(row["class"]) if targets is None else targets.index(max(targets)),
        # An image of no group is one of its own.
        group=row.get("group") or row["image"],
        mask=path.parent / row["mask"] if row.get("mask") else None,
        box=box,
        targets=targets,
    )


def _targets(row: dict[str, str], path: Path, classes: tuple[str, ...]) -> tuple[int, ...]:
    for name in classes:
        if row[name] not in ("0", "1"):
            raise InputError(f"{path}: {name} of {row['image']} is {row[name]!r}, where 0 or 1 is expected")
    return tuple(int(row[name]) for name in classes)


def _scan(root: Path, split: str) -> tuple[tuple[str, ...], list[_Record]]:
    folders = _subfolders(root)
    splits = [folder for folder in folders if folder in SPLITS]
    classes = tuple(sorted({name for folder in splits for name in _subfolders(root / folder)}) if splits else folders)
    if not classes:
        raise InputError(f"{root} has no class folders and no index.csv: zero classes")
    _check_split(split, splits or ["train"], root)
    top = root / split if splits else root
    files = [
        _Record(image=path, label=label, group=path.relative_to(root).as_posix())
        for label, name in enumerate(classes)
        for path in sorted((top / name).rglob("*"))
        if path.suffix.lower() in _EXTENSIONS
    ]
    if not files:
        aside = " in its folders, beside which tar files are left aside" if any(top.glob("*.tar")) else ""
        raise InputError(f"{top} holds no images{aside}")
    return classes, files


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _check_split(split: str, known: Iterable[str], where: Path) -> None:
    if split not in set(known):
        raise unknown_name(f"split of {where}", split, known)
