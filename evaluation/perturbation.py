"""Deletion and insertion: does the prediction follow the pixels that the map calls important?

Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, section 4.2; the
numbers agree with the authors' code (tests/evaluation/test_perturbation.py).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import InputError
from .maps import placed, ranks, stacked

Scores = Callable[[Tensor, Tensor], Tensor]  # images n c h w, classes n → what is watched, n
# An image without what it shows: zero after normalisation, its own mean for each channel, or itself blurred.
Baseline = Literal["mean_colour", "image_mean", "blur"]


class Curves(NamedTuple):
    """What became of the watched output while pixels changed, for m methods and b images."""

    scores: Tensor  # m b (k + 1), fp32: before, after each of k steps
    fractions: Tensor  # (k + 1): share of the pixels changed, 0 to 1
    auc: Tensor  # m b: trapezoids over the steps, each of equal width


def deletion(
    scores: Scores,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    step: int,
    chunk: int = 64,
    baseline: Baseline = "mean_colour",
) -> Curves:
    """Replace pixels by those of the baseline, most important first; a low AUC means that the map found what mattered.

    Args:
        scores: The watched output of given classes for a batch of normalised images.
        images: `b c h w`, normalised: zero is the mean colour.
        maps: `b h w` or `m b h w`, any resolution; higher is more important.
        classes: `b`.
        step: Pixels a step; a last, partial step counts as a whole one, as RISE has it.
        chunk: Images a forward pass, whatever the batch.
        baseline: What takes the pixels' place; RISE's is the mean colour.
    """
    return perturbation_curves(scores, images, baseline_of(images, baseline), maps, classes, step, chunk)


def insertion(
    scores: Scores,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    step: int,
    chunk: int = 64,
    baseline: Baseline = "blur",
) -> Curves:
    """Restore pixels of the baseline, RISE's being the blurred image, most important first; a high AUC is good.

    Arguments as for `deletion`.
    """
    return perturbation_curves(scores, baseline_of(images, baseline), images, maps, classes, step, chunk)


def baseline_of(images: Tensor, baseline: Baseline) -> Tensor:
    """The images `b c h w` without what they show."""
    if baseline == "blur":
        return rise_blur(images)
    if baseline == "image_mean":
        return images.mean((-2, -1), keepdim=True).expand_as(images)
    return torch.zeros_like(images)


@torch.no_grad()
def perturbation_curves(
    scores: Scores, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, step: int, chunk: int = 64
) -> Curves:
    """Replace the pixels of `start` by those of `end` (both `b c h w`) in the order of the maps.

    One sweep for all methods: the first and the last image do not depend on the map and are scored once; all others,
    over methods, images and steps, fill batches of `chunk`.
    """
    num_images, height, width = start.shape[0], *start.shape[-2:]
    if step < 1:
        raise InputError(f"a step must change at least one pixel, got {step}")
    rank = ranks(placed(stacked(maps, num_images), (height, width)))  # m b (h w)
    num_steps = -(-height * width // step)
    first, last = (_in_chunks(scores, images, classes, chunk) for images in (start, end))
    curve = torch.empty(rank.shape[0], num_images, num_steps + 1, device=start.device)
    curve[..., 0], curve[..., -1] = first, last

    inner = torch.cartesian_prod(*(torch.arange(n) for n in (rank.shape[0], num_images, num_steps - 1)))
    for first_job in range(0, len(inner), chunk):
        method, image, done = inner[first_job : first_job + chunk].to(start.device).unbind(1)
        is_changed = rank[method, image] < ((done + 1) * step)[:, None]
        mask = is_changed.unflatten(1, (1, height, width))
        curve[method, image, done + 1] = scores(torch.where(mask, end[image], start[image]), classes[image]).float()
    auc = (curve.sum(-1) - (curve[..., 0] + curve[..., -1]) / 2) / num_steps
    fractions = (torch.arange(num_steps + 1) * step / (height * width)).clamp(max=1)
    return Curves(curve, fractions, auc)


def rise_blur(images: Tensor) -> Tensor:
    """The start of insertion: RISE's `gkern(11, 5)`, convolved with zero padding, so that borders fade."""
    kernel = torch.from_numpy(_rise_kernel()).to(images)
    channels = images.shape[1]
    return functional.conv2d(images, kernel.expand(channels, 1, -1, -1), padding=kernel.shape[-1] // 2, groups=channels)


def _rise_kernel(length: int = 11, sigma: float = 5.0) -> np.ndarray:
    """A point filtered by a Gaussian inside `length` × `length` with mirrored borders, as SciPy does: nearly a box."""
    radius = int(4 * sigma + 0.5)
    gaussian = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    point = np.eye(1, length, length // 2)[0]
    line = np.convolve(np.pad(point, radius, mode="symmetric"), gaussian / gaussian.sum(), mode="valid")
    return np.outer(line, line).astype(np.float32)


def _in_chunks(scores: Scores, images: Tensor, classes: Tensor, chunk: int) -> Tensor:
    pairs = zip(images.split(chunk), classes.split(chunk), strict=True)
    return torch.cat([scores(some_images, some_classes).float() for some_images, some_classes in pairs])
