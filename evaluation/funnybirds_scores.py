"""What FunnyBirds' protocol finds of one image: a function of part importances and of what the model says of changes.

Hesse et al., "FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of Explainable AI Methods", ICCV 2023.
Items are the parts, in the data set's order, then the objects of the background. Sets of parts are numbers: part p is
in set s if bit p of s is set.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..common.seeds import mixed_seed
from .map_similarity import rank_correlation

THRESHOLDS = torch.linspace(0.01, 0.5, 80, dtype=torch.float64)
_DILATION = 5  # pixels: part masks grow by two in all directions
_RELEVANT = 0.05
_SHARED = 2  # parts that a class of the contrastivity test has in common with the image's

Irrelevance = Literal["effect", "logit"]


def importances(maps: Tensor, regions: Tensor) -> Tensor:
    """Sums of maps `m h w` in regions `i h w` (bool), each dilated by a square of 5 × 5: `m i`, fp64."""
    grown = functional.max_pool2d(regions[None].float(), _DILATION, stride=1, padding=_DILATION // 2)[0]
    return torch.einsum("mhw,ihw->mi", maps.double(), grown.double())


def important(sums: Tensor, maps: Tensor) -> Tensor:
    """Which items have more of the map than each of `THRESHOLDS`, from sums `m i` and maps `m h w`: `m t i` bool.

    More than that share of the map's positive evidence; as published of the map's sum, which is the same where no
    evidence is negative, and has no use where it is.
    """
    whole = maps.double().clamp(min=0).sum((1, 2))
    return sums[:, None] > (THRESHOLDS.to(whole)[None] * whole[:, None])[..., None]


def set_numbers(is_important: Tensor, parts: int) -> Tensor:
    """The set of the important parts as a number: `… i` bool to `…` int64."""
    bits = 2 ** torch.arange(parts, device=is_important.device)
    return (is_important[..., :parts] * bits).sum(-1)


def irrelevant(drops: Tensor, logit: Tensor, rule: Irrelevance) -> Tensor:
    """Which items hardly count, from the drops of the logit without each, `i`: bool.

    "effect": those that lower it by less than 5 % of what the image's most effective item changes. "logit": by less
    than 5 % of the logit itself, as published; that depends on the unit and the zero of the logits, and where the logit
    is negative an item without any effect is relevant.
    """
    scale = drops.abs().amax() if rule == "effect" else logit
    is_nothing = drops <= 0 if rule == "effect" else torch.zeros_like(drops, dtype=torch.bool)
    return (drops < _RELEVANT * scale) | is_nothing


class Completeness(NamedTuple):
    """The parts of the completeness score at each of `THRESHOLDS`: `m t` each in 0..1, NaN where there is none."""

    controlled: Tensor  # CSDC: of the sufficient set of parts that is found best, the share; NaN for a wrong prediction
    preservation: Tensor  # PC: whether the prediction stays where the important parts alone are left
    deletion: Tensor  # DC: whether it changes without them
    distractibility: Tensor  # D: the share of the items that hardly count that is not called important

    def objective(self) -> Tensor:
        """What the threshold is chosen by, twice the completeness score, over stacked images `n m t`: `m t`."""
        means = [each.nanmean(0).nan_to_num(0) for each in self]
        return (means[0] + means[1] + means[2]) / 3 + means[3]


def completeness(
    is_important: Tensor,
    predictions: Tensor,
    sufficient: Sequence[frozenset[int]] | None,
    is_irrelevant: Tensor,
    parts: int,
) -> Completeness:
    """From what maps call important, `m t i`, and the class predicted with each set of parts, `2^parts`.

    `sufficient`: the smallest sets of parts that tell the class from all others; None where the prediction is wrong.
    The last of `predictions` is that of the image as it is.
    """
    chosen = set_numbers(is_important, parts)
    whole = predictions[-1]
    kept, left = predictions[chosen], predictions[2**parts - 1 - chosen]
    controlled = torch.full(chosen.shape, torch.nan, dtype=torch.float64, device=chosen.device)
    if sufficient:
        shares = [is_important[..., sorted(own)].double().mean(-1) for own in sufficient]
        controlled = torch.stack(shares).amax(0)
    distracted = (is_important & is_irrelevant).sum(-1) / is_irrelevant.sum().double()  # 0 / 0, no such item: NaN
    return Completeness(controlled, (kept == whole).double(), (left != whole).double(), 1 - distracted)


def chosen_thresholds(found: Completeness, choice: Literal["crossfit", "oracle"]) -> Tensor:
    """Which of `THRESHOLDS` each image is judged at, from one method's `n t` at all of them: `n`.

    "oracle": the best for these very images, as published. "crossfit": for images at even places the best for those at
    odd places, and the other way round. Of equally good ones the lowest.
    """
    places = torch.arange(len(found.deletion))
    at = torch.zeros_like(places)
    for half in (0, 1):
        judged = places % 2 == half
        by = ~judged if choice == "crossfit" else places >= 0
        at[judged] = Completeness(*(each[by][:, None] for each in found)).objective()[0].argmax()
    return at


def single_deletion_score(sums: Tensor, drops: Tensor, constant: Literal["chance", "dropped"]) -> Tensor:
    """SD, of sums `m p` and drops `p` over the parts: ½ + ½ Spearman, `m` in 0..1.

    Sums that are all equal say nothing: "chance" gives them ½, "dropped" NaN, as published. NaN where the drops are all
    equal, since then there is nothing to be said.
    """
    found = 0.5 + 0.5 * rank_correlation(sums[:, None], drops.double().expand_as(sums)[:, None])
    if constant == "dropped" or bool((drops == drops[0]).all()):
        return found
    return found.nan_to_num(0.5)


class Contrast(NamedTuple):
    """Two classes that each share two parts with an image's, but not the same."""

    classes: tuple[int, int]
    parts: tuple[list[int], list[int]]  # which each shares


def contrast_of(variants: Tensor, label: int, seed: int, index: int) -> Contrast | None:
    """The classes for the contrastivity of an image; of several pairs one by the seed and the image's number.

    `variants`: `classes parts`. None where there is no pair.
    """
    is_shared = variants == variants[label]
    near = [number for number, row in enumerate(is_shared) if int(row.sum()) == _SHARED]
    pairs = [pair for pair in combinations(near, 2) if not bool((is_shared[pair[0]] & is_shared[pair[1]]).any())]
    if not pairs:
        return None
    first, second = pairs[mixed_seed(seed, index) % len(pairs)]
    return Contrast((first, second), (_places(is_shared[first]), _places(is_shared[second])))


def target_sensitivity(first: Tensor, second: Tensor, contrast: Contrast) -> Tensor:
    """TS: whether the map of each of the two classes gives the parts that this class shares more than the other does.

    From the sums `m i` of the maps of the first and the second class; `m` of 0, ½ and 1.
    """
    own, others = contrast.parts
    is_right = first[:, own].sum(1) > second[:, own].sum(1), second[:, others].sum(1) > first[:, others].sum(1)
    return (is_right[0].double() + is_right[1].double()) / 2


def _places(row: Tensor) -> list[int]:
    places: list[int] = row.nonzero()[:, 0].tolist()
    return places
