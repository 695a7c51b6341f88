"""The grid pointing game: in a mosaic of images of different classes, does a class's map point at its own image?

Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021; Rao,
Böhle and Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022 ("GridPG"). Any n × n images do that
the model is sure of alone; the model must take mosaics, n times as high and wide.
"""

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..models import Grid
from .maps import placed

Explain = Callable[[Tensor, Tensor, Tensor], Tensor]  # images b c H W, classes b, indices b → maps b h w
_NOTHING = 1e-7  # positive evidence below which a map points nowhere, as in the authors' code


def choose_images(
    confidences: Tensor, labels: Tensor, side: int, mosaics: int, *, least: float = 0.99, seed: int = 0
) -> Tensor:
    """Which images make which mosaic: `b side²` indices, at most `mosaics`, each image once, classes distinct in each.

    The classes with the most images left give one each, the surest first; where a class stands is drawn by `seed`. So
    as many mosaics are made as the images allow, and the choice depends on nothing else.

    Args:
        confidences: `n`, what the model thinks the probability of the image's own label is. For several models the
            least of theirs, so that all are judged on the same mosaics.
        labels: `n`.
        side: Images a row, and rows.
        mosaics: The most that are wanted.
        least: The confidence from which an image can be chosen.
        seed: Of the places.

    Raises:
        InputError: Fewer than side² classes have an image that the model is sure of.
    """
    _check_side(side)
    order = confidences.argsort(descending=True, stable=True)
    left: dict[int, list[int]] = {}  # of each class, the surest last
    for index in order[confidences[order] >= least].flip(0).tolist():
        left.setdefault(int(labels[index]), []).append(index)
    chosen: list[list[int]] = []
    while len(chosen) < mosaics:
        fullest = sorted(left, key=lambda label: (-len(left[label]), label))[: side**2]
        if len(fullest) < side**2 or not left[fullest[-1]]:
            break
        taken = [left[label].pop() for label in fullest]
        generator = torch.Generator().manual_seed(mixed_seed(seed, len(chosen)))
        chosen.append([taken[place] for place in torch.randperm(len(taken), generator=generator).tolist()])
    if not chosen:
        raise InputError(
            f"a mosaic takes {side**2} classes with an image of confidence {least} or more, but {len(left)} have one"
        )
    return torch.tensor(chosen)


def mosaic(images: Tensor) -> Tensor:
    """Images `b k c h w`, k a square number, as mosaics `b c H W`: cell 0 at the upper left, then along the row."""
    side = round(images.shape[1] ** 0.5)
    if side**2 != images.shape[1]:
        raise InputError(f"a mosaic takes a square number of images, got {images.shape[1]}")
    return rearrange(images, "b (row column) c h w -> b c (row h) (column w)", row=side)


def explain_cells(explain: Explain, mosaics: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
    """Maps of a mosaic for the class of each of its cells: `b k h w`, for mosaics `b c H W` and classes `b k`.

    `indices` (b) are the mosaics' numbers; an explainer that draws gets another for each cell.
    """
    cells = classes.shape[1]
    return torch.stack([explain(mosaics, classes[:, cell], indices * cells + cell) for cell in range(cells)], 1)


def grid_pointing_game(maps: Tensor, size: tuple[int, int], grid: Grid | None = None) -> Tensor:
    """Share of the positive evidence for a cell's class that lies in the cell: `m b k` in 0..1; the mean is the score.

    0 for a map whose positive evidence, added up over the mosaic, is below 1e-7; NaN for one with a NaN.

    Args:
        maps: `b k h w` or `m b k h w`, any resolution: map i of a mosaic explains the class of its cell i. Stretched
            over the mosaic, then clipped at 0.
        size: Height and width of the mosaics, in pixels.
        grid: Where the maps' cells stand, as for `placed`; default: the map is stretched over the mosaic.

    Raises:
        InputError: Another rank, no square number of maps, or a mosaic that does not divide into such cells.
    """
    methods = maps[None] if maps.ndim == 4 else maps
    side = round(methods.shape[2] ** 0.5) if methods.ndim == 5 else 0
    if not side or side**2 != methods.shape[2]:
        raise InputError(f"maps of shape (b, n², h, w) or (m, b, n², h, w) expected, got {tuple(maps.shape)}")
    if size[0] % side or size[1] % side:
        raise InputError(f"a mosaic of {size[0]}×{size[1]} pixels does not divide into {side}×{side} equal cells")
    stretched = placed(methods.flatten(1, 2), size, grid).unflatten(1, methods.shape[1:3])
    within = reduce(
        stretched.clamp(min=0), "m b k (row h) (column w) -> m b k (row column)", "sum", row=side, column=side
    )
    total = within.sum(-1)
    own = within.diagonal(dim1=-2, dim2=-1)
    return torch.where(total < _NOTHING, torch.zeros_like(total), own / total)


def grid_chance(side: int) -> float:
    """The score of a map that knows nothing, in mosaics of `side` × `side` images: a cell's share of the mosaic."""
    _check_side(side)
    return 1 / side**2


def _check_side(side: int) -> None:
    if side < 1:
        raise InputError(f"a mosaic has at least one image a row, got {side}")
