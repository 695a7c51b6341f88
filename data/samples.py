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
    A key is absent where nothing is known, which is not the same as an empty mask.
    """

    image: Any
    label: int
    id: str
    mask: NotRequired[tv_tensors.Mask]
    boxes: NotRequired[tv_tensors.BoundingBoxes]


class ImageDataset(Protocol):
    """What training and evaluation need of a data set: samples by index, and all labels without reading images."""

    classes: tuple[str, ...]
    labels: Tensor  # (n,) int64
    groups: Tensor  # (n,) int64; images of one group (near-duplicates) never part between training and validation
    transform: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Batch(NamedTuple):
    """Samples stacked along b. Images without a mask have an all-zero one and `has_mask` False."""

    images: Tensor  # b c h w, float
    labels: Tensor  # b, int64
    masks: Tensor  # b h w, uint8
    has_mask: Tensor  # b, bool
    boxes: list[Tensor]  # b × (n 4), n = 0 where none is known
    ids: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`; boxes stay where they are."""
        images, labels, masks, has_mask = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        return Batch(images, labels, masks, has_mask, self.boxes, self.ids)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack `samples`, all of one image size, into a `Batch`."""
    images = torch.stack([torch.as_tensor(sample["image"]) for sample in samples])
    height, width = images.shape[-2:]
    empty_mask = torch.zeros(height, width, dtype=torch.uint8)
    no_box = torch.zeros(0, 4)
    return Batch(
        images=images,
        labels=torch.tensor([sample["label"] for sample in samples]),
        masks=torch.stack([torch.as_tensor(sample.get("mask", empty_mask)) for sample in samples]),
        has_mask=torch.tensor(["mask" in sample for sample in samples]),
        boxes=[torch.as_tensor(sample.get("boxes", no_box)) for sample in samples],
        ids=[sample["id"] for sample in samples],
    )
