"""The training patches nearest to each prototype, found in one pass, the same on one device or on several.

What projection copies, pruning counts and a gallery shows. A pass keeps the best few patches of each prototype with
their vectors, so nothing is read twice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, distributed, nn

from .base import Features
from .devices import has_several_devices


class Patch(NamedTuple):
    """A cell of an image, and how near it is to the prototype it was found for."""

    proximity: float
    image: str
    row: int
    column: int
    label: int
    vector: Tensor  # d


@dataclass(frozen=True)
class Search:
    """What is sought.

    `embed`: from the backbone's features, the proximity of each cell to each prototype `b p h w`, and the vectors
    `b d h w` that a prototype would become at each cell (`b p d h w` where they differ by prototype).
    """

    embed: Callable[[Features], tuple[Tensor, Tensor]]
    count: int  # patches for each prototype
    owners: Tensor | None = None  # c p bool: only images of these classes count for a prototype; None: all do
    per_image: int = 1  # patches of one image, at most


@dataclass
class _Found:
    """The best patches so far: p prototypes, m patches each, falling in proximity; −∞ where none was found."""

    proximity: Tensor  # p m
    cell: Tensor  # p m
    label: Tensor  # p m
    image: Tensor  # p m: place in `images`
    vector: Tensor  # p m d


@torch.no_grad()
def nearest_patches(loader: Iterable[Any], model: nn.Module, search: Search) -> list[list[Patch]]:
    """The nearest patches of each prototype over the images of `loader`, nearest first.

    The model is put into eval mode. With several devices each looks at its own images, in the batches that `loader`
    gives it, and all get the same answer: equals are ordered by image id and cell. Only which of several exact copies
    of an image is named can depend on the devices; their vectors are the same.
    """
    model.eval()
    backbone: Any = model.backbone
    device = next(model.parameters()).device
    found: _Found | None = None
    images: list[str] = []
    width = 1
    for batch in loader:
        proximity, vectors = search.embed(backbone(batch.images.to(device)))
        if search.owners is not None:
            is_own = search.owners[batch.labels.to(device)]
            proximity = proximity.masked_fill(~is_own[:, :, None, None], -torch.inf)
        width = proximity.shape[-1]
        found = _merged(
            found, _of_batch(proximity, vectors, batch.labels.to(device), len(images), search), search.count
        )
        images += batch.ids
    patches = [] if found is None else _as_patches(found, images, width)
    return _of_all_devices(patches, search.count)


def _of_batch(proximity: Tensor, vectors: Tensor, labels: Tensor, first: int, search: Search) -> _Found:
    """The best cells of each image and prototype."""
    flat = rearrange(proximity, "b p h w -> b p (h w)")
    best, cell = flat.topk(min(search.per_image, flat.shape[-1]), dim=-1)
    # Only what can still be among the best of all is gathered: vectors are long.
    best, order = rearrange(best, "b p q -> p (b q)").topk(min(search.count, best.shape[0] * best.shape[2]), dim=-1)
    per_image = cell.shape[2]
    cell = rearrange(cell, "b p q -> p (b q)").gather(1, order)
    image = order // per_image
    flat_vectors = vectors.flatten(-2)
    if vectors.ndim == 4:
        vector = flat_vectors[image, :, cell]
    else:
        vector = flat_vectors[image, torch.arange(len(cell), device=cell.device)[:, None], :, cell]
    return _Found(best, cell, labels[image], image + first, vector)


def _merged(one: _Found | None, two: _Found, count: int) -> _Found:
    if one is None:
        return two
    joined = {name: torch.cat([getattr(one, name), getattr(two, name)], dim=1) for name in vars(two)}
    # Stable, so that of equals the first stays.
    order = joined["proximity"].sort(dim=1, descending=True, stable=True).indices[:, :count]
    rows = torch.arange(len(order), device=order.device)[:, None]
    return _Found(**{name: tensor[rows, order] for name, tensor in joined.items()})


def _as_patches(found: _Found, images: list[str], width: int) -> list[list[Patch]]:
    proximity, cell, label, image = (
        tensor.tolist() for tensor in (found.proximity, found.cell, found.label, found.image)
    )
    vectors = found.vector.cpu()
    return [
        [
            Patch(value, images[image[p][m]], cell[p][m] // width, cell[p][m] % width, label[p][m], vectors[p, m])
            for m, value in enumerate(values)
            if value > -torch.inf
        ]
        for p, values in enumerate(proximity)
    ]


def _of_all_devices(patches: list[list[Patch]], count: int) -> list[list[Patch]]:
    """Every device's patches together, the best `count` of each prototype."""
    gathered = [patches]
    if has_several_devices():
        # A vector is a view, and pickle sends all of what it looks into, with every patch anew.
        own = [[patch._replace(vector=patch.vector.clone()) for patch in each] for each in patches]
        gathered = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(gathered, own)
    number = max(len(each) for each in gathered)
    together: list[list[Patch]] = [[patch for each in gathered if each for patch in each[p]] for p in range(number)]
    return [sorted(each, key=_rank)[:count] for each in together]


def _rank(patch: Patch) -> tuple[float, str, int, int]:
    """Nearest first; equals by image and cell, so that the order of images does not matter."""
    return -patch.proximity, patch.image, patch.row, patch.column


def assigned(patches: list[list[Patch]], owners: list[int]) -> list[Patch | None]:
    """One patch for each prototype, no cell of an image twice within a class; None where none is left.

    The nearest pairs of all choose first. `owners`: the class of each prototype.
    """
    pairs = sorted(
        (*_rank(patch), number, place) for number, own in enumerate(patches) for place, patch in enumerate(own)
    )
    taken: set[tuple[int, str, int, int]] = set()
    chosen: list[Patch | None] = [None] * len(patches)
    for _, image, row, column, number, place in pairs:
        cell = (owners[number], image, row, column)
        if chosen[number] is None and cell not in taken:
            chosen[number] = patches[number][place]
            taken.add(cell)
    return chosen
