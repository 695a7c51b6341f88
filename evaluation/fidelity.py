"""Fidelity to random deletions: does the sum of the map over deleted patches tell how far the logit falls?

No order of pixels is needed, signed maps count as they are, and one sweep of deletions serves all methods.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..common.seeds import mixed_seed
from .map_similarity import rank_correlation
from .maps import placed, stacked
from .patches import patch_numbers, patch_sums, without_patches
from .perturbation import Scores

CELLS, SHARE, SAMPLES = 9, 0.2, 200  # patches a side, share deleted at once, subsets an image


class Fidelity(NamedTuple):
    """`m b` each."""

    mu_fidelity: Tensor  # Spearman's correlation over the subsets, 1 is best, 0 chance
    infidelity: (
        Tensor  # the share of the logit's squared changes that the map, scaled at best, leaves unexplained; 0..1
    )


@torch.no_grad()
def fidelity(
    logits: Scores,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    indices: Tensor,
    *,
    cells: int = CELLS,
    share: float = SHARE,
    samples: int = SAMPLES,
    seed: int = 0,
    chunk: int = 64,
) -> Fidelity:
    """μFidelity and infidelity over the same random subsets of patches, deleted to the mean colour.

    Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020, in the form over patches
    with ranks; Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, equation 1 with the
    optimal scale, for maps of contributions: the map is summed over what is deleted, not multiplied by the image. NaN
    where the map's sums or the logit's drops are all equal (or, for infidelity, all zero).

    Args:
        logits: The logits of given classes for a batch of normalised images.
        images: `b c h w`, normalised: zero is the mean colour.
        maps: `b h w` or `m b h w`, any resolution, with sign.
        classes: `b`.
        indices: `b`, the images' numbers in the set: subsets are drawn by seed and number.
        cells: Patches a side.
        share: Of the patches, deleted at once.
        samples: Subsets an image.
        seed: Of the subsets.
        chunk: Images a forward pass, whatever the batch.
    """
    size = (images.shape[-2], images.shape[-1])
    numbers = patch_numbers(size, cells)
    subsets = random_subsets(indices, cells**2, round(share * cells**2), samples, seed).to(images.device)
    whole = torch.cat([logits(*part) for part in zip(images.split(chunk), classes.split(chunk), strict=True)])
    left = []
    for part in torch.cartesian_prod(torch.arange(len(images)), torch.arange(samples)).to(images.device).split(chunk):
        image, sample = part.unbind(1)
        left.append(logits(without_patches(images[image], subsets[image, sample], numbers), classes[image]))
    drops = whole[:, None].double() - torch.cat(left).double().unflatten(0, (len(images), samples))
    of_patches = patch_sums(placed(stacked(maps, len(images)), size), numbers, cells**2)
    sums = torch.einsum("m b p, b n p -> m b n", of_patches, subsets.double())
    each = rearrange(sums, "m b n -> (m b) 1 n"), repeat(drops, "b n -> (m b) 1 n", m=len(sums))
    return Fidelity(
        rank_correlation(*each).unflatten(0, sums.shape[:2]),
        infidelity(sums, drops) / drops.square().mean(-1),
    )


def infidelity(sums: Tensor, drops: Tensor) -> Tensor:
    """Mean squared error of the map's sums (`… n`), times the best common factor, against the drops (`… n`): `…`.

    In the square of the output's unit. NaN where all sums are zero.
    """
    factor = (sums * drops).mean(-1) / sums.square().mean(-1)  # 0 / 0 is NaN
    return (factor[..., None] * sums - drops).square().mean(-1)


def random_subsets(indices: Tensor, count: int, chosen: int, samples: int, seed: int) -> Tensor:
    """For each image `samples` subsets of `chosen` out of `count` patches: `b n p` bool, by seed and number."""
    drawn = torch.stack(
        [
            torch.rand(samples, count, generator=torch.Generator().manual_seed(mixed_seed(seed, index)))
            for index in indices.tolist()
        ]
    )
    return drawn.argsort(-1).argsort(-1) < chosen
