"""Means with intervals, over images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A mean and its bootstrap interval over the images that have a score."""

    mean: float
    low: float
    high: float
    images: int  # images with a score
    missing: int  # images without one (NaN), left out


def bootstrap_interval(scores: Tensor, resamples: int, confidence: float, seed: int) -> Interval:
    """Mean of `scores` (b), NaN left out and counted, with the percentile interval over resampled images.

    The same seed resamples the same images, so methods scored on the same images are compared on the same draws.
    NaN throughout where no image has a score.
    """
    known = scores.double().cpu()
    known = known[~known.isnan()]
    missing = len(scores) - len(known)
    if not len(known):
        return Interval(torch.nan, torch.nan, torch.nan, 0, missing)
    generator = torch.Generator().manual_seed(seed)
    # In rounds, so that ten thousand images need no gigabyte.
    means = torch.cat(
        [
            known[torch.randint(len(known), (min(100, resamples - start), len(known)), generator=generator)].mean(1)
            for start in range(0, resamples, 100)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return Interval(known.mean().item(), low, high, len(known), missing)


def pooled_interval(
    values: Tensor, pool: Callable[[Tensor, Tensor], Tensor], resamples: int, confidence: float, seed: int
) -> Interval:
    """As `bootstrap_interval`, for a number that only a whole set has.

    Args:
        values: What each image gives, `n …`; an image that has nothing to give is NaN throughout.
        pool: The number of a set (`r`), from those values and how often each image counts (`r n`).
        resamples: Of the images.
        confidence: Of the interval.
        seed: Of the resamples.
    """
    is_known = ~values.flatten(1).isnan().all(1)
    known = values[is_known]
    missing = int((~is_known).sum())
    if not len(known):
        return Interval(torch.nan, torch.nan, torch.nan, 0, missing)
    generator = torch.Generator().manual_seed(seed)
    numbers = []
    for start in range(0, resamples, 100):
        drawn = torch.randint(len(known), (min(100, resamples - start), len(known)), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        numbers.append(pool(known, counts).double())
    tail = (1 - confidence) / 2
    low, high = torch.cat(numbers).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    mean = pool(known, torch.ones(1, len(known), dtype=torch.float64)).item()
    return Interval(mean, low, high, len(known), missing)
