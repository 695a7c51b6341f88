"""Weakly supervised object localisation: MaxBoxAccV2 against boxes, PxAP against masks.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, sections 4.2 and 4.3, and its
journal version (TPAMI 2022) for V2; the numbers equal those of the authors' code (tests/evaluation/test_wsol.py). Both
choose one threshold, or draw one curve, for a whole set of images: so each image gives a small tensor, and a reduction
makes the number of any set of them, weighted as a bootstrap asks. Tensors of several parts of a set concatenate along
b.

The authors stretch maps by OpenCV's cubic interpolation; here they are stretched as for all other scores, linearly.
With the CAMs of a MobileNetV2 on 85 birds (CUB, 7 × 7 cells) MaxBoxAccV2 was 0.624, with cubic interpolation 0.631.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import InputError
from .contour_boxes import best_overlap, box_hits
from .maps import placed, stacked

OVERLAPS = (0.3, 0.5, 0.7)  # intersection over union of a box that counts as found
_BINS = 1000  # of values below 1, which has a bin of its own
_MAPS_AT_ONCE = 32


def max_box_hits(maps: Tensor, boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Whether the box of any contour overlaps any true box by 0.3, 0.5 and 0.7: `m b 255 3` int8; -1 without true box.

    One row for each cut of the map, stretched from 0 to 1 and rounded down to 256 values: the 1,000 thresholds of
    the authors' code cut it at no other places. A constant map and one with a NaN or an infinite value count as zero
    everywhere: their box is the first pixel's.

    Args:
        maps: `b h w` or `m b h w`, any resolution; stretched over the images, then from 0 to 1 each.
        boxes: For each image n 4, x1 y1 x2 y2 in pixels of the image, x2 and y2 exclusive; n may be 0. Fractions are
            cut off, and corners beyond the image's last pixel moved to it, as in the authors' code.
        size: Height and width of the images.
    """
    methods = stacked(maps, len(boxes))
    padded = _padded(boxes, size).to(maps.device)
    flat_boxes = padded.repeat(len(methods), 1, 1)  # (m b) g 4
    flat_maps = methods.flatten(0, 1)
    hits = [
        _hits(_unit_range(placed(some_maps[None], size)[0]), some_boxes)
        for some_maps, some_boxes in zip(flat_maps.split(_MAPS_AT_ONCE), flat_boxes.split(_MAPS_AT_ONCE), strict=True)
    ]
    is_unknown = (padded[:, :, 0] < 0).all(1)
    return torch.cat(hits).to(torch.int8).unflatten(0, methods.shape[:2]).masked_fill(is_unknown[:, None, None], -1)


def box_accuracies(hits: Tensor, weights: Tensor | None = None) -> Tensor:
    """MaxBoxAcc at each overlap: for each the share of images found at the cut where most are; `r 3` in 0..1.

    NaN where no image with a true box has a weight.

    Args:
        hits: `n 255 3` of one method, by `max_box_hits`.
        weights: `r n`, how often each image counts in each of r resamples; default: once, in one.
    """
    counts = _weights(weights, hits) * (hits[:, 0, 0] >= 0)
    found = torch.einsum("rn,ntk->rtk", counts, (hits > 0).double())
    return (found / counts.sum(1)[:, None, None]).amax(1)


