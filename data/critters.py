"""critters: the embedded data set, drawn by code, whose classes are combinations of parts and whose truth is exact."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..common.errors import InputError
from .critter_render import render
from .critter_rules import SLOTS, find_rule
from .critter_scenes import ObjectSize, Scenes, Split, Tag, draw_labels, sample_scenes
from .samples import Sample

COUNTS = {"train": 8000, "test": 1000}
SMALLEST_SIZE = 32


class Critters(Dataset[Sample]):
    """Pictures of critters with masks of the parts that make the class; drawn when asked for, the same everywhere.

    A sample's `image` is uint8 `3 size size`; its `mask` is 255 on the visible parts in the rule's slots and 128 on the
    rest of the critter; its `boxes` hold the critter's box, its `points` the middle of each part of which something is
    seen, in the order of `part_names`. Training and test images share nothing but the rule.

    Args:
        size: side of the pictures in pixels, at least 32.
        count: number of images; without it 8000 for training, 1000 for test. Classes are balanced whatever it is.
        rule: what makes the class, a key of `critter_rules.RULES`.
        seed: another seed gives other images of the same kind.
        tag_correlation: how often the confounding tag tells the class, 0 to 1; without it there is none.
        tag: "aligned", "conflicting" or "absent", whatever the correlation; see `sample_scenes`.
        object_size: "small", "medium", "large" (the usual one) or "mixed": how long critters are, not the picture.

    Raises:
        InputError: a name is unknown or a number is out of range.
    """

    part_names = SLOTS
    description = "pictures drawn by code, whose class is a combination of parts, with masks of what makes it"
    license = "Apache-2.0"  # as the code that draws them

    def __init__(
        self,
        split: Split = "train",
        *,
        size: int = 64,
        count: int | None = None,
        rule: str = "conjunction",
        seed: int = 0,
        tag_correlation: float | None = None,
        tag: Tag | None = None,
        object_size: ObjectSize = "large",
    ) -> None:
        if size < SMALLEST_SIZE:
            raise InputError(f"critters need a size of at least {SMALLEST_SIZE} pixels, not {size}")
        if count is not None and count < 1:
            raise InputError(f"critters need a count of at least 1, not {count}")
        self.split: Split = split
        self.size = size
        self.rule = find_rule(rule)
        self._settings: dict[str, Any] = {
            "split": split,
            "rule": rule,
            "tag_correlation": tag_correlation,
            "tag": tag,
            "object_size": object_size,
        }
        self._seed = seed
        self.scenes([0])  # so that a wrong split or tag is told here and not in a loader's worker
        indices = np.arange(COUNTS[split] if count is None else count)
        self.classes = self.rule.classes
        self.labels = torch.from_numpy(draw_labels(indices, seed, split=split, rule=rule))
        self.groups = torch.arange(len(indices))
        self.ids = [f"{split}/{number}" for number in range(len(indices))]
        # What the sample's mask shows for each value of `Rendering.regions`.
        self._shades = np.array([0, 128] + [255 if slot in self.rule.slots else 128 for slot in SLOTS], dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of several indices, drawn at once; a loader asks for its batches here."""
        numbers = [range(len(self))[index] for index in indices]
        drawn = render(self.scenes(numbers), self.size)
        images = torch.from_numpy(np.ascontiguousarray(drawn.images.transpose(0, 3, 1, 2)))
        masks = torch.from_numpy(self._shades[drawn.regions])
        boxes = torch.from_numpy(drawn.boxes.astype(np.float32))
        is_seen = np.asarray(drawn.parts.any(axis=(2, 3)))
        points = torch.from_numpy(np.where(is_seen[..., None], drawn.keypoints, np.nan).astype(np.float32))
        canvas = (self.size, self.size)
        samples = [
            Sample(
                image=tv_tensors.Image(images[place]),
                label=int(self.labels[number]),
                id=self.ids[number],
                mask=tv_tensors.Mask(masks[place]),
                boxes=tv_tensors.BoundingBoxes(boxes[place : place + 1], format="XYXY", canvas_size=canvas),
                points=tv_tensors.KeyPoints(points[place], canvas_size=canvas),
            )
            for place, number in enumerate(numbers)
        ]
        return samples

    def scenes(self, indices: ArrayLike) -> Scenes:
        """The scenes behind the images, for interventions."""
        return sample_scenes(indices, self._seed, **self._settings)
