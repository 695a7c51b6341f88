"""A folder in the layout of FunnyBirds, written by hand, and a model of it whose logits are known sums over parts."""

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glasszoo.data.funnybirds import PART_COLOURS
from glasszoo.heads import Contract
from glasszoo.models import Preprocessing

SIDE, BLOCK = 40, 4
PARTS = ("eye", "beak", "foot", "tail", "wing")
CORNERS = {"eye": (4, 4), "beak": (4, 18), "foot": (4, 32), "tail": (18, 4), "wing": (18, 18)}
OBJECT = (30, 30)  # of the background
# The variant of each part: 0 is painted red, 1 green, 2 blue. What classes share is worked out in the tests.
VARIANTS = ((0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (1, 1, 0, 0, 1), (2, 2, 1, 1, 2))
WEIGHTS = (1.0, 2.0, 3.0, 4.0, 5.0)
BIASES = (0.0, 0.1, 0.2, 0.5)  # a bird without parts is of the last class


def block(corner: tuple[int, int]) -> tuple[slice, slice]:
    top, left = corner
    return slice(top, top + BLOCK), slice(left, left + BLOCK)


def painted(label: int, kept: Iterable[str] = PARTS, has_object: bool = True) -> Image.Image:
    picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    for part, variant in zip(PARTS, VARIANTS[label], strict=True):
        if part in kept:
            picture[(*block(CORNERS[part]), variant)] = 200
    if has_object:
        picture[block(OBJECT)] = 100
    return Image.fromarray(picture)


def part_map() -> Image.Image:
    """Every part in its first colour, but its last row in the last: of two eyes both are one part."""
    picture = np.full((SIDE, SIDE, 3), 17, dtype=np.uint8)
    for part, corner in CORNERS.items():
        colours = [colour for colour, name in PART_COLOURS.items() if name == part]
        rows, columns = block(corner)
        picture[rows, columns] = colours[0]
        picture[rows.stop - 1, columns] = colours[-1]
    return Image.fromarray(picture)


def write_birds(root: Path, labels: Iterable[int], split: str = "test") -> Path:
    """Images of the classes `labels` with all that the layout has."""
    labels = list(labels)
    lists = {
        "classes": [
            {"class_idx": number, "parts": dict(zip(PARTS, own, strict=True))} for number, own in enumerate(VARIANTS)
        ],
        "parts": {part: [{"model": f"{part}{variant}"} for variant in range(3)] for part in PARTS},
        f"dataset_{split}": [{"class_idx": str(label), "bg_objects": "tree"} for label in labels],
    }
    for name, content in lists.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    for number, label in enumerate(labels):
        for folder, picture in ((split, painted(label)), (f"{split}_part_map", part_map())):
            path = root / folder / str(label) / f"{number:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        changed = root / f"{split}_interventions" / str(label) / f"{number:06}"
        changed.mkdir(parents=True)
        for size in range(len(PARTS) + 1):
            for kept in combinations(PARTS, size):
                painted(label, kept).save(changed / f"body_{'_'.join(sorted(kept))}.png")
        (changed / "background_interventions").mkdir()
        painted(label, has_object=False).save(changed / "background_interventions" / "0.png")
    return root


class Counter(nn.Module):
    """A class's logit: the weights of the parts that are its own variants, and its bias; exactly.

    `object_weight` is what the object of the background adds to the logit of class 0.
    """

    def __init__(self, object_weight: float = 0.0) -> None:
        super().__init__()
        preprocessing = Preprocessing((3, SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
        self.config = SimpleNamespace(class_names=None, preprocessing=preprocessing)
        self.preprocess = preprocessing.transform()
        self.num_classes, self.contract, self.grid = len(VARIANTS), Contract.LINEAR, None
        self.object_weight = object_weight
        self.unused = nn.Parameter(torch.zeros(1))  # its device is the model's

    def forward(self, images: Tensor, explain: Any = 1) -> SimpleNamespace:
        maps = torch.stack([self.evidence(images, label) for label in range(len(VARIANTS))], 1)
        logits = maps.sum((2, 3)) + torch.tensor(BIASES)
        return SimpleNamespace(logits=logits)

    def evidence(self, images: Tensor, label: int) -> Tensor:
        """The exact map of a class, `b h w`: each part's weight spread over its block."""
        maps = torch.zeros(len(images), SIDE, SIDE)
        for part, variant, weight in zip(PARTS, VARIANTS[label], WEIGHTS, strict=True):
            place = block(CORNERS[part])
            maps[(slice(None), *place)] = images[(slice(None), variant, *place)] * (255 / 200) * weight / BLOCK**2
        if label == 0:
            place = block(OBJECT)
            maps[(slice(None), *place)] = images[(slice(None), 0, *place)] * 2.55 * self.object_weight / BLOCK**2
        return maps
