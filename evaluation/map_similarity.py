"""How alike two maps are, and how much is in one: what stability and sanity scores are made of.

All compare maps at their own resolution and with their sign, in fp64; a map that is not finite has no score (NaN).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError

_SIGMA, _RADIUS = 1.5, 5  # of Wang et al.'s window of 11 × 11
_K1, _K2 = 0.01, 0.03


class Similarity(NamedTuple):
    """How alike two maps of each image are: `b` each."""

    ssim: Tensor  # -1..1, 1 for equal maps
    rank_correlation: Tensor  # -1..1, NaN where a map is constant


def similarity(first: Tensor, second: Tensor) -> Similarity:
    """`ssim` and `rank_correlation` of maps `b h w` and `b h w`, pair by pair.

    Raises:
        InputError: Maps of unequal shapes.
    """
    return Similarity(ssim(first, second), rank_correlation(first, second))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of maps `b h w` and `b h w`, pair by pair: `b` in -1..1; 1 for equal maps, constant or not.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004,
    with their Gaussian window of 11 × 11 cells and population covariance. Conventions: the data range is that of both
    maps together, so the unit does not matter, but a map at half the height differs; borders are mirrored and every
    cell counts, so that maps smaller than the window have a score as well (scikit-image's `full` map, averaged).

    Raises:
        InputError: Maps of unequal shapes.
    """
    _check(first, second)
    # Divided by the data range, which makes it 1.
    both = torch.stack([first, second]).double()
    data_range = both.amax((0, 2, 3)) - both.amin((0, 2, 3))
    x, y = both / data_range.where(data_range > 0, 1)[:, None, None]
    rows, columns = (_window(side).to(x) for side in x.shape[-2:])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = torch.einsum(
        "Hh,sbhw,Ww->sbHW", rows, torch.stack([x, y, x * x, y * y, x * y]), columns
    )
    variances = mean_xx - mean_x**2 + mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _K1**2) / (mean_x**2 + mean_y**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variances + _K2**2)
    score = (luminance * structure).mean((-2, -1))
    return _known(torch.where(data_range > 0, score, 1.0), first, second)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of maps `b h w` and `b h w`, pair by pair: `b` in -1..1; equal values share a mean rank.

    A constant map has no order: NaN.

    Raises:
        InputError: Maps of unequal shapes.
    """
    _check(first, second)
    x, y = (mean_ranks(maps.flatten(1)) for maps in (first, second))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    norms = (x.square().sum(1) * y.square().sum(1)).sqrt()
    correlation = ((x * y).sum(1) / norms.where(norms > 0, torch.nan)).clamp(-1, 1)
    return _known(correlation, first, second)


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks of each row of `b n`, 1 for the lowest, equal values sharing their mean rank: `b n` fp64."""
    ascending = values.sort(1).values.contiguous()
    below = torch.searchsorted(ascending, values.contiguous())
    up_to = torch.searchsorted(ascending, values.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def discrete_entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """Entropy of the histogram of each map of `b h w`, in nats: `b` in 0..ln(bins); 0 for a constant map.

    Bins of equal width between the map's own lowest and highest value, so its unit does not matter.
    Hedström et al., "Sanity Checks Revisited", XAI in Action 2023.

    Raises:
        InputError: Fewer than two bins, or another shape.
    """
    if bins < 2:
        raise InputError(f"a histogram needs at least two bins, got {bins}")
    if maps.ndim != 3:
        raise InputError(f"maps of shape (b, h, w) expected, got {tuple(maps.shape)}")
    values = maps.double().flatten(1)
    lowest, highest = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    width = (highest - lowest).where(highest > lowest, 1)
    places = ((values - lowest) / width * bins).nan_to_num(0).long().clamp(0, bins - 1)
    counts = values.new_zeros(len(maps), bins).scatter_add_(1, places, torch.ones_like(values))
    shares = counts / values.shape[1]
    return _known(-torch.special.xlogy(shares, shares).sum(1), maps)


def _window(side: int) -> Tensor:
    """The Gaussian window along an axis of `side` cells, mirrored at its ends, as a matrix `side side`."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets.double() / _SIGMA) ** 2)
    places = (torch.arange(side)[:, None] + offsets) % (2 * side)
    places = torch.where(places < side, places, 2 * side - 1 - places)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(side, -1))


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 3 or first.shape != second.shape:
        raise InputError(
            f"two maps of one shape (b, h, w) expected, got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def _known(scores: Tensor, *maps: Tensor) -> Tensor:
    """`scores` (b), NaN where one of the maps is not finite throughout."""
    for each in maps:
        scores = scores.masked_fill(~each.isfinite().flatten(1).all(1), torch.nan)
    return scores
