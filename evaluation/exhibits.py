"""What the image browser of a sheet shows: some images, and each model's maps of some classes of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.loading import image_numbers
from ..data.samples import Batch, ImageDataset
from ..heads import Contract
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .benchmark import Evaluation
from .conventions import Conventions
from .maps import MapMethod, placed
from .methods import map_method
from .parts import Part, Reading, joined, worked_through
from .pictures import displayed
from .scoring import EVIDENCE

_CLASSES = 4  # shown of each image


@dataclass(frozen=True)
class Exhibit:
    """One model's maps of n images, for k classes of each."""

    ids: list[str]
    pictures: Tensor  # n H W 3 uint8, as the model sees them
    masks: Tensor  # n H W bool, all False where nothing is known
    maps: dict[str, Tensor]  # method → n k h w
    units: dict[str, str]  # method → what a value is in
    side: int  # cells a side of the finest map kept


def spread_places(dataset: ImageDataset, count: int) -> list[int]:
    """`count` places in the data set, spread evenly; all of them where it has fewer."""
    count = min(count, len(dataset))
    return [place * len(dataset) // count for place in range(count)]


def shown_classes(evaluations: Sequence[Evaluation]) -> dict[str, list[int]]:
    """Of each image the classes that can be chosen: its label, then those that a model ranks highest.

    First the classes that some model predicts, the likeliest first, then the likeliest others; four in all.
    """
    first = evaluations[0]
    probabilities = torch.stack([evaluation.probabilities for evaluation in evaluations])
    likely = probabilities.amax(0)
    urgency = likely.scatter_add(1, probabilities.argmax(2).T, torch.ones(len(likely), len(evaluations)))
    urgency = urgency.clamp(max=1) + likely
    urgency[torch.arange(len(likely)), first.labels] = 3
    chosen = urgency.topk(min(_CLASSES, likely.shape[1]), dim=1).indices
    return dict(zip(first.ids, chosen.tolist(), strict=True))


def exhibit(
    evaluation: Evaluation,
    dataset: ImageDataset,
    places: Sequence[int],
    classes: Mapping[str, Sequence[int]],
    *,
    side: int,
    num_workers: int = 0,
    store: Path | None = None,
    progress: bool = True,
) -> Exhibit:
    """Maps by all methods of `evaluation` but the controls, of the images at `places` that can be read.

    Maps are kept at their own resolution, or averaged down to at most `side` cells a side. Built-in evidence is
    multiplied by the number of its cells: so the mean of a map, whatever its resolution, is what the image adds to the
    logit. Killed, it goes on from `store`; several processes share the work.
    """
    model, conventions = evaluation.model, evaluation.conventions
    methods = [map_method(method.name, model) for method in evaluation.methods if method.kind != "control"]

    @torch.no_grad()
    def work(batch: Batch) -> Part:
        images = batch.images.to(next(model.parameters()).device)
        indices = image_numbers(batch.ids)
        wanted = torch.tensor([classes[identifier] for identifier in batch.ids], device=images.device)
        tensors = {
            method.name: torch.stack(
                [
                    _small(method.explain(images, column, indices), method, model, images, conventions, side)
                    for column in wanted.unbind(1)
                ],
                dim=1,
            )
            for method in methods
        }
        pictures = [torch.from_numpy(displayed(image, model.config.preprocessing)) for image in batch.images]
        masks = (batch.masks == EVIDENCE) & batch.has_mask[:, None, None]
        return Part(batch.ids, {"/pictures": torch.stack(pictures), "/masks": masks, **tensors})

    with eval_mode(model):
        parts, _ = worked_through(
            work, model, dataset, places, Reading(4, num_workers, "skip"),
            title="picturing", store=store, progress=progress,
        )  # fmt: skip
    found = joined(parts)
    return Exhibit(
        ids=[identifier for part in parts for identifier in part.ids],
        pictures=found.pop("/pictures"),
        masks=found.pop("/masks"),
        maps=found,
        units={method.name: _unit(method, model) for method in methods},
        side=side,
    )


def _unit(method: MapMethod, model: ImageClassifier) -> str:
    if method.kind != "built-in":
        return "units of its own"
    return "probability" if model.contract is Contract.PROBABILITY else "logits"


def _small(
    maps: Tensor, method: MapMethod, model: ImageClassifier, images: Tensor, conventions: Conventions, side: int
) -> Tensor:
    """Maps `b h w` as the page holds them, on the CPU."""
    maps = maps.float()
    if method.kind == "built-in":
        maps = maps * maps[0].numel()
    if grid := conventions.placing(model.grid) if method.is_on_grid else None:
        maps = placed(maps[None], (images.shape[-2], images.shape[-1]), grid)[0]
    rows, columns = (_averaging(cells, min(cells, side)).to(maps) for cells in maps.shape[-2:])
    return torch.einsum("Hh,bhw,Ww->bHW", rows, maps, columns).cpu()


def _averaging(cells: int, wanted: int) -> Tensor:
    """Means over equal parts of a row of cells, as a matrix `wanted cells`; a cell on a border is shared by its parts.

    So the mean of the whole stays what it was, which torch's adaptive pooling loses where sizes do not divide.
    """
    edges = torch.arange(wanted + 1, dtype=torch.float64)[:, None] * cells / wanted
    first = torch.arange(cells, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], first + 1) - torch.maximum(edges[:-1], first)
    return overlap.clamp(min=0) * wanted / cells
