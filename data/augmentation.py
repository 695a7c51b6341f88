"""Random training transforms, for image, mask and boxes together; and one for the image alone, deletion of a patch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from ..common.errors import InputError

PATCH_GRID = 4  # cells of the deletion grid along each side, as in Hesse et al. 2024


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image; the defaults are timm's for ImageNet."""

    crop: bool = True  # a random crop, resized; else the whole image, resized (squashed where the aspect ratio differs)
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # aspect ratio of the crop, relative to that of the model's input
    hflip: float = 0.5  # probability
    vflip: float = 0.0  # probability
    rotation: float = 0.0  # degrees, to either side; the corners are filled with black
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation changes
    # Probability that a cell of the 4 × 4 grid is deleted; with 0.5 images with a hole are of the training domain, so
    # that scores which delete pixels compare across models (Hesse et al., "Benchmarking the Attribution Quality of
    # Vision Models", NeurIPS 2024).
    patch_deletion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"augmentation.{name} must be two numbers 0 < low ≤ high, got {low} and {high}")
        for name in ("hflip", "vflip", "patch_deletion"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation.{name} is a probability, got {getattr(self, name)}")

    def transform(self, size: tuple[int, int], interpolation: InterpolationMode) -> v2.Transform:
        """The transform to images of `size` (h, w), still unnormalised."""
        return v2.Compose([self.geometric(size, interpolation), self.photometric()])

    def geometric(self, size: tuple[int, int], interpolation: InterpolationMode) -> v2.Transform:
        """What moves pixels: the crop to `size` (h, w), flips, rotation."""
        resize = {"size": size, "interpolation": interpolation, "antialias": True}
        steps: list[v2.Transform] = [v2.Resize(**resize)]
        if self.crop:
            ratio = tuple(size[1] / size[0] * factor for factor in self.ratio)
            steps = [v2.RandomResizedCrop(scale=self.scale, ratio=ratio, **resize)]
        if self.hflip:
            steps.append(v2.RandomHorizontalFlip(self.hflip))
        if self.vflip:
            steps.append(v2.RandomVerticalFlip(self.vflip))
        if self.rotation:
            steps.append(v2.RandomRotation(self.rotation, interpolation=InterpolationMode.BILINEAR))
        return v2.Compose(steps)

    def photometric(self) -> v2.Transform:
        """What changes colours and leaves pixels where they are."""
        jitter = self.color_jitter
        return v2.ColorJitter(jitter, jitter, jitter) if jitter else v2.Identity()

    def deletion(self) -> "PatchDeletion":
        """What follows normalisation; it draws nothing where nothing is to be deleted."""
        return PatchDeletion(self.patch_deletion)


class Views:
    """Several views of an image: one crop, colours changed apart; the image comes out as `v c h w`.

    Every cell of one view then shows what it shows in the others, and heads can be taught that it is the same.
    """

    def __init__(self, geometric: v2.Transform, photometric: v2.Transform, to_tensor: v2.Transform, count: int) -> None:
        self._geometric = geometric
        self._each = v2.Compose([photometric, to_tensor])
        self._count = count

    def __call__(self, sample: Any) -> Any:
        moved = self._geometric(sample)
        views = [self._each(moved) for _ in range(self._count)]
        return views[0] | {"image": torch.stack([view["image"] for view in views])}


class PatchDeletion:
    """Deletes a random cell of the grid from a normalised image `… h w`, under "image" in a sample, by chance.

    Masks, boxes and points stay: what is where in the scene is no matter of what is covered. All views of an image
    lose the same cell, since each cell shows the same in all.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        # Nothing is drawn at 0, so that runs without it are to the bit what they were.
        if not self.probability or torch.rand(()) >= self.probability:
            return sample
        image = sample["image"].clone()
        rows, columns = grid_cell(image.shape[-2:], int(torch.randint(PATCH_GRID**2, ())))
        image[..., rows, columns] = 0
        return sample | {"image": image}


def grid_cell(size: Sequence[int], number: int, grid: int = PATCH_GRID) -> tuple[slice, slice]:
    """Rows and columns of cell `number`, counted row by row, of the `grid` × `grid` cells of an image of `size` (h, w).

    The cells cover the image without overlap; where they do not divide it, the first are a pixel larger, as in the
    single-deletion score of `evaluation`.
    """
    row, column = (_part(side, place, grid) for side, place in zip(size, divmod(number, grid), strict=True))
    return row, column


def _part(side: int, place: int, parts: int) -> slice:
    least, larger = divmod(side, parts)
    first = place * least + min(place, larger)
    return slice(first, first + least + (place < larger))
