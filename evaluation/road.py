"""ROAD: deletion without the traces of deletion. Removed pixels are imputed from their neighbours.

Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022. Each removed pixel is
the weighted mean of its eight neighbours, of which some are removed themselves: a linear system, solved here for many
images at once by conjugate gradients on their device.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from .maps import placed, ranks, stacked
from .perturbation import Scores

SHARES = tuple(percent / 100 for percent in range(10, 100, 10))  # of the pixels, removed
NOISE = 0.01  # standard deviation of what is added to imputed pixels, in normalised units
_MAX_ROUNDS = 2000


class Road(NamedTuple):
    """The watched output after removals, for m methods, b images and k shares."""

    most_relevant_first: Tensor  # m b k, low is good
    least_relevant_first: Tensor  # m b k, high is good

    @property
    def combined(self) -> Tensor:
        """Half of what lies between the two, mean over the shares: `m b`, high is good, 0 by chance."""
        return (self.least_relevant_first - self.most_relevant_first).mean(-1) / 2


@torch.no_grad()
def road(
    scores: Scores,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    indices: Tensor,
    *,
    shares: tuple[float, ...] = SHARES,
    noise: float = NOISE,
    seed: int = 0,
    chunk: int = 64,
) -> Road:
    """What is watched when exactly a share of the pixels is removed, the map's highest or its lowest.

    Equal values rank in reading order, so a map with ties, even a constant one, has as many pixels removed as any.

    Args:
        scores: The watched output of given classes for a batch of normalised images.
        images: `b c h w`, normalised.
        maps: `b h w` or `m b h w`, any resolution; higher is more important.
        classes: `b`.
        indices: `b`, the images' numbers in the set: noise is drawn by seed and number.
        shares: Of the pixels, removed; each in 0..1, both excluded.
        noise: Standard deviation of what is added to imputed pixels; without it they are too smooth to be true.
        seed: Of the noise.
        chunk: Images a forward pass, and systems solved at once, whatever the batch.

    Raises:
        InputError: A share outside 0..1.
    """
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"shares of pixels to remove must lie between 0 and 1, got {shares}")
    count, (height, width) = len(images), images.shape[-2:]
    rank = ranks(placed(stacked(maps, count), (height, width)))  # m b (h w)
    added = torch.stack(
        [
            noise * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(mixed_seed(seed, index)))
            for index in indices.tolist()
        ]
    ).to(images)
    removed = torch.tensor([round(share * height * width) for share in shares], device=images.device)
    watched = images.new_empty(2, len(rank), count, len(shares))
    # Shares vary slowest, so that systems that take about as long are solved together.
    jobs = torch.cartesian_prod(*(torch.arange(n) for n in (len(shares), 2, len(rank), count))).to(images.device)
    for part in jobs.split(chunk):
        share, order, method, image = part.unbind(1)
        place = rank[method, image]
        place = torch.where(order[:, None] == 0, place, height * width - 1 - place)
        is_removed = (place < removed[share][:, None]).unflatten(1, (height, width))
        filled = imputed(images[image], is_removed)
        filled = torch.where(is_removed[:, None], filled + added[image], filled)
        watched[order, method, image, share] = scores(filled, classes[image]).to(watched)
    return Road(watched[0], watched[1])


def imputed(images: Tensor, is_removed: Tensor, tolerance: float = 1e-4) -> Tensor:
    """`images` (n c h w) with each pixel where `is_removed` (n h w) the weighted mean of its neighbours.

    Edge neighbours weigh twice as much as diagonal ones, and what lies outside the image weighs nothing. The system is
    symmetric and positive definite as long as a pixel is left, so conjugate gradients find its solution; they start
    from the mean of the pixels left near by and end where the residual is `tolerance` times the right-hand side, or
    after 2000 rounds.

    Raises:
        InputError: An image of which no pixel is left.
    """
    if bool(is_removed.flatten(1).all(1).any()):
        raise InputError("an image of which every pixel is removed cannot be imputed")
    removed = is_removed[:, None].to(images)
    degree = _around(torch.ones_like(images[:1]))

    def system(values: Tensor) -> Tensor:
        return removed * (degree * values - _around(values))

    known = images * (1 - removed)
    target = removed * _around(known)
    found = removed * _nearby_mean(known, 1 - removed)
    residual = target - system(found)
    direction = residual / degree
    product = _dot(residual, direction)
    goal = tolerance**2 * _dot(target, target)
    for _ in range(_MAX_ROUNDS):
        is_open = _dot(residual, residual) > goal
        if not bool(is_open.any()):
            break
        image_of = system(direction)
        length = torch.where(is_open, product / _dot(direction, image_of).clamp(min=1e-30), 0)
        found = found + length * direction
        residual = residual - length * image_of
        scaled = residual / degree
        following = _dot(residual, scaled)
        direction = scaled + torch.where(is_open, following / product.clamp(min=1e-30), 0) * direction
        product = following
    return known + found


def _nearby_mean(known: Tensor, is_known: Tensor) -> Tensor:
    """A first guess everywhere: the mean of known pixels in the smallest block, of sides 2, 4, 8 …, that holds some."""
    size = known.shape[-2:]
    if min(size) < 2:
        return (known.sum((-2, -1), keepdim=True) / is_known.sum((-2, -1), keepdim=True)).expand_as(known)
    sums, counts = (functional.avg_pool2d(values, 2, ceil_mode=True) for values in (known, is_known))
    guess = sums / counts.clamp(min=1e-12)
    has_some = (counts > 0).to(known)
    if not bool(has_some.all()):
        guess = torch.where(has_some > 0, guess, _nearby_mean(guess * has_some, has_some))
    return functional.interpolate(guess, size=size, mode="bilinear", align_corners=False)


def _around(values: Tensor) -> Tensor:
    """The weighted sum of each pixel's neighbours: 1/6 for those at an edge, 1/12 at a corner, none beyond the border.

    By shifted sums along both axes (1 2 1), less the middle: on a CPU a depthwise convolution takes ten times as long.
    """
    framed = functional.pad(values, (1, 1, 1, 1))
    rows = framed[..., :-2, :] + framed[..., 2:, :] + 2 * framed[..., 1:-1, :]
    return (rows[..., :-2] + rows[..., 2:] + 2 * rows[..., 1:-1] - 4 * values) / 12


def _dot(one: Tensor, two: Tensor) -> Tensor:
    """For each image and channel: `n c 1 1`."""
    return (one * two).sum((-2, -1), keepdim=True)
