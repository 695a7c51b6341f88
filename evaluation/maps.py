"""Maps as all metrics take them: tensors, one or M methods at once, any resolution."""

import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import InputError


def stacked(maps: Tensor, num_images: int) -> Tensor:
    """Maps `b h w` (one method) or `m b h w` (several) as `m b h w`.

    Raises:
        InputError: Another rank, or another number of images.
    """
    methods = maps[None] if maps.ndim == 3 else maps
    if methods.ndim != 4 or methods.shape[1] != num_images:
        expected = f"({num_images}, h, w) or (m, {num_images}, h, w)"
        raise InputError(f"maps of shape {expected} expected, got {tuple(maps.shape)}")
    return methods


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `m b h w` at the resolution `size` of the images, bilinear, sign kept, in fp32."""
    if maps.shape[-2:] == torch.Size(size):
        return maps.float()
    return functional.interpolate(maps.float(), size, mode="bilinear", align_corners=False)


def ranks(maps: Tensor) -> Tensor:
    """The place of each pixel when the highest value comes first: `… h w` to `… (h w)` int64, 0 for the highest.

    Equal values rank in reading order, so that a flat map has a defined order and k pixels are exactly k.
    """
    flat = maps.flatten(-2)
    order = flat.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(flat.shape[-1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
