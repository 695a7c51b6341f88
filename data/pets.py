"""A folder in the layout of Oxford-IIIT Pet: cats and dogs by breed, with masks and the boxes of heads."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, check_same_size, open_image, stated_license
from .samples import Sample, Unreadable
from .voc_xml import boxes_within, read_annotation

_NEEDED = ("annotations/list.txt", "annotations/trainval.txt", "annotations/test.txt")
_SPLITS = {"train": "trainval", "trainval": "trainval", "test": "test"}

# What a trimap's values mean, as `Sample` has it: 1 the pet, 2 the background, 3 the border between or unclear.
_MASK_VALUES = np.array([0, 255, 0, 128], dtype=np.uint8)


class OxfordPets:
    """Images of one split of a folder in the layout of Oxford-IIIT Pet (Parkhi et al., 2012), as a data set.

    `root` holds images/ and annotations/ with list.txt, trainval.txt and test.txt, whose lines are "Name CLASS-ID
    SPECIES BREED-ID"; where there, annotations/trimaps/ and annotations/xmls/. The split "train" is the published
    trainval, which may be named so too. A class is named as its images are, without their number; labels are in the
    order of CLASS-ID. An image's id is its path below `root`. Samples have a `mask` (255 the pet, 128 its border, 0
    background) and as `boxes` the pet's head (published for most of trainval only), each where its file is there.

    Raises:
        InputError: No such folder, a list that lacks or has a line that cannot be read, an unknown split, no images.
    """

    description = "cats and dogs by breed (Oxford-IIIT Pet, Parkhi et al. 2012), with masks and boxes of heads"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        if split not in _SPLITS:
            raise unknown_name(f"split of {self.root}", split, _SPLITS)
        own = _table(self.root / f"annotations/{_SPLITS[split]}.txt")
        names = _class_names(self.root / "annotations/list.txt", own)
        places = {class_id: label for label, class_id in enumerate(sorted(names))}
        self.classes = tuple(names[class_id] for class_id in places)
        if not own:
            raise InputError(f"{self.root} holds no images of the split {split!r}")
        self._names = list(own)
        self.labels = torch.tensor([places[class_id] for class_id in own.values()], dtype=torch.int64)
        self.groups = torch.arange(len(own))
        self.license = stated_license(self.root)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and what is known of it, or `Unreadable` naming the file that is at fault."""
        name = self._names[index]
        identifier = f"images/{name}.jpg"
        trimap = self.root / f"annotations/trimaps/{name}.png"
        heads = self.root / f"annotations/xmls/{name}.xml"
        try:
            image = open_image(self.root / identifier, "RGB")
            sample = Sample(image=image, label=int(self.labels[index]), id=identifier)
            if trimap.is_file():
                sample["mask"] = _mask(trimap, image)
            found = read_annotation(heads).objects if heads.is_file() else []
        except (UnfitFile, InputError) as error:
            return Unreadable(identifier, str(error))
        boxes = boxes_within([head.box for head in found], image)
        if boxes is not None:
            sample["boxes"] = boxes
        return sample


def is_pets(root: Path) -> bool:
    """Whether a folder has the lists of that layout."""
    return (root / "images").is_dir() and all((root / name).is_file() for name in _NEEDED)


def _table(path: Path) -> dict[str, int]:
    """CLASS-ID by the name of the image, in the order of the file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the layout of Oxford-IIIT Pet has it")
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, class_id, _, _ = line.split()
            table[name] = int(class_id)
        except ValueError:
            raise InputError(f"{path}, line {number}: {line!r} is not 'Name CLASS-ID SPECIES BREED-ID'") from None
    return table


def _class_names(path: Path, own: dict[str, int]) -> dict[int, str]:
    """Class names by CLASS-ID, of the list of all images and of the split's own."""
    names: dict[int, str] = {}
    for image, class_id in [*_table(path).items(), *own.items()]:
        name = image.rpartition("_")[0]
        if names.setdefault(class_id, name) != name:
            raise InputError(f"{path}: CLASS-ID {class_id} is both {names[class_id]!r} and {name!r}")
    return names


def _mask(path: Path, image: Image.Image) -> tv_tensors.Mask:
    trimap = open_image(path, "L")
    check_same_size(trimap, image, str(path))
    values = np.asarray(trimap)
    if values.min() < 1 or values.max() > 3:
        raise UnfitFile(f"{path} has values from {values.min()} to {values.max()}, not the 1, 2, 3 of a trimap")
    return tv_tensors.Mask(torch.from_numpy(_MASK_VALUES[values]))
