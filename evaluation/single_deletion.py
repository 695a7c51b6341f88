"""Single deletion (IDSDS): does the map rank patches as their deletion does?

Hesse et al., "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024. Deletions are in the domain of a
model that was trained with them (`patch_deletion` of a recipe); only then do scores compare between models.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from .map_similarity import rank_correlation
from .maps import placed, stacked
from .patches import patch_numbers, patch_sums, without_patches
from .perturbation import Scores

CELLS = 4  # patches a side


@torch.no_grad()
def single_deletion(
    logits: Scores, images: Tensor, maps: Tensor, classes: Tensor, cells: int = CELLS, chunk: int = 64
) -> Tensor:
    """Spearman's correlation, over patches, of the map's sum inside and the logit's drop without the patch: `m b`.

    One sweep of cells² + 1 forwards an image serves all methods. 1 is best, 0 chance; NaN where the map's sums or the
    drops are all equal. The map's sign counts.

    Args:
        logits: The logits of given classes for a batch of normalised images.
        images: `b c h w`, normalised: zero is the mean colour.
        maps: `b h w` or `m b h w`, any resolution.
        classes: `b`.
        cells: Patches a side; where they do not divide the image's side, some are a pixel larger.
        chunk: Images a forward pass, whatever the batch.
    """
    size = (images.shape[-2], images.shape[-1])
    numbers = patch_numbers(size, cells)
    sums = patch_sums(placed(stacked(maps, len(images)), size), numbers, cells**2)
    drops = deletion_drops(logits, images, classes, numbers, cells**2, chunk)
    each = rearrange(sums, "m b p -> (m b) 1 p"), repeat(drops, "b p -> (m b) 1 p", m=len(sums))
    return rank_correlation(*each).unflatten(0, sums.shape[:2])


def deletion_drops(logits: Scores, images: Tensor, classes: Tensor, numbers: Tensor, count: int, chunk: int) -> Tensor:
    """How far the logit falls without each patch alone: `b p`, fp64."""
    whole = torch.cat([logits(*part) for part in zip(images.split(chunk), classes.split(chunk), strict=True)])
    jobs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(count)).to(images.device)
    left = []
    for part in jobs.split(chunk):
        image, patch = part.unbind(1)
        is_deleted = patch[:, None] == torch.arange(count, device=images.device)
        left.append(logits(without_patches(images[image], is_deleted, numbers), classes[image]))
    return whole[:, None].double() - torch.cat(left).double().unflatten(0, (len(images), count))
