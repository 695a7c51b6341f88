"""FunnyBirds' protocol: how complete, correct and contrastive maps are, on rendered birds whose parts can be removed.

Hesse et al., ICCV 2023. Where the published protocol is unsound, `Protocol` offers both ways, the sound one by default.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from tqdm import tqdm

from ..common.errors import InputError
from ..data.folder import read_image
from ..data.funnybirds import FunnyBirds
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .benchmark import check_classes
from .conventions import Conventions
from .exhibits import spread_places
from .funnybirds_results import Birds, MethodBirds, Protocol
from .funnybirds_scores import (
    THRESHOLDS,
    Completeness,
    chosen_thresholds,
    completeness,
    contrast_of,
    importances,
    important,
    irrelevant,
    set_numbers,
    single_deletion_score,
    target_sensitivity,
)
from .maps import MapMethod, placed_explanations
from .methods import map_method, quick_methods, without_missing


def judge_funnybirds(
    model: ImageClassifier,
    dataset: FunnyBirds,
    *,
    methods: Sequence[str] | None = None,
    protocol: Protocol | None = None,
    conventions: Conventions | None = None,
    max_explained: int | None = None,
    progress: bool = True,
) -> Birds:
    """Completeness, correctness and contrastivity of the maps of `methods`; all share the forwards of the changes.

    The model is left as it was found. "built-in" is passed over for a black box, which has no map.

    Args:
        model: On the device where it shall run.
        dataset: A split that has part maps and interventions; the model's own preprocessing is applied.
        methods: Names from `METHODS`. None: those that are quick and installed.
        protocol: The sound one, or `PUBLISHED`.
        conventions: `target`, `placement`, and those of the intervals, count here.
        max_explained: Look at this many images, spread evenly over the data set; None: all.
        progress: Show a bar.

    Raises:
        InputError: Unknown method, other classes than the model's, a picture that lacks, a single image whose threshold
            another half should choose.
    """
    check_classes(model, dataset)
    if max_explained is not None and max_explained < 1:
        raise InputError(f"at least 1 image is to be explained, got {max_explained}")
    protocol, conventions = protocol or Protocol(), conventions or Conventions()
    names = quick_methods() if methods is None else methods
    judged = [map_method(name, model) for name in without_missing(names, model)]
    places = spread_places(dataset, len(dataset) if max_explained is None else max_explained)
    if protocol.threshold == "crossfit" and len(places) < 2:
        raise InputError("one half of the images chooses the other's threshold: at least 2 are needed")
    judge = _Judge(model, dataset, judged, protocol, conventions)
    with eval_mode(model), torch.no_grad():
        found = [judge.image(place) for place in tqdm(places, desc="judging", unit="image", disable=not progress)]
    complete = Completeness(*(torch.stack(each) for each in zip(*(own.complete for own in found), strict=True)))
    rest = torch.stack([torch.stack([own.correct, own.contrast], 1) for own in found])  # n m 2
    return Birds(
        model=model,
        conventions=conventions,
        protocol=protocol,
        ids=[dataset.image_id(place) for place in places],
        is_right=torch.tensor([own.is_right for own in found]),
        background=torch.stack([own.background for own in found]),
        methods=[
            _summary(method, Completeness(*(each[:, row] for each in complete)), rest[:, row], protocol)
            for row, method in enumerate(judged)
        ],
    )


def _summary(method: MapMethod, complete: Completeness, rest: Tensor, protocol: Protocol) -> MethodBirds:
    """One method's scores at the chosen thresholds, from what was found at each, `n t`."""
    at = chosen_thresholds(complete, protocol.threshold)
    columns = [each.gather(1, at[:, None])[:, 0] for each in complete]
    thresholds = tuple(THRESHOLDS[at[:2].unique()].tolist())
    return MethodBirds(method.name, method.kind, torch.stack([*columns, *rest.T], 1), thresholds)


class _Found(NamedTuple):
    """What is known of one image."""

    is_right: bool
    background: Tensor  # scalar
    complete: Completeness  # m t each
    correct: Tensor  # m
    contrast: Tensor  # m


