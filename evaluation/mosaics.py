"""The grid pointing games as a stage of an evaluation: mosaics of the images that the model itself is sure of."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.loading import image_numbers
from ..data.samples import Batch, ImageDataset
from ..models import Grid, ImageClassifier
from .conventions import Conventions
from .disconnected import Disconnected, Split
from .grid_pointing import choose_images, explain_cells, grid_pointing_game, mosaic
from .maps import MapMethod
from .methods import map_method
from .parts import Part, Reading, joined, worked_through

SIDE = 2  # images a row of a mosaic
_MOST = 100  # mosaics
_AT_ONCE = 4
# Metrics by where the classifier is cut into cells: GridPG's is not.
_SPLITS: dict[str, Split | None] = {"grid_pointing": None, "difull": "image", "dipart": "features"}


def score_mosaics(
    model: ImageClassifier,
    methods: Sequence[MapMethod],
    dataset: ImageDataset,
    probabilities: Tensor,
    labels: Tensor,
    conventions: Conventions,
    metrics: Iterable[str],
    wanted: int | None,
    reading: Reading,
    **how: Any,
) -> tuple[dict[str, Tensor], list[str]]:
    """Each method's scores on each mosaic by those of `metrics` that are of mosaics, `m b` (b may be 0) by name.

    And a sentence for each of them of which some or all cannot be had.

    Args:
        model: In eval mode.
        methods: Whose maps point.
        dataset: Stored images.
        probabilities: `n c`, of all images of it.
        labels: `n`.
        conventions: The seed of the places in a mosaic.
        metrics: Names.
        wanted: Mosaics; None: 100. Fewer where the images allow no more.
        reading: How images are read.
        how: `store` and `progress` of `worked_through`.
    """
    names = [name for name in metrics if name in _SPLITS]
    nothing = {name: torch.zeros(len(methods), 0) for name in names}
    if not names:
        return {}, []
    if len(labels) < len(dataset):
        return nothing, [f"{', '.join(names)}: images that cannot be read leave the places of others unknown"]
    confidences = probabilities.gather(1, labels[:, None])[:, 0]
    count = min(wanted or _MOST, _MOST)
    try:
        chosen = choose_images(confidences, labels, SIDE, count, seed=conventions.seed)
    except InputError as error:
        return nothing, [f"{', '.join(names)}: {error}"]
    players = {name: _player(model, methods, conventions, _SPLITS[name]) for name in names}

    def work(batch: Batch) -> Part:
        return _part(batch.to(next(model.parameters()).device), players)

    several = Reading(_AT_ONCE * SIDE**2, reading.num_workers, reading.on_error)
    parts, _ = worked_through(
        work, model, dataset, chosen.flatten().tolist(), several, title="pointing in mosaics", **how
    )
    found = {name: scores.T for name, scores in joined(parts).items()}
    unable = {
        name: [method.name for method, own in zip(methods, scores, strict=True) if own.isnan().all()]
        for name, scores in found.items()
    }
    return found, [
        f"{name} of {', '.join(those)}: no map of images twice as large" for name, those in unable.items() if those
    ]


# Scores `m b` of mosaics `b c H W`, whose cells' classes are `b k` and whose numbers are `b`.
_Player = Callable[[Tensor, Tensor, Tensor], Tensor]


def _player(
    model: ImageClassifier, methods: Sequence[MapMethod], conventions: Conventions, split: Split | None
) -> _Player:
    """The game on the model as it is, or cut into cells; then methods explain what it was cut into."""
    if split is None:
        return lambda mosaics, classes, numbers: _scores(
            mosaics, classes, numbers, methods, conventions.placing(model.grid)
        )
    cut = Disconnected(model, SIDE, split).eval()
    first = model.num_classes * torch.arange(SIDE**2)
    of_cut = [_made(method, cut) for method in methods]
    return lambda mosaics, classes, numbers: _scores(
        mosaics, classes + first.to(classes.device), numbers, of_cut, None, at_own_size=True
    )


def _made(method: MapMethod, cut: Disconnected) -> MapMethod | None:
    """The method for the model that was cut; None where it cannot be had."""
    try:
        return map_method(method.name, cut)
    except InputError:
        return None


@torch.no_grad()
def _part(batch: Batch, players: dict[str, _Player]) -> Part:
    mosaics = mosaic(batch.images.unflatten(0, (-1, SIDE**2)))
    classes = batch.labels.unflatten(0, (-1, SIDE**2))
    numbers = image_numbers(batch.ids[:: SIDE**2])
    return Part(batch.ids, {name: play(mosaics, classes, numbers).T for name, play in players.items()})


def _scores(
    mosaics: Tensor, classes: Tensor, numbers: Tensor, methods: Sequence[MapMethod | None], grid: Grid | None,
    at_own_size: bool = False,
) -> Tensor:  # fmt: skip
    """`m b`, NaN where there is no map. `at_own_size`: maps are not stretched, which smears over a cell's border."""
    scores = []
    for method in methods:
        own = torch.full((len(mosaics),), torch.nan)
        if method is not None:
            try:
                maps = explain_cells(method.explain, mosaics, classes, numbers)
                is_whole = at_own_size and not any(side % SIDE for side in maps.shape[-2:])
                size = (maps.shape[-2], maps.shape[-1]) if is_whole else (mosaics.shape[-2], mosaics.shape[-1])
                own = grid_pointing_game(maps, size, grid if method.is_on_grid else None)[0].mean(1).cpu()
            except (InputError, RuntimeError):  # a network or head of a fixed size
                pass
        scores.append(own)
    return torch.stack(scores).float()
