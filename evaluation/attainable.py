"""How low deletion, and how high insertion, can get for an image: a scale on which 0 is by chance and 1 the best found.

What a map's curve encloses depends on the image and the model at least as much as on the map. The best order of the
image's own patches is searched for, as in "TRACE" (ICML 2024), greedily; chance is the mean of random orders of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..common.seeds import mixed_seed
from .patches import patch_numbers
from .perturbation import Scores, perturbation_curves

CELLS = 5  # patches a side
_ORDERS = 5  # random ones
_LEAST = 1e-3  # between the best and chance, for a scale to be there


class Attainable(NamedTuple):
    """Areas under the curve of an image, `b` each: of random orders of its patches, mean, and of the best one found."""

    random: Tensor
    best: Tensor

    def normalised(self, auc: Tensor) -> Tensor:
        """Areas `m b` on the scale: 0 chance, 1 the best order of patches, above it an order of pixels that is better.

        NaN where the best order is no better than chance.
        """
        span = self.best - self.random
        return (auc - self.random) / span.where(span.abs() > _LEAST, torch.nan)


@torch.no_grad()
def attainable(
    scores: Scores,
    start: Tensor,
    end: Tensor,
    classes: Tensor,
    indices: Tensor,
    *,
    lowest: bool,
    step: int,
    seed: int = 0,
    chunk: int = 64,
) -> Attainable:
    """What orders of 5 × 5 patches attain as `start` becomes `end` (both `b c h w`), for 325 forwards an image.

    Args:
        scores: The watched output.
        start: As of `perturbation_curves`.
        end: As of `perturbation_curves`.
        classes: `b`.
        indices: `b`, a number that is the image's own, for random orders.
        lowest: Whether a low output is sought (deletion), or a high one.
        step: Pixels a step of the curves.
        seed: Of random orders.
        chunk: Images a forward pass.
    """
    size = (start.shape[-2], start.shape[-1])
    numbers = patch_numbers(size, CELLS).to(start.device)
    found = _greedy(scores, start, end, classes, numbers, lowest, chunk)
    generators = [torch.Generator().manual_seed(mixed_seed(seed, index)) for index in indices.tolist()]
    drawn = torch.stack([torch.rand(_ORDERS, CELLS**2, generator=own) for own in generators], 1).to(start)
    maps = torch.cat([found[None], drawn])[..., numbers]  # the patches' values, as maps m b h w
    auc = perturbation_curves(scores, start, end, maps, classes, step, chunk).auc
    return Attainable(auc[1:].mean(0), auc[0])


def _greedy(
    scores: Scores, start: Tensor, end: Tensor, classes: Tensor, numbers: Tensor, lowest: bool, chunk: int
) -> Tensor:
    """Values of the patches, `b patches`, the highest first: each time the patch after which the output is best."""
    count, patches = len(start), CELLS**2
    order = torch.zeros(count, patches, device=start.device)
    is_changed = torch.zeros(count, patches, dtype=torch.bool, device=start.device)
    for rank in range(patches, 0, -1):
        image, patch = (~is_changed).nonzero(as_tuple=True)  # the same number for each image, in order
        outputs = []
        for some_images, some_patches in zip(image.split(chunk), patch.split(chunk), strict=True):
            changed = is_changed[some_images]
            changed[torch.arange(len(changed)), some_patches] = True
            masks = changed[:, numbers][:, None]
            pictures = torch.where(masks, end[some_images], start[some_images])
            outputs.append(scores(pictures, classes[some_images]).float())
        by_image = torch.cat(outputs).unflatten(0, (count, rank))
        best = by_image.argmin(1) if lowest else by_image.argmax(1)
        chosen = patch.unflatten(0, (count, rank)).gather(1, best[:, None])
        is_changed.scatter_(1, chosen, True)
        order.scatter_(1, chosen, float(rank))
    return order
