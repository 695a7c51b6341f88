"""Judges a model's prototypes: how many there are and count, and whether each means one part of the object.

Sizes are the literature's, shares of an image of 224 pixels, so that models of any input size compare: 72×72 boxes for
consistency and stability, 32×32 patches for purity. Chance is what prototypes found at random cells would score.
The attack of the misalignment scores costs 20 passes forward and back, so that some images stand for all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.data.constants import IMAGENET_DEFAULT_STD
from torch import Tensor
from tqdm import tqdm

from ..common.seeds import mixed_seed
from ..data.loading import Loader, OnError
from ..data.samples import Batch, ImageDataset
from ..heads.best_cell import BestCellHead, PrototypeState
from ..models import ImageClassifier, InterpretableClassifier
from ..models.eval_mode import eval_mode
from .misalignment import prototype_misalignment
from .part_metrics import (
    best_points,
    boxes_around,
    cell_centres,
    consistency,
    merged_sides,
    part_hits,
    purity,
    stability,
)

_BOX, _PATCH = 36 / 224, 16 / 224  # half sizes, as shares of the image
_NOISE, _NOISE_LIMIT = 0.2, 0.25  # in standard deviations of ImageNet's pixels
_SHARE_OF_LARGEST = 0.1  # of the points that count most: below it a prototype does not count for a decision


@dataclass(frozen=True)
class PrototypeScores:
    """Means over prototypes that are left, shares from 0 to 1; None where the data or the head cannot tell."""

    prototypes: int  # left after pruning
    used_per_decision: float | None  # that add at least a tenth of the largest points, mean over images
    local_size: float | None = None  # more active than a tenth of the most active one, mean over images
    global_size: int | None = None  # that are used for at least one decision
    sparsity: float | None = None  # share of the weights between classes and prototypes that are 0
    consistency: float | None = None
    consistency_chance: float | None = None
    stability: float | None = None
    purity: float | None = None
    purity_chance: float | None = None
    purity_receptive_field: float | None = None  # in the true field of a cell, clipped to the image, instead of a patch
    # Of an attack on the label's strongest prototype from outside its box, means over images (misalignment.py).
    plc: float | None = None  # location change, 0..100
    pac: float | None = None  # activation change, at most 100
    prc: float | None = None  # places it falls among all prototypes
    ac: float | None = None  # accuracy lost, in points


@torch.no_grad()
def judge_prototypes(
    model: ImageClassifier,
    dataset: ImageDataset,
    *,
    seed: int = 0,
    attacked: int = 32,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: OnError = "raise",
    progress: bool = True,
) -> PrototypeScores | None:
    """Scores of the prototypes of `model` on the images of `dataset`; None where its head has none.

    Consistency, stability and purity need the data set's `points`; the first two also prototypes that speak for one
    class each, in whose images they have to be found. Noise is drawn by `seed` and the image's place, so results do not
    depend on `batch_size`. So many images as `attacked`, evenly spread, are attacked (0: none). The model is left as
    it was found.

    Raises:
        InputError: An unreadable image.
    """
    if not isinstance(model, InterpretableClassifier) or not model.head.has_prototypes:
        return None
    some = {place * len(dataset) // attacked for place in range(attacked)}
    gatherer = _Gatherer(model, getattr(dataset, "part_names", ()), seed, some)
    loader = Loader(dataset, model.preprocess, batch_size, num_workers=num_workers, on_error=on_error)
    with eval_mode(model):
        for batch in tqdm(loader, "judging prototypes", disable=not progress):
            gatherer.add(batch)
    return gatherer.scores()


class _Gatherer:
    """Keeps what the metrics need of each image: small things, as hits and activations."""

    def __init__(
        self, model: InterpretableClassifier, part_names: tuple[str, ...], seed: int, attacked: set[int]
    ) -> None:
        self._model, self._part_names, self._seed, self._attacked = model, part_names, seed, attacked
        self._kept: dict[str, list[Tensor]] = {}
        self._left = torch.zeros(0, dtype=torch.bool)
        self._sparsity: float | None = None
        self._count = 0

    def add(self, batch: Batch) -> None:
        """Take one batch in."""
        images = batch.images.to(next(self._model.parameters()).device)
        state = self._state(images)
        head = self._model.head
        if isinstance(head, BestCellHead):
            self._left = head.is_kept.cpu()
            self._sparsity = _mean((head.weight[:, head.is_kept] == 0).float())
            points = head.points(state, state.logits.argmax(1, keepdim=True))[:, 0].abs()
            is_used = (points >= _SHARE_OF_LARGEST * points.amax(1, keepdim=True)) & (points > 0)
            self._keep("is_used", is_used)
            self._keep("used_per_decision", is_used.sum(1).float())
        else:
            self._left = torch.ones(state.parts.shape[1], dtype=torch.bool)
        active = state.activations.clamp(min=0) * self._left.to(images.device)
        is_active = active > _SHARE_OF_LARGEST * active.amax(1, keepdim=True)
        self._keep("local_size", is_active.sum(1).float())
        rows = [row for row in range(len(images)) if self._count + row in self._attacked]
        if rows:
            classes = batch.labels.to(images.device)[rows]
            for name, values in prototype_misalignment(self._model, images[rows], classes).items():
                self._keep(name, values)
        if self._part_names:
            self._add_parts(batch, images, state)
        self._count += len(batch.ids)

    def _state(self, images: Tensor) -> PrototypeState:
        return self._model.head.score(self._model.backbone(images))

    def _add_parts(self, batch: Batch, images: Tensor, state: PrototypeState) -> None:
        size = (images.shape[-2], images.shape[-1])
        points = torch.stack(batch.points).to(images)
        is_inside = ((points >= 0) & (points <= points.new_tensor([size[1], size[0]]))).all(-1)
        points = points.where(is_inside[..., None], torch.nan)
        grid = (state.parts.shape[-2], state.parts.shape[-1])
        random = self._by_image(
            len(images), lambda generator: torch.randint(grid[0] * grid[1], state.places.shape[1:], generator=generator)
        ).to(images.device)
        self._keep("visible", is_inside)
        self._keep("activations", state.activations)
        for name, places in (("", state.places), ("_chance", random)):
            boxes = boxes_around(cell_centres(places, grid, size), (_PATCH * size[0], _PATCH * size[1]))
            self._keep(f"patch{name}", part_hits(boxes, points))
        if self._model.grid is not None:
            self._keep("field", part_hits(self._fields(state), points))
        head = self._model.head
        if isinstance(head, BestCellHead) and not head.shares_prototypes:
            counts = (head.belongs & head.is_kept)[batch.labels.to(images.device)]
            half = (_BOX * size[0], _BOX * size[1])
            disturbed = self._state(images + self._noise(images))
            self._keep("counts", counts)
            self._keep("box", part_hits(boxes_around(_best_points(state.parts, counts, size), half), points))
            self._keep("box_chance", part_hits(boxes_around(cell_centres(random, grid, size), half), points))
            self._keep(
                "box_disturbed", part_hits(boxes_around(_best_points(disturbed.parts, counts, size), half), points)
            )

    def _fields(self, state: PrototypeState) -> Tensor:
        """The receptive fields of the best cells: `b p 4`."""
        grid, scale = self._model.grid, getattr(self._model.head, "scale", 1.0)
        assert grid is not None
        height, width = state.parts.shape[-2:]
        boxes = [grid.box(row, column, scale) for row in range(height) for column in range(width)]
        return state.parts.new_tensor(boxes)[state.places]

    def _noise(self, images: Tensor) -> Tensor:
        """Noise of ImageNet's scale, in the units of the model's input: `b c h w`."""
        drawn = self._by_image(len(images), lambda generator: torch.randn(images.shape[1:], generator=generator))
        pixels = (_NOISE * drawn).clamp(-_NOISE_LIMIT, _NOISE_LIMIT) * sum(IMAGENET_DEFAULT_STD) / 3
        std = torch.tensor(self._model.config.preprocessing.std)
        return (pixels / std[:, None, None]).to(images)

    def _by_image(self, count: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What is drawn for each image of the batch, by its place among all."""
        return torch.stack(
            [draw(torch.Generator().manual_seed(mixed_seed(self._seed, self._count + row))) for row in range(count)]
        )

    def _keep(self, name: str, values: Tensor) -> None:
        self._kept.setdefault(name, []).append(values.cpu())

    def scores(self) -> PrototypeScores:
        """The means over prototypes."""
        kept = {name: torch.cat(values) for name, values in self._kept.items()}
        means = {name: values for name, values in kept.items() if values.ndim == 1}  # of images; the rest of prototypes
        found = {name: values[:, self._left] for name, values in kept.items() if values.ndim > 1 and name != "visible"}
        is_used = found.get("is_used")
        for name, patches in (
            ("purity", "patch"),
            ("purity_chance", "patch_chance"),
            ("purity_receptive_field", "field"),
        ):
            if patches in found:
                means[name] = purity(merged_sides(found[patches], self._part_names), found["activations"])
        if "box" in found:
            means["consistency"] = consistency(found["box"], kept["visible"], found["counts"])
            means["consistency_chance"] = consistency(found["box_chance"], kept["visible"], found["counts"])
            means["stability"] = stability(found["box"], found["box_disturbed"], found["counts"])
        return PrototypeScores(
            prototypes=int(self._left.sum()),
            global_size=None if is_used is None else int(is_used.any(0).sum()),
            sparsity=self._sparsity,
            **{"used_per_decision": None} | {name: _mean(values) for name, values in means.items()},
        )


def _mean(values: Tensor) -> float | None:
    mean = values.nanmean().item()
    return None if math.isnan(mean) else mean


def _best_points(maps: Tensor, counts: Tensor, size: tuple[int, int]) -> Tensor:
    """As `best_points`, but only where an image counts for a prototype (b p); NaN elsewhere: full maps are large."""
    points = maps.new_full((*counts.shape, 2), torch.nan)
    images, prototypes = counts.nonzero(as_tuple=True)
    for some in torch.arange(len(images), device=maps.device).split(256):
        chosen = maps[images[some], prototypes[some]]
        points[images[some], prototypes[some]] = best_points(chosen[None], size)[0].to(points)
    return points