def max_box_acc_v2(hits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of `box_accuracies` over the overlaps: `r` in 0..1. Arguments as there."""
    return box_accuracies(hits, weights).mean(1)


def pixel_histograms(maps: Tensor, masks: Tensor, ignored: Tensor | None = None) -> Tensor:
    """How many pixels of the mask, and how many others, have each value: `m b 1001 2` int32.

    Values are those of the map stretched from 0 to 1, in bins of 0.001 that hold their lower edge, and 1 in its own. A
    constant map and one with a NaN or an infinite value count as zero everywhere. Of an image with an empty mask
    nothing is known: it counts no pixel.

    Args:
        maps: `b h w` or `m b h w`, any resolution; stretched over the masks.
        masks: `b H W` bool: where the object is.
        ignored: `b H W` bool: pixels that count neither way, unless they are the object's; default: none.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool:
        dtype = str(masks.dtype).removeprefix("torch.")
        raise InputError(f"bool masks of shape (b, h, w) expected, got {dtype} {tuple(masks.shape)}")
    if ignored is not None and (ignored.shape != masks.shape or ignored.dtype != torch.bool):
        raise InputError(f"ignored must be bool of the masks' shape {tuple(masks.shape)}, got {tuple(ignored.shape)}")
    height, width = masks.shape[-2:]
    methods = stacked(maps, len(masks))
    edges = torch.cat([_thresholds(), torch.ones(1, dtype=torch.float64)]).to(maps.device)
    is_known = masks.flatten(1).any(1)
    background = ~masks if ignored is None else ~(masks | ignored)
    kinds = torch.stack([masks, background & is_known[:, None, None]])  # 2 b h w
    result = torch.zeros(*methods.shape[:2], len(edges), 2, dtype=torch.int32, device=maps.device)
    for row, some_maps in zip(result, methods, strict=True):
        place = torch.bucketize(_unit_range(placed(some_maps[None], (height, width))[0]), edges, right=True) - 1
        for kind, pixels in enumerate(kinds):
            row[..., kind].scatter_add_(1, place.flatten(1), pixels.flatten(1).int())
    return result


def pixel_average_precision(histograms: Tensor, weights: Tensor | None = None) -> Tensor:
    """PxAP, the area under the curve of precision and recall over all pixels of a set: `r` in 0..1, NaN without object.

    Large objects count more, since pixels do. A map that knows nothing scores `pixel_chance`.

    Args:
        histograms: `n 1001 2` of one method, by `pixel_histograms`.
        weights: `r n`, how often each image counts in each of r resamples; default: once, in one.
    """
    pixels = torch.einsum("rn,ntk->rtk", _weights(weights, histograms), histograms.double())
    # Highest value first, as the curve is drawn from the highest threshold.
    positive, negative = pixels.flip(1).cumsum(1).unbind(2)
    precision = positive / (positive + negative).clamp(min=1)  # 0 / 1 where nothing is predicted: no recall is gained
    recall = positive / positive[:, -1:]
    gained = recall.diff(dim=1, prepend=torch.zeros_like(recall[:, :1]))
    return (precision * gained).sum(1)


def pixel_chance(histograms: Tensor, weights: Tensor | None = None) -> Tensor:
    """The PxAP of a map that knows nothing: the objects' share of all pixels, `r`. Arguments as for PxAP."""
    pixels = torch.einsum("rn,nk->rk", _weights(weights, histograms), histograms.sum(1).double())
    return pixels[:, 0] / pixels.sum(1)


def _hits(unit: Tensor, boxes: Tensor) -> Tensor:
    """Hits `n 255 3` bool of maps `n h w` in 0..1."""
    hits = box_hits((unit * 255).long(), boxes, OVERLAPS)
    # Without contour the authors' code takes the box 0 0 0 0.
    first_pixel = best_overlap(torch.zeros(len(unit), 4, dtype=torch.int64, device=unit.device), boxes)
    is_reached = first_pixel[:, None] >= torch.tensor(OVERLAPS, dtype=torch.float64, device=unit.device)
    is_empty = (unit == 0).flatten(1).all(1)
    return torch.where(is_empty[:, None, None], is_reached[:, None], hits)


def _unit_range(maps: Tensor) -> Tensor:
    """Maps `n h w` stretched from 0 to 1 each, in fp64; zero where they are constant or not finite."""
    flat = maps.double().flatten(1)
    above = flat - flat.amin(1, keepdim=True)
    unit = above / above.amax(1, keepdim=True)
    return unit.masked_fill(~unit.isfinite().all(1, keepdim=True), 0).view(maps.shape)


def _padded(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Boxes as `b g 4` integers, with rows of -1 where an image has fewer than the most."""
    most = max([len(own) for own in boxes] + [1])
    padded = torch.full((len(boxes), most, 4), -1, dtype=torch.int64)
    last = torch.tensor([size[1] - 1, size[0] - 1] * 2)
    for row, own in zip(padded, boxes, strict=True):
        if own.ndim != 2 or own.shape[1] != 4 or (own[:, 2:] < own[:, :2]).any() or (own < 0).any():
            raise InputError(f"boxes of an image must be rows of x1 y1 x2 y2, from 0 up, got {own.tolist()}")
        row[: len(own)] = torch.minimum(own.cpu().long(), last)
    return padded


def _thresholds() -> Tensor:
    """0, 0.001 … 0.999, to the bit as numpy's `arange` gives them."""
    return torch.arange(_BINS, dtype=torch.float64) * 0.001


def _weights(weights: Tensor | None, images: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(1, len(images), dtype=torch.float64, device=images.device)
    if weights.ndim != 2 or weights.shape[1] != len(images):
        raise InputError(f"weights of shape (r, {len(images)}) expected, got {tuple(weights.shape)}")
    return weights.to(images.device, torch.float64)
