"""A folder in the layout of FunnyBirds: rendered birds of five parts, and the same without some parts or objects."""

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, open_image, read_image, stated_license
from .samples import Sample, Unreadable

# How the part maps are painted. Where a bird has two of a part, both have a colour of their own.
PART_COLOURS = {
    (255, 255, 253): "eye",
    (255, 255, 254): "eye",
    (255, 255, 0): "beak",
    (255, 0, 1): "foot",
    (255, 0, 2): "foot",
    (0, 255, 1): "wing",
    (0, 255, 2): "wing",
    (0, 0, 255): "tail",
}
_NEEDED = ("classes.json", "parts.json")


class FunnyBirds:
    """Images of one split of a folder in the layout of FunnyBirds (Hesse et al., ICCV 2023), as a data set.

    What `root` holds, CLASS being a class's number and IMAGE an image's in its split, with six digits:

    - classes.json: a list with, for each class, `class_idx` and `parts`, the number of its variant of each part;
    - parts.json: each part's name, in the order of `part_names`, and its list of variants;
    - dataset_train.json, dataset_test.json: a list with `class_idx` for each image, in the order of their numbers;
    - train/CLASS/IMAGE.png, test/CLASS/IMAGE.png: the images;
    - train_part_map/CLASS/IMAGE.png, test_part_map/…: the same with its parts painted in `PART_COLOURS`, the rest in
      any other colour; needed for masks alone;
    - test_interventions/CLASS/IMAGE/body_PART_PART_….png: the same with these parts alone, in any order, body_.png
      with none; and below it background_interventions/NUMBER.png: without one object of the background, from 0. Needed
      for FunnyBirds' protocol alone (evaluation/funnybirds.py).

    Samples have a `mask`, 255 on the parts, where a part map is there. An image's id is its path below `root`.

    Raises:
        InputError: No such folder, a file that lacks or is not as above, an unknown split, no images.
    """

    description = "rendered birds whose classes are combinations of five parts (FunnyBirds, Hesse et al. 2023)"

    def __init__(self, root: str | Path | None = None, split: str = "train") -> None:
        if root is None:
            raise InputError("data set funnybirds needs its folder: give the option root")
        self.root, self.split = Path(root).expanduser(), split
        if split not in ("train", "test"):
            raise unknown_name(f"split of {self.root}", split, ("train", "test"))
        self.part_names = tuple(_read(self.root / "parts.json", dict))
        known = _read(self.root / "classes.json", list)
        images = _read(self.root / f"dataset_{split}.json", list)
        try:
            variants = {int(each["class_idx"]): [each["parts"][name] for name in self.part_names] for each in known}
            self._numbers = sorted(variants)
            places = {number: place for place, number in enumerate(self._numbers)}
            # Which variant of each part a class has, `classes parts`.
            self.variants = torch.tensor([variants[number] for number in self._numbers])
            self.labels = torch.tensor([places[int(each["class_idx"])] for each in images], dtype=torch.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.root} is not in the layout of FunnyBirds: {error!r}") from None
        if not len(self.labels):
            raise InputError(f"{self.root} holds no images of the split {split!r}")
        self.classes = tuple(str(number) for number in self._numbers)
        self.groups = torch.arange(len(self.labels))
        self.license = stated_license(self.root)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and where its parts are, or `Unreadable` naming the file that is at fault."""
        identifier = self.image_id(index)
        try:
            image = open_image(self.root / identifier, "RGB")
            sample = Sample(image=image, label=int(self.labels[index]), id=identifier)
            if self._part_map(index).is_file():
                parts = _numbered(open_image(self._part_map(index), "RGB"), self.part_names)
                sample["mask"] = tv_tensors.Mask((parts > 0).to(torch.uint8) * 255)
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        return sample

    def image_id(self, index: int) -> str:
        """An image's path below `root`."""
        return f"{self.split}/{self._place(index)}.png"

    def parts(self, index: int) -> tv_tensors.Mask:
        """Where the parts of an image are, `h w` uint8: 0 nothing, i + 1 the part `part_names[i]`.

        Raises:
            InputError: Its part map cannot be read.
        """
        return tv_tensors.Mask(_numbered(read_image(self._part_map(index)), self.part_names))

    def with_parts(self, index: int, kept: Iterable[str]) -> Image.Image:
        """The image with the parts of these names alone.

        Raises:
            InputError: There is no such picture, or it cannot be read.
        """
        wanted = frozenset(kept)
        for path in self._interventions(index):
            first, *names = path.stem.split("_")
            if first == "body" and frozenset(filter(None, names)) == wanted:
                return read_image(path)
        told = ", ".join(sorted(wanted)) or "none of the parts"
        raise InputError(f"{self._folder(index)} has no picture body_….png with {told} alone")

    def without_objects(self, index: int) -> list[Image.Image]:
        """The image without each object of its background, by their numbers; empty where it has none."""
        folder = self._folder(index) / "background_interventions"
        found = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
        return [read_image(found[number]) for number in sorted(found)]

    def sufficient_parts(self) -> list[list[frozenset[int]]]:
        """For each class the smallest sets of parts, by their place in `part_names`, that tell it from all others.

        No part of a set can be left out.
        """
        count = len(self.part_names)
        sets = [frozenset(chosen) for size in range(count + 1) for chosen in combinations(range(count), size)]
        found = []
        for own in self.variants:
            is_shared = (self.variants == own).tolist()
            enough: list[frozenset[int]] = []
            for chosen in sets:  # the smaller ones first
                matching = sum(all(row[part] for part in chosen) for row in is_shared)
                if matching == 1 and not any(smaller < chosen for smaller in enough):
                    enough.append(chosen)
            found.append(enough)
        return found

    def _place(self, index: int) -> str:
        number = range(len(self))[index]
        return f"{self._numbers[int(self.labels[number])]}/{number:06}"

    def _part_map(self, index: int) -> Path:
        return self.root / f"{self.split}_part_map" / f"{self._place(index)}.png"

    def _folder(self, index: int) -> Path:
        return self.root / f"{self.split}_interventions" / self._place(index)

    def _interventions(self, index: int) -> list[Path]:
        return sorted(self._folder(index).glob("*.png"))


def is_funnybirds(root: Path) -> bool:
    """Whether a folder has the lists of that layout."""
    return all((root / name).is_file() for name in _NEEDED)


def _read(path: Path, kind: type) -> Any:
    """A JSON file that holds a `kind`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the layout of FunnyBirds has it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, kind):
        raise InputError(f"{path} holds a {type(found).__name__}, not a {kind.__name__}")
    return found


def _numbered(picture: Image.Image, names: tuple[str, ...]) -> Tensor:
    """A painted picture as `h w` uint8: 0 for a colour of no part, i + 1 for one of part `names[i]`."""
    colours = np.asarray(picture)
    numbers = np.zeros(colours.shape[:2], dtype=np.uint8)
    for colour, name in PART_COLOURS.items():
        if name in names:
            numbers[(colours == colour).all(axis=2)] = 1 + names.index(name)
    return torch.from_numpy(numbers)
