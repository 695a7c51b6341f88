"""What a data set hands out: one `Sample` an image, and the `Batch` that a loader makes of several."""

from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

import torch
from torch import Tensor
from torchvision import tv_tensors


class Sample(TypedDict):
    """One image and what is known about it; torchvision's v2 transforms move image, mask and boxes together.

    `image`: PIL image or uint8 tv_tensor `c h w` as stored; after a model's preprocessing a float tensor.
    `mask` (`h w`, uint8): 255 the evidence proper, 128 a secondary region (the rest of the object), 0 background.
    `boxes` (`n 4`, XYXY pixels, x2 and y2 exclusive): the evidence or the object.
    `targets` (c, uint8): of an image that can show several classes, 1 for each that is there; `label` is then the first
    of these, or 0 where there is none, since code that explains one class needs a number.
    `points` (`n 2`, x y pixels): the place of each part in the data set's `part_names`, NaN where it is not visible.
    A key is absent where nothing is known, which is not the same as an empty mask.
    """

    image: Any
    label: int
    id: str
    targets: NotRequired[Tensor]
    mask: NotRequired[tv_tensors.Mask]
    boxes: NotRequired[tv_tensors.BoundingBoxes]
    points: NotRequired[tv_tensors.KeyPoints]


class Unreadable(NamedTuple):
    """Handed out in place of a `Sample` whose files cannot be read; the loader stops at it or counts it."""

    id: str
    reason: str  # a sentence that names the file


class ImageDataset(Protocol):
    """What training and evaluation need of a data set: samples by index, and all labels without reading images.

    One whose images can show several classes also has `targets` (n c, uint8), in which 1 says that a class is there.
    One that knows them also has `part_names`, `license` (what its owner calls it), `description` (a sentence) and `ids`
    (those of all samples, in order).
    """

    classes: tuple[str, ...]
    labels: Tensor  # (n,) int64
    groups: Tensor  # (n,) int64; images of one group (near-duplicates) never part between training and validation

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | Unreadable: ...


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether classes have no names, but are called by their places: how many there are is then the highest label."""
    return list(classes) == list(map(str, range(len(classes))))


def targets_of(dataset: ImageDataset) -> Tensor | None:
    """`n c` uint8, where images of `dataset` can show several classes; else None."""
    targets: Tensor | None = getattr(dataset, "targets", None)
    return targets


def read_samples(dataset: ImageDataset, indices: Sequence[int]) -> list[Sample | Unreadable]:
    """The samples at `indices`, in one call where the data set can (`__getitems__`, as torch's loader asks for it)."""
    read_many = getattr(dataset, "__getitems__", None)
    return list(read_many(indices)) if read_many else [dataset[index] for index in indices]


class Batch(NamedTuple):
    """Samples stacked along b. Images without a mask have an all-zero one and `has_mask` False."""

    images: Tensor  # b c h w, float
    labels: Tensor  # b, int64
    masks: Tensor  # b h w, uint8
    has_mask: Tensor  # b, bool
    boxes: list[Tensor]  # for each image n 4; n = 0 where none is known
    points: list[Tensor]  # for each image n 2, NaN where a part is not visible; n = 0 where none is known
    ids: list[str]
    unreadable: list[Unreadable]  # what is missing from this batch, which is so much smaller
    targets: Tensor  # b c, 0 or 1 as float, where images can show several classes; else b 0

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`; boxes and points stay where they are."""
        images, labels, masks, has_mask = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        moved = self._replace(images=images, labels=labels, masks=masks, has_mask=has_mask)
        return moved._replace(targets=self.targets.to(device, non_blocking=True))


def collate(samples: Sequence[Sample | Unreadable]) -> Batch:
    """Stack `samples`, all of one image size, into a `Batch`; unreadable ones are set apart."""
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    images = torch.stack([sample["image"] for sample in readable]) if readable else torch.zeros(0, 3, 1, 1)
    masks = torch.zeros(len(readable), *images.shape[-2:], dtype=torch.uint8)
    for row, sample in enumerate(readable):
        if "mask" in sample:
            masks[row] = sample["mask"]
    return Batch(
        images=images,
        labels=torch.tensor([sample["label"] for sample in readable], dtype=torch.int64),
        masks=masks,
        has_mask=torch.tensor(["mask" in sample for sample in readable], dtype=torch.bool),
        boxes=[torch.as_tensor(sample["boxes"]) if "boxes" in sample else torch.zeros(0, 4) for sample in readable],
        points=[torch.as_tensor(sample["points"]) if "points" in sample else torch.zeros(0, 2) for sample in readable],
        ids=[sample["id"] for sample in readable],
        unreadable=unreadable,
        targets=torch.stack([sample.get("targets", torch.zeros(0)) for sample in readable]).float()
        if readable
        else torch.zeros(0, 0),
    )
