"""Localisation: does the evidence lie where the cause is known to lie?

Where nothing is known of an image (no mask, or an empty one) there is nothing to hit: its score is NaN, and it is
counted; so it is where a map has a NaN. The two games look at positive evidence alone: a map without any points
nowhere, its score is 0. The other scores look at the order of all values, whatever their sign: a constant map, which
has none, scores chance.
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
    return _where_known(share, positive, masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the highest value lies in the mask: `m b` of 0 and 1, NaN where the mask is empty.

    No tolerance; of equal maxima the first in reading order counts. Zhang et al., "Top-down Neural Attention by
    Excitation Backprop", ECCV 2016, section 4.1. Arguments as for `energy_pointing_game`.
    """
    values, inside = _at_mask_size(maps, masks)
    highest = ranks(values) == 0
    hit = (highest & inside.flatten(-2)).any(-1) & (values.amax((-2, -1)) > 0)
    return _where_known(hit.float(), values, masks)


def relevance_rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the mask among as many highest values as the mask has pixels: `m b` in 0..1, NaN where it is empty.

    Of equal values at the limit each counts by the share that fits, so the order of pixels does not matter. Arras,
    Osman and Samek, "CLEVR-XAI", Information Fusion 2022, equation 2. Arguments as for `energy_pointing_game`.
    """
    values, inside = _at_mask_size(maps, masks)
    return _where_known(_share_of_highest(values, inside, inside.sum((-2, -1))), values, masks)


def topk_intersection(maps: Tensor, masks: Tensor, k: int = 1000) -> Tensor:
    """Share of the k highest values that lie in the mask: `m b` in 0..1, NaN where it is empty.

    Of equal values at the limit each counts by the share that fits; of an image with fewer than k pixels all are taken.
    A mask of fewer than k pixels cannot be hit by all. Theiner, Müller-Budack and Ewerth, "Interpretable Semantic
    Photo Geolocation", WACV 2022. Arguments as for `energy_pointing_game`.

    Raises:
        InputError: k below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    values, inside = _at_mask_size(maps, masks)
    count = torch.full(inside.shape[:1], min(k, inside[0].numel()) if len(inside) else k, device=inside.device)
    return _where_known(_share_of_highest(values, inside, count), values, masks)


def roc_auc(maps: Tensor, masks: Tensor) -> Tensor:
    """Area under the ROC curve of each map as a detector of its mask: `m b` in 0..1; NaN where that is empty or full.

    It is the chance that a pixel of the mask has a higher value than one outside; equal values count half. Arguments
    as for `energy_pointing_game`.
    """
    values, inside = _at_mask_size(maps, masks)
    flat, inside = values.flatten(2), inside.flatten(1)
    ascending = flat.sort(-1).values
    below, up_to = (torch.searchsorted(ascending, flat, right=is_right) for is_right in (False, True))
    positive = inside.sum(1).double()
    # The mean rank of equal values, from 1 up; in fp64, since fp32 cannot count the pixels' pairs.
    rank_sum = ((below + up_to + 1).double() / 2 * inside).sum(-1)
    pairs = positive * (inside.shape[1] - positive)
    return _where_known(((rank_sum - positive * (positive + 1) / 2) / pairs).float(), values, masks)


def chance_level(masks: Tensor) -> Tensor:
    """The score of a map that knows nothing: the mask's share of the image, `b`; NaN where it is empty.

    For all scores of this module but `roc_auc`, whose chance is `roc_auc_chance`.
    """
    return masks.float().mean((-2, -1)).masked_fill(~masks.any(-1).any(-1), torch.nan)


def roc_auc_chance(masks: Tensor) -> Tensor:
    """One half wherever `roc_auc` is defined, `b`; NaN where the mask is empty or full."""
    share = masks.float().mean((-2, -1))
    return torch.full_like(share, 0.5).masked_fill((share == 0) | (share == 1), torch.nan)


def _at_mask_size(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    if masks.ndim != 3 or masks.dtype != torch.bool:
        dtype = str(masks.dtype).removeprefix("torch.")
        raise InputError(f"bool masks of shape (b, h, w) expected, got {dtype} {tuple(masks.shape)}")
    height, width = masks.shape[-2:]
    return placed(stacked(maps, masks.shape[0]), (height, width)), masks


def _share_of_highest(values: Tensor, inside: Tensor, count: Tensor) -> Tensor:
    """Share of the `count` (b) highest of `values` (m b h w) that lie inside (b h w): `m b`; 0 for a count of 0."""
    flat, inside = values.flatten(2), inside.flatten(1)
    last = (count - 1).clamp(min=0).expand(flat.shape[:2])[..., None]
    limit = flat.sort(-1, descending=True).values.gather(-1, last)
    above, tied = flat > limit, flat == limit
    share = (count - above.sum(-1)) / tied.sum(-1)  # of the equal values at the limit, that fit
    return ((above & inside).sum(-1) + share * (tied & inside).sum(-1)) / count.clamp(min=1)


def _where_known(scores: Tensor, values: Tensor, masks: Tensor) -> Tensor:
    is_unknown = ~masks.any(-1).any(-1) | values.isnan().any(-1).any(-1)
    return scores.masked_fill(is_unknown, torch.nan)
