"""Maps as all metrics take them: tensors, one or M methods at once, any resolution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..common.errors import InputError
from ..models.anatomy import Grid

Kind = Literal["built-in", "post-hoc", "control"]


@dataclass(frozen=True)
class MapMethod:
    """One way to explain: maps `b h w` of `classes` (b) for `images` (b c H W), whose numbers in the set are `indices`.

    A map is in any unit and resolution; higher means more for the class. `indices` let random maps be the same
    whatever the batch. `is_on_grid`: its cells are those of the model's feature map. `completes`: its sum is meant
    to be what the image's logit has more than that of the mean colour alone; or what `owed` says, `b` of images and
    classes.
    """

    name: str
    kind: Kind
    explain: Callable[[Tensor, Tensor, Tensor], Tensor]
    is_on_grid: bool = False
    completes: bool = False
    owed: Callable[[Tensor, Tensor], Tensor] | None = None


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


def placed(maps: Tensor, size: tuple[int, int], grid: Grid | None = None) -> Tensor:
    """Maps `m b h w` at the resolution `size` of the images: linear between cells, sign kept, in fp32.

    With a `grid` each cell stands where it looks, and beyond the outermost cells their values go on. Without one the
    map is stretched over the image, as `torch.nn.functional.interpolate` does (bilinear, corners not aligned).
    """
    if grid is None and maps.shape[-2:] == torch.Size(size):
        return maps.float()
    rows, columns = (
        _interpolation(cells, pixels, None if grid is None else (grid.centre[axis], grid.stride)).to(maps.device)
        for axis, (cells, pixels) in enumerate(zip(maps.shape[-2:], size, strict=True))
    )
    return torch.einsum("Hh,mbhw,Ww->mbHW", rows, maps.float(), columns)


def placed_explanations(
    methods: Sequence[MapMethod], images: Tensor, classes: Tensor, indices: Tensor, grid: Grid | None
) -> Tensor:
    """What each method shows of `images` (b c H W), at their resolution: `m b H W`; `grid`: of maps on the model's."""
    size = (images.shape[-2], images.shape[-1])
    maps = [
        placed(method.explain(images, classes, indices)[None], size, grid if method.is_on_grid else None)
        for method in methods
    ]
    return torch.cat(maps) if maps else images.new_zeros(0, len(images), *size)


def _interpolation(cells: int, pixels: int, placement: tuple[float, float] | None) -> Tensor:
    """Linear interpolation as a matrix `pixels cells`; `placement`: centre of the first cell and stride, in pixels."""
    first, stride = placement or (pixels / cells / 2, pixels / cells)
    place = ((torch.arange(pixels, dtype=torch.float64) + 0.5 - first) / stride).clamp(0, cells - 1)
    left = place.floor().clamp(max=max(cells - 2, 0)).long()
    share = place - left
    matrix = torch.zeros(pixels, cells, dtype=torch.float64)
    matrix.scatter_add_(1, left[:, None], (1 - share)[:, None])
    matrix.scatter_add_(1, (left + 1).clamp(max=cells - 1)[:, None], share[:, None])
    return matrix.float()


def ranks(maps: Tensor) -> Tensor:
    """The place of each pixel when the highest value comes first: `… h w` to `… (h w)` int64, 0 for the highest.

    Equal values rank in reading order, so that a flat map has a defined order and k pixels are exactly k.
    """
    flat = maps.flatten(-2)
    order = flat.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(flat.shape[-1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
