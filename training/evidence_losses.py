"""Evidence as a training signal: loss terms over the maps of the label class, which any head that explains can use.

A recipe names them in `loss_weights`. Each term is one number an image; a step minimises the mean over the images that
have one. Terms that ask where the evidence lies need a mask or a box; images without one, or whose crop shows nothing
of it, are left out. Maps stay at their own grid, where they add up to the logit, and the region is brought to it by
area: a cell is inside by the share of it that the region covers. That is what a map drawn as flat tiles scores pixel by
pixel; a lesion smaller than a cell is not lost, as it would be by sampling; and no evidence is smeared over the
region's border, as it would be by stretching the map.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..common.processes import joint_sum, own_place
from ..data.samples import Batch
from ..evaluation.scoring import EVIDENCE
from ..heads import Explained


class EvidenceLoss(NamedTuple):
    """A loss term over evidence, and what it needs to be told."""

    compute: Callable[[Explained, Tensor], Tensor]  # b, from the maps and `inside`, b h w in 0..1
    needs_region: bool = False  # a mask or a box
    needs_contrast: bool = False  # a second map: that of the strongest class beside the label


def evidence_l1(explained: Explained, inside: Tensor) -> Tensor:
    """Sum of the absolute evidence of the label class, in logits: `b`, whatever the grid.

    Evidence for and against that cancels in the logit costs; what is left is sparse.
    """
    return explained.maps[:, 0].abs().sum((-2, -1))


def evidence_tv(explained: Explained, inside: Tensor) -> Tensor:
    """Total variation of the map of the label class, in logits: sum of |difference| over neighbouring cells, `b`.

    Smooth maps in few pieces. Rudin, Osher, Fatemi, "Nonlinear total variation based noise removal", 1992 (here the
    anisotropic form).
    """
    maps = explained.maps[:, 0]
    return maps.diff(dim=-2).abs().sum((-2, -1)) + maps.diff(dim=-1).abs().sum((-2, -1))


def evidence_energy(explained: Explained, inside: Tensor) -> Tensor:
    """1 − the share of the label's positive evidence that lies inside: `b` in 0..1, blind to the map's scale.

    What the energy pointing game measures. A map without positive evidence has no share inside, and no gradient.
    """
    positive = explained.maps[:, 0].clamp(min=0)
    positive = positive / _largest(positive)
    return 1 - (positive * inside).sum((-2, -1)) / _some(positive.sum((-2, -1)))


def evidence_outside(explained: Explained, inside: Tensor) -> Tensor:
    """The share of the label's squared evidence, for and against, that lies outside: `b` in 0..1, blind to scale.

    Right for the right reasons: what lies outside may not count, not even against the class; large values cost most.
    After Ross, Hughes, Doshi-Velez, "Right for the Right Reasons", IJCAI 2017, equation 1, with evidence in place of
    the input's gradient, and relative, so that shrinking all logits does not pay.
    """
    maps = explained.maps[:, 0]
    squared = (maps / _largest(maps)).square()
    return (squared * (1 - inside)).sum((-2, -1)) / _some(squared.sum((-2, -1)))


def class_contrast(explained: Explained, inside: Tensor) -> Tensor:
    """The contested share of the label's positive evidence: what the runner-up claims on the same cells, `b` in 0..1.

    Σ min(p, q) / Σ p, for p and q the positive evidence of the label and of the strongest other class; blind to a scale
    common to both. 0 where the two stand on different cells, 1 where the runner-up has as much everywhere.
    """
    label, other = explained.maps.clamp(min=0).unbind(1)
    scale = _largest(label)
    return torch.minimum(label / scale, other / scale).sum((-2, -1)) / _some((label / scale).sum((-2, -1)))


EVIDENCE_LOSSES = {
    "evidence_l1": EvidenceLoss(evidence_l1),
    "evidence_tv": EvidenceLoss(evidence_tv),
    "evidence_energy": EvidenceLoss(evidence_energy, needs_region=True),
    "evidence_outside": EvidenceLoss(evidence_outside, needs_region=True),
    "class_contrast": EvidenceLoss(class_contrast, needs_contrast=True),
}


def label_and_runner_up(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """For `explain`: from logits `b c` the label (`b`) and the strongest other class, `b 2`."""

    def choose(logits: Tensor) -> Tensor:
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return torch.stack([labels, others.argmax(dim=1)], dim=1)

    return choose


def evidence_region(batch: Batch) -> Tensor:
    """Where the cause of the label is known to lie: `b h w` bool at the images' resolution, from `batch` on the CPU.

    The evidence proper of the mask; where there is no mask, all boxes; where there is neither, nothing.
    """
    region = batch.masks == EVIDENCE
    rows, columns = (torch.arange(side) + 0.5 for side in region.shape[-2:])  # a pixel is in a box if its centre is
    for image, (boxes, has_mask) in enumerate(zip(batch.boxes, batch.has_mask, strict=True)):
        if not has_mask:
            left, top, right, bottom = boxes[..., None].unbind(1)  # n 1 each
            in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
            region[image] = (in_rows[:, :, None] & in_columns[:, None]).any(0)
    return region


def evidence_terms(
    names: list[str], explained: Explained, region: Tensor | None, are_real: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """The terms `names` as (mean, number of images it is over); a mean over none is 0, with a gradient of 0.

    With several processes the number is that of all of them, divided by how many they are, and the mean is this
    process's part: the mean of the parts over processes, as DDP takes it of gradients, is the mean over all images.

    Args:
        names: From `EVIDENCE_LOSSES`.
        explained: Of the label class, and of the runner-up where a term needs it.
        are_real: Whether the images are any; else they stand in for none, and do not count.
        region: `b H W` bool, as `evidence_region` gives it; needed only by terms that need one.
    """
    everywhere = explained.maps.new_ones(explained.maps.shape[0], *explained.maps.shape[-2:])
    _, height, width = everywhere.shape
    inside = everywhere if region is None else functional.adaptive_avg_pool2d(region.float(), (height, width))
    terms = {}
    for name in names:
        loss = EVIDENCE_LOSSES[name]
        counts = (are_real * (inside if loss.needs_region else everywhere)).sum((-2, -1)) > 0
        values = loss.compute(explained, inside).where(counts, 0)
        number = joint_sum(counts.sum()) / own_place().size
        terms[name] = values.sum() / number.where(number > 0, 1), number
    return terms


def _largest(maps: Tensor) -> Tensor:
    """The largest magnitude of maps `b h w`, to divide by, so that faint evidence counts as well as strong: `b 1 1`.

    A constant to the gradient, which for a ratio changes nothing; 1 where all is 0.
    """
    largest = maps.detach().abs().amax((-2, -1), keepdim=True)
    return largest.where(largest > 0, 1)


def _some(total: Tensor) -> Tensor:
    """The sum over a map whose largest value is 1 or 0, to divide by: 1 where it is 0."""
    return total.where(total > 0, 1)
