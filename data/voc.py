"""A folder in the layout of Pascal VOC: images with several objects each, and the objects' boxes."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, open_image, stated_license
from .samples import Sample, Unreadable
from .voc_xml import Box, BoxedObject, boxes_within, read_annotation

_NEEDED = ("JPEGImages", "Annotations", "ImageSets/Main")
_SPLITS = ("train", "val", "trainval", "test")


class _Record(NamedTuple):
    name: str  # of the image, without its ending
    label: int
    boxes: list[Box]
    present: set[int]  # the labels of all its objects
    group: int
    number: int | None  # of the object that is cut out, counted from 1 in its file; None for the whole image


class PascalVOC:
    """Images, or single objects, of one split of a folder in the layout of Pascal VOC (Everingham et al., 2010).

    `root` holds JPEGImages/, Annotations/ (an XML file an image) and ImageSets/Main/ (train, val, trainval, test .txt,
    an image's name a line), or is the parent of the one folder that does, as VOCdevkit is of VOC2012. Classes are the
    names of all objects that the lists know, sorted, whatever the split. Objects marked as difficult are left out, and
    images that have no others with them. An image's id is its path below the folder that holds JPEGImages.

    With `objects="image"` an image's class is the one whose boxes have the largest area in sum (of equals the first in
    the order of classes), and its `boxes` are all those of this class. With `objects="crop"` each object is cut out of
    its photograph as an image of its own: no boxes, `groups` tells the photograph, and "#" with the object's number
    in its file, from 1, ends the id. `targets` (`n class`, uint8) is 1 where a class occurs in the image; None for
    crops.

    Raises:
        InputError: No such folder or more than one, a split that it lacks, an XML file that is missing or broken, no
            images, or an unknown way of taking `objects`.
    """

    description = "photographs with the boxes of their objects (layout of Pascal VOC, Everingham et al. 2010)"

    def __init__(self, root: str | Path, split: str = "train", objects: str = "image") -> None:
        if objects not in ("image", "crop"):
            raise unknown_name("way of taking objects", objects, ("image", "crop"))
        self.root = _layout(Path(root).expanduser())
        lists = {name: path for name in _SPLITS if (path := self.root / f"ImageSets/Main/{name}.txt").is_file()}
        if split not in lists:
            raise unknown_name(f"split of {self.root}", split, lists)
        own = _listed(lists[split])
        found = self._read(own, [image for path in lists.values() for image in _listed(path)])
        self.classes = tuple(sorted({item.name for objects_of in found.values() for item in objects_of}))
        places = {name: label for label, name in enumerate(self.classes)}
        self._records: list[_Record] = []
        for group, image in enumerate(own):
            labelled = [
                (number, places[item.name], item.box)
                for number, item in enumerate(found[image], 1)
                if not item.is_difficult
            ]
            self._records += _crops(image, labelled, group) if objects == "crop" else _whole(image, labelled, group)
        if not self._records:
            raise InputError(f"{self.root} has no object, difficult ones aside, in the split {split!r}")
        self.labels = torch.tensor([record.label for record in self._records], dtype=torch.int64)
        self.groups = torch.tensor([record.group for record in self._records], dtype=torch.int64)
        self.targets: Tensor | None = None
        if objects == "image":
            self.targets = torch.zeros(len(self._records), len(self.classes), dtype=torch.uint8)
            for row, record in enumerate(self._records):
                self.targets[row, sorted(record.present)] = 1
        self.license = stated_license(self.root) or stated_license(Path(root).expanduser())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image or crop (PIL, RGB) and its boxes, or `Unreadable` naming the file that is at fault."""
        record = self._records[index]
        path = f"JPEGImages/{record.name}.jpg"
        identifier = path if record.number is None else f"{path}#{record.number}"
        try:
            image = open_image(self.root / path, "RGB")
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        boxes = boxes_within(record.boxes, image)
        if record.number is None:
            sample = Sample(image=image, label=record.label, id=identifier)
            if self.targets is not None:
                sample["targets"] = self.targets[index]
            if boxes is not None:
                sample["boxes"] = boxes
            return sample
        if boxes is None:
            return Unreadable(identifier, f"object {record.number} of {self.root / path} lies outside the image")
        return Sample(image=_cut(image, boxes[0].tolist()), label=record.label, id=identifier)

    def _read(self, own: list[str], listed: list[str]) -> dict[str, list[BoxedObject]]:
        """Objects by image; those of other splits are wanted for the names of classes only, and may be unpublished."""
        paths = {image: self.root / f"Annotations/{image}.xml" for image in dict.fromkeys([*own, *listed])}
        needed = set(own)
        return {
            image: read_annotation(path).objects for image, path in paths.items() if image in needed or path.is_file()
        }


def is_voc(root: Path) -> bool:
    """Whether a folder, or one right below it, has the folders of that layout."""
    return bool(_layouts(root))


def _layouts(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    if all((root / name).is_dir() for name in _NEEDED):
        return [root]
    return [folder for folder in sorted(root.iterdir()) if all((folder / name).is_dir() for name in _NEEDED)]


def _layout(root: Path) -> Path:
    found = _layouts(root)
    if not found:
        raise InputError(f"{root} does not hold the folders {', '.join(_NEEDED)} of Pascal VOC's layout")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise InputError(f"{root} holds more than one folder in Pascal VOC's layout; name one of {names}")
    return found[0]


def _listed(path: Path) -> list[str]:
    """The first word of each line, once each."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _whole(image: str, objects: list[tuple[int, int, Box]], group: int) -> list[_Record]:
    areas: dict[int, float] = {}
    for _, label, (x1, y1, x2, y2) in objects:
        areas[label] = areas.get(label, 0.0) + (x2 - x1) * (y2 - y1)
    if not areas:
        return []
    largest = min(areas, key=lambda label: (-areas[label], label))
    return [_Record(image, largest, [box for _, label, box in objects if label == largest], set(areas), group, None)]


def _crops(image: str, objects: list[tuple[int, int, Box]], group: int) -> list[_Record]:
    return [_Record(image, label, [box], {label}, group, number) for number, label, box in objects]


def _cut(image: Image.Image, box: list[float]) -> Image.Image:
    """The pixels that a box touches; some published edges are no whole numbers."""
    x1, y1, x2, y2 = box
    return image.crop((math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))
