"""Stability: does a map stay what it was when the image changes by what nobody sees?

A map that ignores the image is perfectly stable, so these scores mean something only beside one of faithfulness. The
class is held fixed. Maps are compared at their own resolution; one method at a time, since every method looks again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from .disturbances import Disturbance
from .map_similarity import Similarity, similarity

Explain = Callable[[Tensor, Tensor, Tensor], Tensor]  # images b c H W, classes b, indices b → maps b h w
Noise = Callable[[Tensor, Tensor, Tensor], Tensor]  # images n c H W, indices n, draws n → what is added, n c H W


class Sensitivity(NamedTuple):
    """The relative change of each image's map under noise: `b` each; NaN where the map is zero throughout."""

    largest: Tensor  # over the draws: max-sensitivity
    mean: Tensor


@torch.no_grad()
def max_sensitivity(
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    *,
    radius: float = 0.02,
    draws: int = 10,
    seed: int = 0,
    noise: Noise | None = None,
    chunk: int = 64,
) -> Sensitivity:
    """Largest and mean ‖map(x + r) − map(x)‖ / ‖map(x)‖ over uniform noise r; low is stable.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, relative to the map's
    norm (Frobenius) as in captum. A map that is zero throughout has no relative change, and one that is not finite has
    none either, nor has an image with one such map among its draws: NaN.

    Args:
        explain: The method; a model behind it must be in eval mode.
        images: `b c h w`, normalised.
        classes: `b`.
        indices: `b`, the images' numbers in the set: noise is drawn by seed, number and draw.
        radius: Noise lies in ±`radius`, in the units of the normalised image.
        draws: Noisy copies of an image.
        seed: Of the noise.
        noise: What to add in place of uniform noise.
        chunk: Images a call of `explain`.

    Raises:
        InputError: No draws, or a negative radius.
    """
    if draws < 1 or radius < 0:
        raise InputError(f"at least one draw and a radius of at least 0 expected, got {draws} and {radius}")
    maps = in_chunks(explain, images, classes, indices, chunk).double()
    norms = maps.flatten(1).norm(dim=1)
    changes = norms.new_empty(len(images), draws)
    jobs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(draws)).reshape(-1, 2)
    for some in jobs.split(chunk):
        rows, numbers = some.to(images.device).unbind(1)
        chosen = images[rows]
        numbered = indices.to(images.device)[rows]
        added = noise(chosen, numbered, numbers) if noise else _uniform(chosen, numbered, numbers, radius, seed)
        disturbed = explain(chosen + added, classes[rows], numbered)
        changes[rows, numbers] = (disturbed.double() - maps[rows]).flatten(1).norm(dim=1)
    changes /= norms.where(norms > 0, torch.nan)[:, None]
    changes = changes.where(changes.isfinite(), torch.nan)  # amax and mean hand a NaN on
    return Sensitivity(changes.amax(1), changes.mean(1))


@torch.no_grad()
def map_stability(
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    disturbances: Sequence[Disturbance],
    chunk: int = 64,
) -> dict[str, Similarity]:
    """How alike the maps of each image and of the disturbed image are, by the disturbance's name; high is stable.

    The maps of the undisturbed images are made once for all disturbances. Arguments as for `max_sensitivity`;
    `similarity` says how maps compare.
    """
    maps = in_chunks(explain, images, classes, indices, chunk)
    size = (images.shape[-2], images.shape[-1])

    def under(disturbance: Disturbance) -> Tensor:
        def explain_disturbed(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            return explain(disturbance.apply(images, indices), classes, indices)

        return disturbance.undo(in_chunks(explain_disturbed, images, classes, indices, chunk), size)

    return {disturbance.name: similarity(maps, under(disturbance)) for disturbance in disturbances}


def in_chunks(explain: Explain, images: Tensor, classes: Tensor, indices: Tensor, chunk: int) -> Tensor:
    """The maps `b h w` of all images, `chunk` at a time."""
    if chunk < 1:
        raise InputError(f"a chunk holds at least one image, got {chunk}")
    parts = zip(images.split(chunk), classes.split(chunk), indices.split(chunk), strict=True)
    return torch.cat([explain(*part) for part in parts])


def _uniform(images: Tensor, indices: Tensor, draws: Tensor, radius: float, seed: int) -> Tensor:
    """Noise in ±`radius`, the same for an image and a draw whatever the batch."""
    drawn = [
        torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(mixed_seed(seed, index, draw)))
        for index, draw in zip(indices.tolist(), draws.tolist(), strict=True)
    ]
    return ((2 * torch.stack(drawn) - 1) * radius).to(images)
