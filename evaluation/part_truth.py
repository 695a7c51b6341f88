"""What each part of a critter is worth to a model, exactly, and the changes that put it to the proof.

The Shapley value of a part is what it adds to a logit, averaged over all orders in which the parts can come. A critter
has five parts, so its picture is drawn with every subset of them, the body always, and nothing is estimated.
Shapley, "A Value for n-Person Games", 1953.
"""

from collections.abc import Callable
from functools import cache
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from ..common.errors import InputError
from ..data.critter_interventions import keep_only, swap
from ..data.critter_render import Rendering, render
from ..data.critter_rules import FACTORS, SLOTS, Rule
from ..data.critter_scenes import Scenes
from ..models.preprocessing import Preprocess
from .perturbation import Scores

# The parts in each subset: part p is in subset s if bit p of s is set. The first is empty, the last has all.
SUBSETS = tuple(
    tuple(slot for place, slot in enumerate(SLOTS) if subset >> place & 1) for subset in range(2 ** len(SLOTS))
)


@torch.no_grad()
def part_shapley(logits: Scores, renders: Tensor, classes: Tensor, chunk: int = 64) -> Tensor:
    """The exact Shapley value of every part for the logit of a class: `b parts`, fp64, in logit units.

    They add up to the logit with all parts less that with none. Arguments as for `subset_logits`.
    """
    return shapley_values(subset_logits(logits, renders, classes, chunk))


@torch.no_grad()
def subset_logits(logits: Scores, renders: Tensor, classes: Tensor, chunk: int = 64) -> Tensor:
    """The logit of each image's class for every subset of its parts: `b 2^parts`, fp64; one forward each.

    Args:
        logits: The logits of given classes for a batch of images.
        renders: `b 2^parts c h w`, as the model takes images; part p is seen in subset s if bit p of s is set.
        classes: `b`.
        chunk: Images a forward pass, whatever the batch.
    """
    subsets = renders.shape[1]
    images, wanted = rearrange(renders, "b s c h w -> (b s) c h w"), classes.repeat_interleave(subsets)
    found = [logits(*each) for each in zip(images.split(chunk), wanted.split(chunk), strict=True)]
    return torch.cat(found).double().unflatten(0, (-1, subsets))


def shapley_values(values: Tensor) -> Tensor:
    """Shapley values `b parts`, fp64, of a game's `values` for every subset, `b 2^parts`.

    Raises:
        InputError: The number of values is not a power of two from 2 on.
    """
    subsets = values.shape[1]
    parts = subsets.bit_length() - 1
    if parts < 1 or subsets != 2**parts:
        raise InputError(f"values of all subsets (b, 2^parts) expected, got {tuple(values.shape)}")
    return values.double() @ _weights(parts).to(values.device).T


@cache
def _weights(parts: int) -> Tensor:
    """What the value of each subset counts for each part: `parts 2^parts`."""
    subsets = torch.arange(2**parts)
    has_part = (subsets[None] >> torch.arange(parts)[:, None] & 1).bool()
    # The share of orders in which exactly a given set of so many others comes before the part.
    shares = [factorial(others) * factorial(parts - others - 1) / factorial(parts) for others in range(parts)]
    share = torch.tensor(shares, dtype=torch.float64)
    others = has_part.sum(0) - has_part.long()
    return torch.where(has_part, share[others], -share[others])


def part_renders(
    scenes: Scenes,
    size: int,
    preprocess: Preprocess,
    picture: Callable[[Rendering], NDArray[np.uint8]] = lambda drawn: drawn.images,
) -> Tensor:
    """The scenes with every subset of their parts, as a model takes them: `b 32 c h w`, subsets as in `SUBSETS`.

    Args:
        scenes: b scenes.
        size: Of the pictures before preprocessing.
        preprocess: The model's (`model.preprocess`).
        picture: What of a rendering the model is shown, `n h w 3`.
    """
    drawn = (picture(render(keep_only(scenes, kept), size)) for kept in SUBSETS)
    return torch.stack([_prepared(pictures, preprocess) for pictures in drawn], 1)


class Seen(NamedTuple):
    """Pictures as a model takes them, and where things are seen in them."""

    images: Tensor  # b c h w
    parts: Tensor  # b slot h w bool; a part that is hidden has no pixel
    creature: Tensor  # b h w bool, body and parts
    distractors: Tensor  # b h w bool
    tag: Tensor  # b h w bool


def seen(scenes: Scenes, size: int, preprocess: Preprocess) -> Seen:
    """The scenes as a model takes them, with the masks moved along. Arguments as for `part_renders`."""
    drawn = render(scenes, size)
    sample = preprocess(
        {
            "image": _image(drawn.images),
            "regions": tv_tensors.Mask(torch.from_numpy(drawn.regions)),
            "distractors": tv_tensors.Mask(torch.from_numpy(drawn.distractors.astype(np.uint8))),
            "tag": tv_tensors.Mask(torch.from_numpy(drawn.tag.astype(np.uint8))),
        }
    )
    regions = torch.as_tensor(sample["regions"])
    numbers = torch.arange(2, 2 + len(SLOTS), dtype=torch.uint8)
    parts = regions[:, None] == numbers[:, None, None]
    images, distractors, tag = (sample[name].as_subclass(Tensor) for name in ("image", "distractors", "tag"))
    return Seen(images, parts, regions > 0, distractors > 0, tag > 0)


def _image(pictures: NDArray[np.uint8]) -> tv_tensors.Image:
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))


def _prepared(pictures: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    prepared: Tensor = preprocess(_image(pictures)).as_subclass(Tensor)
    return prepared


class Swapped(NamedTuple):
    """Scenes of which as few factors were changed as make another class."""

    scenes: Scenes
    classes: NDArray[np.int64]  # n, what the rule says now
    slots: NDArray[np.bool_]  # n slot, whose parts were swapped


def swapped_to_nearest(scenes: Scenes, rule: Rule) -> Swapped:
    """The scenes with parts swapped so that the rule gives another class, the one that needs the fewest swaps.

    Of several that need equally few, each scene's own number chooses, whatever the batch. The rule must settle the
    class of every scene.
    """
    codes = np.array(rule.codes)
    before = rule.label(scenes)
    distances = (codes[:, None] != codes).sum(axis=2)
    np.fill_diagonal(distances, len(rule.factors) + 1)
    after = np.empty_like(before)
    for row, (label, key) in enumerate(zip(before, scenes.key, strict=True)):
        nearest = np.flatnonzero(distances[label] == distances[label].min())
        after[row] = nearest[int(key) % len(nearest)]
    slots = np.zeros((len(scenes), len(SLOTS)), dtype=bool)
    changed = scenes
    for place, factor in enumerate(rule.factors):
        changed = swap(changed, factor, codes[after, place])
        differs = codes[before, place] != codes[after, place]
        slots |= differs[:, None] & _slots_of(factor)
    return Swapped(changed, after, slots)


def evidence_slots(scenes: Scenes, rule: Rule, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The slots whose parts speak for `classes` (n) by the rule, `n slot`: whose variants its code has."""
    codes = np.array(rule.codes)
    slots = np.zeros((len(scenes), len(SLOTS)), dtype=bool)
    for place, factor in enumerate(rule.factors):
        agrees = scenes.factor(factor) == codes[classes, place]
        slots |= agrees[:, None] & _slots_of(factor)
    return slots


def _slots_of(factor: str) -> NDArray[np.bool_]:
    return np.array([slot in FACTORS[factor].slots for slot in SLOTS])
