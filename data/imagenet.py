"""A folder in the layout of ImageNet's localization challenge: images of 1000 classes, many with boxes."""

import csv
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo
from tqdm import tqdm

from ..common.errors import InputError, unknown_name
from ..common.processes import is_first
from .folder import UnfitFile, open_image, stated_license
from .samples import Sample, Unreadable
from .voc_xml import Box, boxes_within, inclusive_box, read_annotation

_IMAGES, _XML = "Data/CLS-LOC", "Annotations/CLS-LOC"
_MAPPING, _SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
_ENDING = ".JPEG"

# The readme of the development kit (2015) says "PASCAL VOC format", which counts pixels from 1, and no more about it;
# we found no other word of the makers. The boxes themselves count from 0 and end at the width less one: so in their
# copy in clovaai/wsolevaluation (metadata/ILSVRC/test at commit b5c1e8a, beside the sizes of the images), of which the
# first 222 images were looked at. Some boxes of training images go beyond the image, have their edges swapped or stand
# under words in place of a WNID, and sizes in XML are those of the image shown to the annotator, on which the box was
# drawn: so says process_bounding_boxes.py of TensorFlow's models, which went through all 544,546 files.
_FIRST_PIXEL = 0


class ImageNet:
    """Images of one split of a folder in the layout of ILSVRC CLS-LOC (Russakovsky et al., 2015), as a data set.

    `root`, or the folder ILSVRC in it, holds Data/CLS-LOC/train/WNID/*.JPEG and Data/CLS-LOC/val/*.JPEG or, as many
    tools want it, val/WNID/*.JPEG; where there, Annotations/CLS-LOC/ with an XML file an image (of val/WNID/ in val/ or
    val/WNID/). LOC_synset_mapping.txt and LOC_val_solution.csv lie there or beside ILSVRC. Classes are in the order of
    the mapping, with all the words of their line; without it they are the folders of classes, in sorted order, with
    timm's words for the WNID (the WNID where timm has none). The WNID follows in brackets where two classes have the
    same words (as the two cranes). A folder may hold some of the images only. An image's id is its path below the
    folder that holds Data.

    The classes of val/*.JPEG are those of LOC_val_solution.csv. Without it they come from the XML files, all of which
    are read at the start then. Otherwise only names are read, and an XML file that is broken makes its own sample
    `Unreadable`. Samples have the boxes of the image's own class, from its XML file or else from LOC_val_solution.csv,
    where one of these is there.

    Raises:
        InputError: No such folder, a file that lacks or has a line that cannot be read, an image or folder of a class
            that the lists do not know, an image without a class, an unknown split, no images.
    """

    description = "photographs of 1000 classes (ImageNet, ILSVRC CLS-LOC, Russakovsky et al. 2015), many with boxes"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = _layout(Path(root).expanduser())
        if split not in ("train", "val"):
            raise unknown_name(f"split of {self.root}", split, ("train", "val"))
        names = _class_names(self.root)
        times = Counter(names.values())
        self.classes = tuple(f"{name} ({wnid})" if times[name] > 1 else name for wnid, name in names.items())
        self._split = split
        self._places = {wnid: label for label, wnid in enumerate(names)}
        self._solution: dict[str, tuple[int, list[Box]]] = {}
        self._folder = self.root / _IMAGES / split
        if not self._folder.is_dir():
            raise InputError(f"{self._folder} does not exist: the split {split!r} of ImageNet's layout is there")
        # Names below the folder of the split, without their ending: 1.3 million in the whole of "train".
        self._names, labels = self._scan_folders() if split == "train" else self._scan_val()
        if not self._names:
            raise InputError(f"{self._folder} holds no images")
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.groups = torch.arange(len(self._names))
        self.license = stated_license(self.root) or stated_license(Path(root).expanduser())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and its boxes, or `Unreadable` naming the file that is at fault."""
        name, label = self._names[index], int(self.labels[index])
        identifier = f"{_IMAGES}/{self._split}/{name}{_ENDING}"
        path = self._xml_file(name)
        try:
            image = open_image(self.root / identifier, "RGB")
            if path is not None:
                own = self._drawn_boxes(path, label, image)
            else:
                own = self._solution.get(_stem(name), (label, []))[1]
        except (UnfitFile, InputError) as error:
            return Unreadable(identifier, str(error))
        sample = Sample(image=image, label=label, id=identifier)
        boxes = boxes_within(own, image)
        if boxes is not None:
            sample["boxes"] = boxes
        return sample

    def _xml_file(self, name: str) -> Path | None:
        names = (name, _stem(name)) if self._split == "val" else (name,)
        places = (self.root / _XML / self._split / f"{own}.xml" for own in names)
        return next((path for path in places if path.is_file()), None)

    def _drawn_boxes(self, path: Path, label: int, image: Image.Image) -> list[Box]:
        """The boxes of an XML file that are of no other class, in pixels of the stored image."""
        found = read_annotation(path, _FIRST_PIXEL, has_swapped_edges=True)
        width, height = found.size or image.size
        across, down = image.width / width, image.height / height
        return [
            (x1 * across, y1 * down, x2 * across, y2 * down)
            for name, (x1, y1, x2, y2), _ in found.objects
            # Many dogs stand there under their breed, as Scottish_deerhound.
            if self._places.get(name, label) == label
        ]

    def _scan_folders(self) -> tuple[list[str], list[int]]:
        names, labels = [], []
        for wnid in _entries(self._folder, is_folder=True):
            if wnid not in self._places:
                raise InputError(f"{self._folder / wnid} is the folder of no class in {_MAPPING}")
            own = [f"{wnid}/{name}" for name in _entries(self._folder / wnid, is_folder=False)]
            names += own
            labels += [self._places[wnid]] * len(own)
        return names, labels

    def _scan_val(self) -> tuple[list[str], list[int]]:
        path = _beside(self.root, _SOLUTION)
        if path is not None:
            self._solution = _solution(path, self._places)
        names = _entries(self._folder, is_folder=False)
        if not names:
            names, labels = self._scan_folders()
            self._check_against_list(names, labels, path)
            return names, labels
        in_folder = next((wnid for wnid in _entries(self._folder, is_folder=True) if wnid in self._places), None)
        if in_folder is not None:
            raise InputError(f"{self._folder} holds images both by themselves and in class folders ({in_folder})")
        if path is None:
            return names, self._labels_from_xml(names)
        lacking = next((name for name in names if name not in self._solution), None)
        if lacking is not None:
            raise InputError(f"{path} has no line for {self._folder / lacking}{_ENDING}")
        return names, [self._solution[name][0] for name in names]

    def _check_against_list(self, names: list[str], labels: list[int], path: Path | None) -> None:
        """Raises InputError where LOC_val_solution.csv knows an image as another class than its folder does."""
        for name, label in zip(names, labels, strict=True):
            if self._solution.get(_stem(name), (label,))[0] != label:
                raise InputError(f"{self._folder / name}{_ENDING} is of another class in {path}")

    def _labels_from_xml(self, names: list[str]) -> list[int]:
        if is_first():
            print(
                f"{self.root} has no {_SOLUTION}: reading the classes of {len(names)} images from their XML files",
                file=sys.stderr,
            )
        labels = []
        for name in tqdm(names, desc="reading classes", unit="file", leave=False, disable=not is_first()):
            path = self._xml_file(name)
            if path is None:
                raise InputError(
                    f"{self._folder / name}{_ENDING} has no class: there is neither {_SOLUTION} nor "
                    f"{self.root / _XML / self._split / name}.xml"
                )
            # All objects of a validation image have its class.
            found = {item.name for item in read_annotation(path, _FIRST_PIXEL, has_swapped_edges=True).objects}
            known = [self._places[name] for name in found if name in self._places]
            if len(known) != 1:
                raise InputError(f"{path} names {len(known)} known classes, where one is expected: {sorted(found)}")
            labels += known
        return labels


def is_imagenet(root: Path) -> bool:
    """Whether a folder, or ILSVRC in it, has the images of that layout."""
    return any((folder / _IMAGES).is_dir() for folder in (root, root / "ILSVRC"))


def _layout(root: Path) -> Path:
    found = next((folder for folder in (root, root / "ILSVRC") if (folder / _IMAGES).is_dir()), None)
    if found is None:
        raise InputError(f"{root} does not hold the folder {_IMAGES} of ImageNet's layout")
    return found


def _beside(root: Path, name: str) -> Path | None:
    """A list in the folder or, as Kaggle packs it, beside the folder ILSVRC; None where it lacks."""
    places = (root / name, root.absolute().parent / name)
    return next((path for path in places if path.is_file()), None)


def _stem(name: str) -> str:
    """An image's name without its class folder."""
    return name.rpartition("/")[2]


def _class_names(root: Path) -> dict[str, str]:
    """Words by WNID: of the mapping, in its order, or else of all class folders, whatever the split."""
    path = _beside(root, _MAPPING)
    if path is not None:
        return _synsets(path)
    splits = [folder for split in ("train", "val") if (folder := root / _IMAGES / split).is_dir()]
    wnids = sorted({wnid for folder in splits for wnid in _entries(folder, is_folder=True)})
    if not wnids:
        raise InputError(f"{_MAPPING} is neither in {root} nor beside it, and there are no class folders")
    known = ImageNetInfo()
    words = dict(zip(known.label_names(), known.label_descriptions(), strict=True))
    return {wnid: words.get(wnid, wnid) for wnid in wnids}


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
                    inclusive_box(words[start + 1 : start + 5], _FIRST_PIXEL, has_swapped_edges=True)
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