class _Judge:
    """Judges one image after the other."""

    def __init__(
        self,
        model: ImageClassifier,
        dataset: FunnyBirds,
        methods: Sequence[MapMethod],
        protocol: Protocol,
        conventions: Conventions,
    ) -> None:
        self._model, self._dataset, self._methods = model, dataset, methods
        self._protocol, self._conventions = protocol, conventions
        self._sufficient = dataset.sufficient_parts()
        self._device = next(model.parameters()).device

    def image(self, index: int) -> _Found:
        """What is found of one image."""
        dataset, parts = self._dataset, len(self._dataset.part_names)
        picture, without = read_image(dataset.root / dataset.image_id(index)), dataset.without_objects(index)
        image, regions = self._prepared(picture, index, without)
        logits = self._model(image[None], 0).logits[0].double()
        label, predicted = int(dataset.labels[index]), int(logits.argmax())
        target = predicted if self._conventions.target == "predicted" else label
        maps = self._maps(image, target, index)
        sums = importances(maps, regions)
        is_important = important(sums, maps)

        whole = 2**parts - 1
        chosen = set_numbers(is_important, parts)
        wanted = {*chosen.flatten().tolist(), *(whole - chosen).flatten().tolist()}
        of_sets = self._of_sets(index, {*wanted, *(whole - 2**part for part in range(parts))} - {whole})
        of_sets[whole] = logits
        of_objects = self._logits(without)
        changed = torch.stack([*(of_sets[whole - 2**part] for part in range(parts)), *of_objects])
        drops = logits[target] - changed[:, target]
        is_irrelevant = irrelevant(drops, logits[target], self._protocol.irrelevant)
        predictions = torch.full((2**parts,), -1, device=logits.device)
        for number, own in of_sets.items():
            predictions[number] = own.argmax()
        found = completeness(
            is_important, predictions, self._sufficient[label] if predicted == label else None, is_irrelevant, parts
        )
        return _Found(
            predicted == label,
            is_irrelevant[parts:].double().mean().cpu(),  # of nothing: NaN
            Completeness(*(each.cpu() for each in found)),
            single_deletion_score(sums[:, :parts], drops[:parts], self._protocol.constant_maps).cpu(),
            self._contrast(image, regions, label, index).cpu(),
        )

    def _contrast(self, image: Tensor, regions: Tensor, label: int, index: int) -> Tensor:
        contrast = contrast_of(self._dataset.variants, label, self._conventions.seed, index)
        if contrast is None:
            return torch.full((len(self._methods),), torch.nan, dtype=torch.float64)
        first, second = (importances(self._maps(image, number, index), regions) for number in contrast.classes)
        return target_sensitivity(first, second, contrast)

    def _prepared(self, picture: Image.Image, index: int, without: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """The image as the model sees it, and where the items are: `i h w` bool.

        An object of the background is where the picture without it differs.
        """
        numbers = self._dataset.parts(index)
        masks = [torch.as_tensor(numbers == 1 + part) for part in range(len(self._dataset.part_names))]
        own = np.asarray(picture)
        masks += [torch.from_numpy((np.asarray(each) != own).any(axis=2)) for each in without]
        stacked = tv_tensors.Mask(torch.stack(masks).to(torch.uint8))
        sample = self._model.preprocess({"image": picture, "items": stacked})
        regions = torch.as_tensor(sample["items"]) > 0
        return torch.as_tensor(sample["image"]).to(self._device), regions.to(self._device)

    def _maps(self, image: Tensor, target: int, index: int) -> Tensor:
        """The maps of all methods at the image's resolution: `m h w`."""
        classes, indices = torch.tensor([target], device=self._device), torch.tensor([index])
        grid = self._conventions.placing(self._model.grid)
        return placed_explanations(self._methods, image[None], classes, indices, grid)[:, 0]

    def _of_sets(self, index: int, sets: set[int]) -> dict[int, Tensor]:
        """The logits `c` with each of these sets of parts alone."""
        names, numbers = self._dataset.part_names, sorted(sets)
        pictures = [
            self._dataset.with_parts(index, [name for part, name in enumerate(names) if number >> part & 1])
            for number in numbers
        ]
        return dict(zip(numbers, self._logits(pictures), strict=True))

    def _logits(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        """The logits `c` of stored pictures."""
        if not pictures:
            return []
        images = torch.stack([torch.as_tensor(self._model.preprocess(picture)) for picture in pictures])
        return list(self._model(images.to(self._device), 0).logits.double())
