"""Small changes of an image that no reader would call another picture; its map should not become another either."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_STD
from torch import Tensor

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..models import Preprocessing


def _as_they_are(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps


@dataclass(frozen=True)
class Disturbance:
    """Changes normalised images `b c H W`, whose numbers in the set are `indices` (b).

    `undo` takes maps `b h w` of the changed images, and the images' size, back to where the unchanged ones lie.
    """

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]
    undo: Callable[[Tensor, tuple[int, int]], Tensor] = _as_they_are


def gaussian_noise(preprocessing: Preprocessing, std: float = 0.2, seed: int = 0) -> Disturbance:
    """Normal noise of `std` of ImageNet's standard deviations, drawn by `seed` and the image's number.

    Measured in pixels, so that models with other means and deviations are shaken alike; 0.2 is about 12 of 255.

    Raises:
        InputError: A negative `std`.
    """
    if std < 0:
        raise InputError(f"noise needs a standard deviation of at least 0, got {std}")
    pixels = std * sum(IMAGENET_DEFAULT_STD) / len(IMAGENET_DEFAULT_STD)

    def apply(images: Tensor, indices: Tensor) -> Tensor:
        draws = [
            torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(mixed_seed(seed, index)))
            for index in indices.tolist()
        ]
        return images + (pixels * torch.stack(draws)).to(images) / _by_channel(preprocessing.std, images)

    return Disturbance("noise", apply)


def jpeg(preprocessing: Preprocessing, quality: int = 50) -> Disturbance:
    """Stored as JPEG of `quality` and read again, after rounding and clipping to the pixels' range.

    Raises:
        InputError: A quality outside 1..100, or images of other than 1 or 3 channels.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"JPEG's quality lies in 1..100, got {quality}")
    if preprocessing.input_size[0] not in (1, 3):
        raise InputError(f"JPEG holds images of 1 or 3 channels, not {preprocessing.input_size[0]}")

    def apply(images: Tensor, indices: Tensor) -> Tensor:
        mean, std = (_by_channel(values, images) for values in (preprocessing.mean, preprocessing.std))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte().cpu()
        stored = torch.stack([_stored(image, quality) for image in pixels]).to(images)
        return (stored / 255 - mean) / std

    return Disturbance("jpeg", apply)


def shift(pixels: int = 1) -> Disturbance:
    """Moved down and right by `pixels`; the border's pixels are repeated, and what leaves the image is lost.

    The map is moved back by as many of its cells as that makes, rounded: a map of the image's size that moves along is
    perfectly stable but at its border, and one on a coarse grid is compared as it is.

    Raises:
        InputError: A shift of less than one pixel.
    """
    if pixels < 1:
        raise InputError(f"a shift moves at least one pixel, got {pixels}")

    def undo(maps: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (round(pixels * cells / side) for cells, side in zip(maps.shape[-2:], size, strict=True))
        return _moved(maps, -rows, -columns)

    return Disturbance("shift", lambda images, indices: _moved(images, pixels, pixels), undo)


def disturbances(preprocessing: Preprocessing, seed: int = 0) -> list[Disturbance]:
    """The three, by their defaults; without JPEG where the images have other than 1 or 3 channels."""
    stored = [jpeg(preprocessing)] if preprocessing.input_size[0] in (1, 3) else []
    return [gaussian_noise(preprocessing, seed=seed), *stored, shift()]


def _stored(image: Tensor, quality: int) -> Tensor:
    """Pixels `c h w` (uint8, 1 or 3 channels) as they come back from a JPEG file.

    By Pillow: torchvision's `jpeg` announces its own removal.
    """
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).reshape(*image.shape[1:], -1).permute(2, 0, 1)


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """`… h w` moved, its border repeated."""
    for axis, step in ((-2, down), (-1, right)):
        places = torch.arange(images.shape[axis], device=images.device) - step
        images = images.index_select(axis, places.clamp(0, images.shape[axis] - 1))
    return images


def _by_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    return images.new_tensor(values)[:, None, None]
