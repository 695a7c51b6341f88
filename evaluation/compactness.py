"""Compactness: is the evidence in few places, or spread over all?

Both scores look at the size of the evidence, not its sign, and do not change where a map is multiplied by a number.
They change with its resolution: compare maps of different grids at the images' (`size`). A map of zeros is spread
evenly; a map of one cell, or with a NaN, has no score.
"""

import math

import torch
from torch import Tensor

from ..common.errors import InputError
from ..models import Grid
from .maps import placed, stacked


def gini(maps: Tensor, size: tuple[int, int] | None = None, grid: Grid | None = None) -> Tensor:
    """Gini index of the absolute values: `m b` in 0..1, 0 all equal; one cell of n alone gives 1 - 1/n.

    Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020 ("sparseness").

    Args:
        maps: `b h w` or `m b h w`, any resolution and sign.
        size: Height and width to which maps are stretched first, with their signs; default: their own.
        grid: Where the cells stand, as for `placed`; default: the map is stretched over the image.

    Raises:
        InputError: Another rank.
    """
    ascending = _shares(maps, size, grid).sort(-1).values
    cells = ascending.shape[-1]
    place = torch.arange(1, cells + 1, dtype=torch.float64, device=maps.device)
    return _where_spread(((2 * place - cells - 1) * ascending).sum(-1) / cells, cells)


def normalised_entropy(maps: Tensor, size: tuple[int, int] | None = None, grid: Grid | None = None) -> Tensor:
    """Entropy of the absolute values' shares, by that of equal shares: `m b` in 0..1, 0 all in one cell, 1 all equal.

    Bhatt, Weller and Moura, "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020, section 3.3
    ("complexity"), divided by the logarithm of the number of cells. Arguments as for `gini`.
    """
    shares = _shares(maps, size, grid)
    cells = shares.shape[-1]
    return _where_spread(torch.special.entr(shares).sum(-1) / math.log(max(cells, 2)), cells)


def _shares(maps: Tensor, size: tuple[int, int] | None, grid: Grid | None) -> Tensor:
    """Share of each cell in the sum of absolute values: `m b (h w)` fp64, equal shares for a map of zeros."""
    if maps.ndim not in (3, 4):
        raise InputError(f"maps of shape (b, h, w) or (m, b, h, w) expected, got {tuple(maps.shape)}")
    methods = stacked(maps, maps.shape[-3])
    flat = (methods if size is None else placed(methods, size, grid)).double().abs().flatten(-2)
    highest = flat.amax(-1, keepdim=True)
    relative = torch.where(highest == 0, torch.ones_like(flat), flat / highest)
    return relative / relative.sum(-1, keepdim=True)


def _where_spread(scores: Tensor, cells: int) -> Tensor:
    return (scores if cells > 1 else torch.full_like(scores, torch.nan)).clamp(0, 1).float()
