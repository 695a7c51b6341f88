"""Pointing: does the evidence lie where the cause is known to lie?

Where nothing is known of an image (no mask, or an empty one) there is nothing to hit: its score is NaN, and it is
counted. A map without positive evidence points nowhere: its score is 0.
"""

import torch
from torch import Tensor

from ..common.errors import InputError
from .maps import placed, ranks, stacked


def energy_pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive evidence that lies in the mask: `m b` in 0..1, NaN where the mask is empty.

    Also known as relevance mass accuracy. Wang et al., "Score-CAM", CVPR workshops 2020, section 4.4.

    Args:
        maps: `b h w` or `m b h w`, any resolution; stretched over the masks, then clipped at 0.
        masks: `b H W` bool: where the cause lies.
    """
    positive, inside = _at_mask_size(maps, masks)
    positive = positive.clamp(min=0)
    # Relative to the largest value, so that faint evidence counts as well as strong.
    positive = positive / positive.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)
    share = (positive * inside).sum((-2, -1)) / positive.sum((-2, -1)).clamp(min=1e-12)
    return _unless_empty(share, masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the highest value lies in the mask: `m b` of 0 and 1, NaN where the mask is empty.

    No tolerance; of equal maxima the first in reading order counts. Zhang et al., "Top-down Neural Attention by
    Excitation Backprop", ECCV 2016, section 4.1. Arguments as for `energy_pointing_game`.
    """
    values, inside = _at_mask_size(maps, masks)
    highest = ranks(values) == 0
    hit = (highest & inside.flatten(-2)).any(-1) & (values.amax((-2, -1)) > 0)
    return _unless_empty(hit.float(), masks)


def chance_level(masks: Tensor) -> Tensor:
    """The score of a map that knows nothing, for both games: the mask's share of the image, `b`; NaN where empty."""
    return _unless_empty(masks.float().mean((-2, -1)), masks)


def _at_mask_size(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if masks.ndim != 3 or masks.dtype != torch.bool:
        dtype = str(masks.dtype).removeprefix("torch.")
        raise InputError(f"bool masks of shape (b, h, w) expected, got {dtype} {tuple(masks.shape)}")
    height, width = masks.shape[-2:]
    return placed(stacked(maps, masks.shape[0]), (height, width)), masks


def _unless_empty(scores: Tensor, masks: Tensor) -> Tensor:
    return scores.masked_fill(~masks.any(-1).any(-1), torch.nan)
