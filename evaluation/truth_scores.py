"""Maps against the exact truth about parts: do they say of each part what it is worth to the model?

Maps are `b h w` or `m b h w`, any resolution, and are stretched over the masks. A map with a hole in it (NaN, infinity)
has no score (NaN); where the truth has nothing to find the score is NaN as well, and a map that says nothing there
is not: it gets what a guess would get, or worse.
"""

from functools import cache
from itertools import permutations
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from .localisation import energy_pointing_game, pointing_game
from .map_similarity import rank_correlation
from .maps import placed, stacked

IDLE = 0.05  # of the largest Shapley value of the image: a part of less counts for nothing


def part_sums(maps: Tensor, parts: Tensor) -> Tensor:
    """What the maps give to each part, with its sign: `m b p`, fp64; NaN for all parts of a map with a hole in it.

    Args:
        maps: `b h w` or `m b h w`.
        parts: `b p H W` bool, the pixels where each part is seen; one of none gets 0.
    """
    size = (parts.shape[-2], parts.shape[-1])
    values = placed(stacked(maps, len(parts)), size).double()
    sums = torch.einsum("mbhw,bphw->mbp", values.nan_to_num(0, 0, 0), parts.double())
    return sums.masked_fill(~values.isfinite().all(-1).all(-1)[..., None], torch.nan)


class Correctness(NamedTuple):
    """How well sums over parts agree with the parts' Shapley values."""

    rank_correlation: Tensor  # m b in -1..1, 1 is best, 0 chance
    error: Tensor  # m b in 0..1, 0 is best


def correctness(sums: Tensor, shapley: Tensor) -> Correctness:
    """Spearman's correlation over the parts, and the squared error that the best scale leaves, relative to the truth's.

    The scale, for each image and method, is at least 0: a map with the wrong sign is no better than an empty one, whose
    error is 1. Sums that are all equal order nothing: their correlation is 0. NaN where the Shapley values are all
    equal (correlation) or all 0 (error).

    Args:
        sums: `m b p`, from `part_sums`.
        shapley: `b p`.
    """
    methods = len(sums)
    each = rearrange(sums, "m b p -> (m b) 1 p"), repeat(shapley, "b p -> (m b) 1 p", m=methods)
    correlation = rank_correlation(*each).unflatten(0, sums.shape[:2])
    has_order = shapley.amax(1) > shapley.amin(1)
    is_flat = has_order & (sums.amax(2) == sums.amin(2))
    # Relative to the largest, so that a faint map is no smaller than an empty one in squares.
    unit = sums / sums.abs().amax(2, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)
    scale = ((unit * shapley).sum(2) / unit.square().sum(2).clamp(min=torch.finfo(sums.dtype).tiny)).clamp(min=0)
    left = (shapley - scale[..., None] * unit).square().sum(2)
    whole = shapley.square().sum(1)
    return Correctness(correlation.masked_fill(is_flat, 0), left / whole.where(whole > 0, torch.nan))


class PartCurves(NamedTuple):
    """The logit while parts come or go in the order of a map, with 0, 1, … p of them, and how good that order is."""

    kept: Tensor  # m b (p + 1), the map's first parts alone
    removed: Tensor  # m b (p + 1), all but the map's first parts
    sufficiency: Tensor  # m b in 0..1: the area under `kept`, 1 for the best of all orders, 0 for the worst
    necessity: Tensor  # m b in 0..1: the area under `removed`, 1 for the best of all orders (the lowest area)


def part_curves(values: Tensor, sums: Tensor) -> PartCurves:
    """Sufficiency and necessity, from the logits of all subsets: no forward pass is needed.

    Parts come in the order of the map's sums, highest first; where sums are equal, the mean over all orders that agree
    with them counts. Areas are set against those of the best and the worst of all p! orders of the same image, so that
    neither the logit's unit nor its size matters. NaN where all orders have the same area.

    Args:
        values: `b 2^p`, from `subset_logits`.
        sums: `m b p`, from `part_sums`.
    """
    orders = _orders(sums.shape[2]).to(sums.device)
    first = torch.cat([torch.zeros_like(orders[:, :1]), (1 << orders).cumsum(1)], 1)  # o (p + 1): numbers of subsets
    in_order = sums[..., orders]  # m b o p
    agrees = (in_order[..., :-1] >= in_order[..., 1:]).all(-1) & ~sums.isnan().any(-1, keepdim=True)
    weights = agrees.double() / agrees.sum(-1, keepdim=True)  # 0 / 0, NaN, for a map with a hole in it
    kept, removed = values[:, first], values[:, values.shape[1] - 1 - first]  # b o (p + 1)
    return PartCurves(
        torch.einsum("mbo,bok->mbk", weights, kept),
        torch.einsum("mbo,bok->mbk", weights, removed),
        _between(kept.mean(2), weights),
        1 - _between(removed.mean(2), weights),
    )


@cache
def _orders(parts: int) -> Tensor:
    """All orders of the parts, `p! p`."""
    return torch.tensor(list(permutations(range(parts))))


def _between(areas: Tensor, weights: Tensor) -> Tensor:
    """Where the weighted mean of areas (b o) lies between the lowest, 0, and the highest, 1: `m b`."""
    lowest, highest = areas.amin(1), areas.amax(1)
    span = (highest - lowest).where(highest > lowest, torch.nan)
    return torch.einsum("mbo,bo->mb", weights, (areas - lowest[:, None]) / span[:, None])


def mass_share(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive evidence that lies where there is none to find: `m b` in 0..1, 0 is best.

    `energy_pointing_game`, but NaN for a map without any positive evidence, which is no merit here.

    Args:
        maps: `b h w` or `m b h w`.
        masks: `b H W` bool; an empty one gives NaN.
    """
    methods = stacked(maps, len(masks))
    has_mass = (placed(methods, (masks.shape[-2], masks.shape[-1])) > 0).flatten(2).any(2)
    return energy_pointing_game(methods, masks).masked_fill(~has_mass, torch.nan)


def idle_parts(parts: Tensor, shapley: Tensor) -> Tensor:
    """Where the parts are seen whose Shapley value is less than `IDLE` of the image's largest: `b H W` bool."""
    sizes = shapley.abs()
    is_idle = sizes < IDLE * sizes.amax(1, keepdim=True)
    return (parts & is_idle[..., None, None]).any(1)


def contrast(first: Tensor, second: Tensor, masks: Tensor, follows: Tensor) -> Tensor:
    """Whether the map of one class less that of another peaks where the two differ: `m b` of 0 and 1.

    Maps that are the same for both classes have no peak: 0. NaN where the mask is empty, and where the model's own
    prediction does not follow the swap, so that the truth about it is not known.

    Args:
        first: `b h w` or `m b h w`, of the class that the image has.
        second: As many, of the same images, of the class that it has once parts are swapped.
        masks: `b H W` bool: where those parts are seen.
        follows: `b` bool: the model gives the first class before the swap, and the second after it.
    """
    difference = stacked(first, len(masks)) - stacked(second, len(masks))
    return pointing_game(difference, masks).masked_fill(~follows, torch.nan)
