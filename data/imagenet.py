"""A folder in the layout of ImageNet's localization challenge: images of 1000 classes, many with boxes."""

import csv
import os
from collections import Counter
from pathlib import Path

import torch

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, open_image, stated_license
from .samples import Sample, Unreadable
from .voc_xml import Box, boxes_within, inclusive_box, read_objects

_IMAGES = "Data/CLS-LOC"
_ENDING = ".JPEG"

# ImageNet's boxes have Pascal VOC's format, but edges from 0 to the width less one.
_FIRST_PIXEL = 0


class ImageNet:
    """Images of one split of a folder in the layout of ILSVRC CLS-LOC (Russakovsky et al., 2015), as a data set.

    `root`, or the folder ILSVRC in it, holds Data/CLS-LOC/train/WNID/*.JPEG and Data/CLS-LOC/val/*.JPEG; where there,
    Annotations/CLS-LOC/ with an XML file an image. LOC_synset_mapping.txt and, for the split "val",
    LOC_val_solution.csv lie there or beside ILSVRC. Classes are in the order of the mapping, with all the words of
    their line; the WNID follows in brackets where two classes have the same words (as the two cranes). A folder may
    hold some of the images only. An image's id is its path below the folder that holds Data.

    Samples have the boxes of the image's own class, from its XML file or else from LOC_val_solution.csv, where one
    of these is there. Only names are read at the start: an XML file that is broken makes its own sample `Unreadable`.

    Raises:
        InputError: No such folder, a file that lacks or has a line that cannot be read, an image or folder of a class
            that the lists do not know, an unknown split, no images.
    """

    description = "photographs of 1000 classes (ImageNet, ILSVRC CLS-LOC, Russakovsky et al. 2015), many with boxes"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = _layout(Path(root).expanduser())
        if split not in ("train", "val"):
            raise unknown_name(f"split of {self.root}", split, ("train", "val"))
        mapping = _beside(self.root, "LOC_synset_mapping.txt")
        names = _synsets(mapping)
        times = Counter(names.values())
        self.classes = tuple(f"{name} ({wnid})" if times[name] > 1 else name for wnid, name in names.items())
        self._split = split
        self._wnids = tuple(names)
        self._listed_boxes: dict[str, list[Box]] = {}
        folder = self.root / _IMAGES / split
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist: the split {split!r} of ImageNet's layout is there")
        places = {wnid: label for label, wnid in enumerate(names)}
        # Names below the folder of the split, without their ending: 1.3 million in the whole of "train".
        self._names, labels = self._scan_train(folder, places) if split == "train" else self._scan_val(folder, places)
        if not self._names:
            raise InputError(f"{folder} holds no images")
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.groups = torch.arange(len(self._names))
        self.license = stated_license(self.root) or stated_license(Path(root).expanduser())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and its boxes, or `Unreadable` naming the file that is at fault."""
        name, label = self._names[index], int(self.labels[index])
        identifier = f"{_IMAGES}/{self._split}/{name}{_ENDING}"
        path = self.root / f"Annotations/CLS-LOC/{self._split}/{name}.xml"
        try:
            image = open_image(self.root / identifier, "RGB")
            found = read_objects(path, _FIRST_PIXEL) if path.is_file() else None
        except (UnfitFile, InputError) as error:
            return Unreadable(identifier, str(error))
        sample = Sample(image=image, label=label, id=identifier)
        if found is None:
            own = self._listed_boxes.get(name, [])
        else:
            own = [item.box for item in found if item.name == self._wnids[label]]
        boxes = boxes_within(own, image)
        if boxes is not None:
            sample["boxes"] = boxes
        return sample

    def _scan_train(self, folder: Path, places: dict[str, int]) -> tuple[list[str], list[int]]:
        names, labels = [], []
        for wnid in _entries(folder, is_folder=True):
            if wnid not in places:
                raise InputError(f"{folder / wnid} is the folder of no class in LOC_synset_mapping.txt")
            own = [f"{wnid}/{name}" for name in _entries(folder / wnid, is_folder=False)]
            names += own
            labels += [places[wnid]] * len(own)
        return names, labels

    def _scan_val(self, folder: Path, places: dict[str, int]) -> tuple[list[str], list[int]]:
        path = _beside(self.root, "LOC_val_solution.csv")
        solution = _solution(path, places)
        names = _entries(folder, is_folder=False)
        lacking = next((name for name in names if name not in solution), None)
        if lacking is not None:
            raise InputError(f"{path} has no line for {folder / lacking}{_ENDING}")
        self._listed_boxes = {name: solution[name][1] for name in names}
        return names, [solution[name][0] for name in names]


def is_imagenet(root: Path) -> bool:
    """Whether a folder, or ILSVRC in it, has the images of that layout."""
    return any((folder / _IMAGES).is_dir() for folder in (root, root / "ILSVRC"))


def _layout(root: Path) -> Path:
    found = next((folder for folder in (root, root / "ILSVRC") if (folder / _IMAGES).is_dir()), None)
    if found is None:
        raise InputError(f"{root} does not hold the folder {_IMAGES} of ImageNet's layout")
    return found


def _beside(root: Path, name: str) -> Path:
    """A list in the folder or, as Kaggle packs it, beside the folder ILSVRC."""
    for folder in (root, root.absolute().parent):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{name} is neither in {root} nor beside it: ImageNet's layout has it")


def _synsets(path: Path) -> dict[str, str]:
    """Words by WNID, in the order of the file."""
    names: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        wnid, _, words = line.strip().partition(" ")
        if not words or wnid in names:
            raise InputError(f"{path}, line {number}: {line!r} is not a new WNID and its words")
        names[wnid] = words.strip()
    return names


def _solution(path: Path, places: dict[str, int]) -> dict[str, tuple[int, list[Box]]]:
    """Label and boxes by image, from lines "ImageId,WNID x1 y1 x2 y2 WNID x1 y1 x2 y2 …"."""
    solution = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                words = row["PredictionString"].split()
                boxes = [
                    inclusive_box(words[start + 1 : start + 5], _FIRST_PIXEL)
                    for start in range(0, len(words), 5)
                    if words[start] == words[0]
                ]
                solution[row["ImageId"]] = (places[words[0]], boxes)
            except (KeyError, IndexError, ValueError, AttributeError):
                line = ",".join(str(value) for value in row.values())
                raise InputError(f"{path}: {line!r} is not 'ImageId,WNID x1 y1 x2 y2 …' of a known WNID") from None
    return solution


def _entries(folder: Path, is_folder: bool) -> list[str]:
    """The names of folders, or of images without their ending, in sorted order."""
    with os.scandir(folder) as entries:
        if is_folder:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        # By the name alone: asking the disk about each of a million files takes minutes.
        return sorted(entry.name.removesuffix(_ENDING) for entry in entries if entry.name.endswith(_ENDING))
