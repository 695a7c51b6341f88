"""The grid pointing game as a stage of an evaluation: mosaics of the images that the model itself is sure of."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.samples import Batch, ImageDataset
from ..models import ImageClassifier
from .conventions import Conventions
from .grid_pointing import choose_images, explain_cells, grid_pointing_game, mosaic
from .maps import MapMethod
from .parts import Part, Reading, joined, worked_through

SIDE = 2  # images a row of a mosaic
_MOST = 100  # mosaics
_AT_ONCE = 4


def score_mosaics(
    model: ImageClassifier,
    methods: Sequence[MapMethod],
    dataset: ImageDataset,
    probabilities: Tensor,
    labels: Tensor,
    conventions: Conventions,
    wanted: int | None,
    reading: Reading,
    **how: Any,
) -> tuple[Tensor, str]:
    """Each method's score on each mosaic, `m b` (b may be 0), and a sentence where some or all cannot be had.

    Args:
        model: In eval mode.
        methods: Whose maps point.
        dataset: Stored images.
        probabilities: `n c`, of all images of it.
        labels: `n`.
        conventions: The seed of the places in a mosaic.
        wanted: Mosaics; None: 100. Fewer where the images allow no more.
        reading: How images are read.
        how: `store` and `progress` of `worked_through`.
    """
    if len(labels) < len(dataset):
        return torch.zeros(
            len(methods), 0
        ), "grid_pointing: images that cannot be read leave the places of others unknown"
    confidences = probabilities.gather(1, labels[:, None])[:, 0]
    count = min(wanted or _MOST, _MOST)
    try:
        chosen = choose_images(confidences, labels, SIDE, count, seed=conventions.seed)
    except InputError as error:
        return torch.zeros(len(methods), 0), f"grid_pointing: {error}"

    def work(batch: Batch) -> Part:
        return _part(batch, model, methods, conventions)

    several = Reading(_AT_ONCE * SIDE**2, reading.num_workers, reading.on_error)
    parts, _ = worked_through(
        work, model, dataset, chosen.flatten().tolist(), several, title="pointing in mosaics", **how
    )
    scores = joined(parts)["grid_pointing"].T
    unable = [method.name for method, own in zip(methods, scores, strict=True) if own.isnan().all()]
    return scores, f"grid_pointing of {', '.join(unable)}: no map of images twice as large" if unable else ""


@torch.no_grad()
def _part(batch: Batch, model: ImageClassifier, methods: Sequence[MapMethod], conventions: Conventions) -> Part:
    batch = batch.to(next(model.parameters()).device)
    mosaics = mosaic(batch.images.unflatten(0, (-1, SIDE**2)))
    classes = batch.labels.unflatten(0, (-1, SIDE**2))
    numbers = torch.tensor([zlib.crc32(identifier.encode()) for identifier in batch.ids[:: SIDE**2]])
    size, scores = (mosaics.shape[-2], mosaics.shape[-1]), []
    for method in methods:
        grid = conventions.placing(model.grid) if method.is_on_grid else None
        try:
            maps = explain_cells(method.explain, mosaics, classes, numbers)
            scores.append(grid_pointing_game(maps, size, grid)[0].mean(1).cpu())
        except (InputError, RuntimeError):  # a network or head of a fixed size
            scores.append(torch.full((len(mosaics),), torch.nan))
    return Part(batch.ids, {"grid_pointing": torch.stack(scores, 1).float()})
