"""Images cut into a grid of patches, some of which are deleted: set to zero after normalisation, the mean colour."""

import torch
from torch import Tensor


def patch_numbers(size: tuple[int, int], cells: int) -> Tensor:
    """Which of `cells` × `cells` patches each pixel of an image of `size` belongs to, row by row: `h w` int64.

    Where `cells` does not divide a side patches differ by a pixel, as those of `data.augmentation.grid_cell` do.
    """
    rows, columns = (
        torch.searchsorted(torch.arange(1, cells + 1) * side // cells, torch.arange(side), right=True) for side in size
    )
    return rows[:, None] * cells + columns


def patch_sums(maps: Tensor, numbers: Tensor, count: int) -> Tensor:
    """The sum of each map in each of `count` patches: `… h w` to `… count`, in fp64."""
    flat = maps.flatten(-2).double()
    sums = flat.new_zeros(*flat.shape[:-1], count)
    return sums.index_add(-1, numbers.flatten().to(maps.device), flat)


def without_patches(images: Tensor, is_deleted: Tensor, numbers: Tensor) -> Tensor:
    """`images` (n c h w) with the patches where `is_deleted` (n p bool) holds set to zero."""
    mask = is_deleted[:, numbers.to(images.device)]
    return images.masked_fill(mask[:, None], 0)
