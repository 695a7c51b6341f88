"""Means with intervals over images, differences between two models or methods, and several seeds merged."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.seeds import mixed_seed

_ROUND = 100  # resamples at once, so that ten thousand images need no gigabyte


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
    means = torch.cat(
        [
            known[torch.randint(len(known), (count, len(known)), generator=generator)].mean(1)
            for count in _rounds(resamples)
        ]
    )
    return Interval(known.mean().item(), *_percentiles(means, confidence), len(known), missing)


class Difference(NamedTuple):
    """The mean of first − second over the images that both have a score for."""

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, of the sign-flip test
    images: int  # pairs
    missing: int  # images without one of the scores (NaN), left out


def paired_difference(first: Tensor, second: Tensor, resamples: int, confidence: float, seed: int) -> Difference:
    """Compares scores `b` and `b` of the same images: mean difference, bootstrap interval, permutation test.

    The interval is `bootstrap_interval`'s, of the differences. The test asks how often a mean at least as far from 0
    comes out when each difference has a random sign, which is what it would have if both were alike: over all 2ⁿ
    patterns of signs where these are no more than `resamples`, else over `resamples` random ones, the observed one
    counted among them. NaN throughout where no image has both scores.

    Raises:
        InputError: Scores of different images.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(f"two scores of each image (b) expected, got {tuple(first.shape)} and {tuple(second.shape)}")
    differences = first.double().cpu() - second.double().cpu()
    interval = bootstrap_interval(differences, resamples, confidence, seed)
    known = differences[~differences.isnan()]
    p_value = _sign_flip_test(known, resamples, mixed_seed(seed, 1)) if len(known) else math.nan
    return Difference(*interval[:3], p_value, *interval[3:])


def _sign_flip_test(differences: Tensor, resamples: int, seed: int) -> float:
    """The share of sign patterns whose sum lies at least as far from 0 as that of `differences` (n > 0)."""
    count = len(differences)
    least = differences.sum().abs() - 1e-12 * differences.abs().sum()  # equal sums differ by rounding
    if count < 63 and 2**count <= resamples:
        patterns = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return _as_far(patterns, differences, least) / 2**count
    generator = torch.Generator().manual_seed(seed)
    as_far = sum(
        _as_far(torch.randint(2, (some, count), generator=generator), differences, least) for some in _rounds(resamples)
    )
    return (1 + as_far) / (1 + resamples)


def _as_far(patterns: Tensor, differences: Tensor, least: Tensor) -> int:
    """How many of the sign patterns `r n`, of 0 and 1, give a sum at least `least` from 0."""
    return int((((2 * patterns - 1).double() @ differences).abs() >= least).sum())


class McNemar(NamedTuple):
    """Images that only one of two models gets right, and whether chance explains that."""

    only_first: int
    only_second: int
    p_value: float  # exact, two-sided


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """McNemar's exact test on the correctness `b` and `b` (bool) of two models on the same images.

    Were both alike, an image that only one gets right would be either's with equal chance: the p value is that of the
    binomial test, 1 where there is no such image. McNemar, Psychometrika 1947, in its exact form.

    Raises:
        InputError: Not bool, or other images.
    """
    if first.dtype != torch.bool or second.dtype != torch.bool or first.ndim != 1 or first.shape != second.shape:
        raise InputError("McNemar's test compares two bool tensors of one shape (b)")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    # Binomial coefficients one from the other, in whole numbers: exact for any count.
    term = tail = 1
    for step in range(fewer):
        term = term * (count - step) // (step + 1)
        tail += term
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**count))


class Merged(NamedTuple):
    """A mean over seeds, how far seeds lie apart, and intervals over images alone and over both."""

    mean: float
    low: float  # over seeds and images
    high: float
    images_low: float  # over images, for these very seeds
    images_high: float
    seed_deviation: float  # sample standard deviation of the seeds' means; NaN for one seed
    seeds: int  # with a score
    images: int  # with a score under at least one seed
    missing: int  # scores left out (NaN), over seeds and images


def merge_seeds(scores: Tensor, resamples: int, confidence: float, seed: int) -> Merged:
    """Merges the `scores` (s b) of s training runs on the same b images.

    Each seed's mean is over the images that it has a score for; the mean is over those. `low` and `high` are from a
    bootstrap in two levels: seeds are drawn with replacement, and images, the same for all seeds, since all were judged
    on the same ones. `images_low` and `images_high` draw images alone: what another test set would change, and all that
    one seed can tell. With few seeds the first is too narrow, as every bootstrap of few things is (by the factor
    √((s − 1) / s) in the part that is due to seeds): give `seed_deviation` beside it. NaN throughout without a score.

    Raises:
        InputError: Not one row a seed.
    """
    if scores.ndim != 2:
        raise InputError(f"scores of shape (seeds, images) expected, got {tuple(scores.shape)}")
    values = scores.double().cpu()
    is_known = ~values.isnan()
    missing = int((~is_known).sum())
    values = values[is_known.any(1)][:, is_known.any(0)]
    seeds, images = values.shape
    if not values.numel():
        nothing = math.nan
        return Merged(nothing, nothing, nothing, nothing, nothing, nothing, 0, 0, missing)
    of_seeds = values.nanmean(1)
    by_images, by_both = [], []
    image_generator = torch.Generator().manual_seed(seed)  # as bootstrap_interval draws
    seed_generator = torch.Generator().manual_seed(mixed_seed(seed, 1))
    known, filled = (~values.isnan()).double(), values.nan_to_num(0)
    for count in _rounds(resamples):
        chosen = torch.randint(images, (count, images), generator=image_generator)
        weights = torch.zeros(count, images, dtype=torch.float64).scatter_add_(1, chosen, known.new_ones(chosen.shape))
        means = (weights @ filled.T) / (weights @ known.T)  # r s; 0 / 0 where a seed has a score for none of them
        by_images.append(means.nanmean(1))
        by_both.append(means.gather(1, torch.randint(seeds, (count, seeds), generator=seed_generator)).nanmean(1))
    return Merged(
        of_seeds.mean().item(),
        *_percentiles(torch.cat(by_both), confidence),
        *_percentiles(torch.cat(by_images), confidence),
        of_seeds.std().item() if seeds > 1 else math.nan,
        seeds,
        images,
        missing,
    )


def _percentiles(means: Tensor, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of the resampled means (r)."""
    tail = (1 - confidence) / 2
    low, high = means.nanquantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def _rounds(resamples: int) -> list[int]:
    """`resamples` in rounds."""
    return [min(_ROUND, resamples - start) for start in range(0, resamples, _ROUND)]


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
    for count in _rounds(resamples):
        drawn = torch.randint(len(known), (count, len(known)), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        numbers.append(pool(known, counts).double())
    low, high = _percentiles(torch.cat(numbers), confidence)
    mean = pool(known, torch.ones(1, len(known), dtype=torch.float64)).item()
    return Interval(mean, low, high, len(known), missing)
