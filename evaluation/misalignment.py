"""Is a map where its evidence is? An attack on the pixels outside the region that the map calls important.

If only what the map shows counts, changing the rest of the image cannot lower it. Sacha et al., "Interpretability
Benchmark for Evaluating Spatial Misalignment of Prototypical Parts Explanations", AAAI 2024, for any map that has a
gradient: of a prototype, or of a class's evidence.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..heads.best_cell import BestCellHead
from ..models import Grid, ImageClassifier, InterpretableClassifier
from .maps import placed, ranks
from .projected_gradient import Ball, projected_gradient

# Images n c h w and, for each, the number of what its map is of (a class, a prototype): n → maps n h w, with gradients.
Maps = Callable[[Tensor, Tensor], Tensor]

_BOX, _REGION = 0.05, 0.1  # shares of the pixels: whose box is spared, and whose place is compared
_MARGIN = 10 / 224  # around the box, as a share of the image's sides


class Misalignment(NamedTuple):
    """What an attack outside the region of each map did to it."""

    plc: Tensor  # b, 0..100, location change: 100 (1 − IoU) of the regions of the highest tenth of the pixels
    pac: Tensor  # b, at most 100, activation change: 100 (1 − activation after / before); below 0 where it rose
    free: Tensor  # b, 0..1: share of the pixels that the attack could change
    images: Tensor  # b c h w: as the attack left them


def misalignment(
    maps: Maps,
    images: Tensor,
    targets: Tensor,
    *,
    grid: Grid | None = None,
    epsilon: float = 0.1,
    step: float = 0.01,
    iterations: int = 20,
    chunk: int = 64,
) -> Misalignment:
    """Lower the highest value of each map by changing pixels outside its box alone, and see what becomes of the map.

    The box is that of the highest 5 % of the pixels, and a margin of 10 of 224 pixels. Projected gradient descent,
    L∞, from the image itself, so that nothing is drawn at random. Both scores are NaN where nothing can be said: the
    map is constant, or its box leaves no pixel outside; PAC also where the map has no positive value. A map that is
    constant after the attack has lost its place: PLC 100. Parameters get no gradients, and stay as they are.

    Args:
        maps: Called with gradients enabled, and the same `targets` before and after; a model behind it must be in
            eval mode.
        images: `b c h w`, normalised. Changed ones are not clipped to the range of colours, as in the paper.
        targets: `b`.
        grid: Where the cells of the maps look; None: the maps are stretched over the image (`placed`).
        epsilon: Largest change of a value, in normalised units.
        step: Of an iteration, in the same units.
        iterations: Steps.
        chunk: Images a forward and backward pass.
    """
    size = (images.shape[-2], images.shape[-1])
    found: list[Misalignment] = []
    for some, own in zip(images.split(chunk), targets.split(chunk), strict=True):
        with torch.no_grad():
            before = maps(some, own)
        stretched = placed(before[None], size, grid)[0]
        is_free = ~box_of(high_region(stretched, _BOX), _MARGIN)
        free = is_free.flatten(1).float().mean(1)
        changed = _attacked(maps, some, own, is_free[:, None], epsilon, step, iterations)
        with torch.no_grad():
            after = maps(changed, own)
        is_defined = (free > 0) & (free < 1)
        plc = location_change(stretched, placed(after[None], size, grid)[0]).where(is_defined, torch.nan)
        pac = activation_change(before.flatten(1).amax(1), after.flatten(1).amax(1)).where(is_defined, torch.nan)
        found.append(Misalignment(plc, pac, free, changed))
    plc, pac, free, changed = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Misalignment(plc, pac, free, changed)


def location_change(before: Tensor, after: Tensor) -> Tensor:
    """PLC of maps `b h w` at the images' resolution, `b`: 0 the same place, 100 another; NaN if `before` is constant.

    The region is the highest tenth of the pixels; pixels as low as the map's lowest never belong to it.
    """
    old, new = (high_region(maps, _REGION).flatten(1) for maps in (before, after))
    overlap = (old & new).sum(1) / (old | new).sum(1)
    return (100 * (1 - overlap)).where(old.any(1), torch.nan)


def activation_change(before: Tensor, after: Tensor) -> Tensor:
    """PAC of activations `b`: 100 (1 − after / before), what is below 0 counting as 0; NaN if `before` is not above."""
    return (100 * (1 - after.clamp(min=0) / before)).where(before > 0, torch.nan)


def rank_change(before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """PRC: by how many places the prototype `targets` (b) fell among all `b p`, by activation; below 0 where it rose.

    A place is the number of prototypes that are strictly more active.
    """

    def places(activations: Tensor) -> Tensor:
        return (activations > activations.gather(1, targets[:, None])).sum(1)

    return (places(after) - places(before)).float()


def high_region(maps: Tensor, share: float) -> Tensor:
    """The highest `share` of the pixels of `b h w`, without those as low as the lowest: `b h w` bool."""
    count = max(1, round(share * maps.shape[-2] * maps.shape[-1]))
    is_high = (ranks(maps) < count).unflatten(-1, maps.shape[-2:])
    return is_high & (maps > maps.amin((-2, -1), keepdim=True))


def box_of(region: Tensor, margin: float) -> Tensor:
    """The pixels of the rectangle around each region `b h w`, `margin` (share of the sides) wider: `b h w` bool.

    Of an empty region nothing.
    """
    inside = []
    for axis in (1, 2):
        is_met = region.any(3 - axis)
        places = torch.arange(is_met.shape[1], device=region.device)
        reach = round(margin * is_met.shape[1])
        first = places.where(is_met, is_met.shape[1]).amin(1, keepdim=True)
        last = places.where(is_met, -1).amax(1, keepdim=True)
        inside.append((places >= first - reach) & (places <= last + reach) & is_met.any(1, keepdim=True))
    return inside[0][:, :, None] & inside[1][:, None]


def attacked_maps(model: ImageClassifier, images: Tensor, classes: Tensor) -> tuple[Maps, Tensor]:
    """What of `model` is attacked for each of `images`, and its number: `b`.

    Where the head has prototypes the strongest one that speaks for the class, by its similarity map; else the map of
    the class's evidence.
    """
    if isinstance(model, InterpretableClassifier) and model.head.has_prototypes:
        return partial(_prototype_maps, model), strongest_prototypes(model, images, classes)
    return lambda images, classes: model(images, classes).maps[:, 0], classes


@torch.no_grad()
def strongest_prototypes(model: InterpretableClassifier, images: Tensor, classes: Tensor) -> Tensor:
    """For each image the prototype that adds most to the logit of its class, of those that speak for it: `b`.

    Where none does, as in a tree, whose prototypes have no weights for classes, the most active one that is left.
    """
    head = model.head
    state = head.score(model.backbone(images))
    active = state.activations.masked_fill(~_is_left(model, state.activations.shape[1]), -torch.inf)
    if not isinstance(head, BestCellHead):
        return active.argmax(1)
    speaks = (head.belongs & head.is_kept)[classes]
    points = head.points(state, classes[:, None])[:, 0].masked_fill(~speaks, -torch.inf)
    return torch.where(speaks.any(1), points.argmax(1), active.argmax(1))


@torch.no_grad()
def prototype_misalignment(model: InterpretableClassifier, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """`plc`, `pac`, `prc` and `ac` of each image's strongest prototype that speaks for its class: `b` each.

    `ac` is 100 where the attack made a right prediction of `classes` wrong, −100 where a wrong one right, else 0: its
    mean is the accuracy lost, in points. `prc` counts places among the prototypes that are left.
    """
    maps, prototypes = attacked_maps(model, images, classes)
    found = misalignment(maps, images, prototypes, chunk=len(images))
    before, after = (model.head.score(model.backbone(each)) for each in (images, found.images))
    is_left = _is_left(model, before.parts.shape[1])
    heights = [state.parts.flatten(2).amax(2).masked_fill(~is_left, -torch.inf) for state in (before, after)]
    is_right = [(state.logits.argmax(1) == classes).float() for state in (before, after)]
    is_defined = ~found.plc.isnan() & is_left[prototypes]  # all may have been pruned
    scores = {
        "plc": found.plc,
        "pac": found.pac,
        "prc": rank_change(heights[0], heights[1], prototypes),
        "ac": 100 * (is_right[0] - is_right[1]),
    }
    return {name: values.where(is_defined, torch.nan) for name, values in scores.items()}


def _is_left(model: InterpretableClassifier, count: int) -> Tensor:
    """Which of the `count` prototypes were not pruned; a tree's nodes all stay."""
    head = model.head
    if isinstance(head, BestCellHead):
        return head.is_kept
    return torch.ones(count, dtype=torch.bool, device=next(head.parameters()).device)


def _prototype_maps(model: InterpretableClassifier, images: Tensor, prototypes: Tensor) -> Tensor:
    parts = model.head.score(model.backbone(images)).parts
    return parts[torch.arange(len(images), device=parts.device), prototypes]


def _attacked(
    maps: Maps, images: Tensor, targets: Tensor, is_free: Tensor, epsilon: float, step: float, iterations: int
) -> Tensor:
    """`images` with the pixels `is_free` (b 1 h w) changed so that the maps' highest values fall."""

    def lowness(changed: Tensor) -> Tensor:
        return -maps(changed, targets).flatten(1).amax(1)

    ball = Ball(images.new_tensor(epsilon))
    return projected_gradient(lowness, images, ball, step=step, iterations=iterations, is_free=is_free)
