"""What a sheet's differences can stand on: models and explanations compared image by image, and seeds merged."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .accuracy import topk_correct
from .benchmark import Evaluation
from .metrics import METRICS
from .scoring import MethodScores
from .sheet import Sheet
from .statistics import Difference, McNemar, Merged, mcnemar, merge_seeds, paired_difference

SEED_MARK = "@"  # models NAME@SEED are one model, trained with several seeds


@dataclass(frozen=True)
class ModelDifference:
    """Top-1 of a model less that of the most accurate one."""

    model: str
    reference: str
    top1: Difference
    mcnemar: McNemar  # of the model and the reference, in this order


@dataclass(frozen=True)
class MethodDifference:
    """A method's score less that of the built-in map of the same model."""

    model: str
    method: str
    metric: str
    score: Difference


@dataclass(frozen=True)
class OverSeeds:
    """A number of one model, or of one of its methods, over its seeds."""

    model: str  # without the seed
    method: str  # "" for accuracy
    metric: str
    merged: Merged


def model_differences(sheet: Sheet) -> list[ModelDifference]:
    """Every other model against the most accurate one, the first of these where several are."""
    rightness = {name: _right(found) for name, found in sheet.evaluations.items()}
    best = max(rightness, key=lambda name: rightness[name].float().mean().item())
    return [
        ModelDifference(name, best, _difference(sheet, own, rightness[best]), mcnemar(own, rightness[best]))
        for name, own in rightness.items()
        if name != best
    ]


def method_differences(sheet: Sheet) -> list[MethodDifference]:
    """Every other method against the built-in map of its model, by each metric that images have one by one."""
    return [
        MethodDifference(name, method.name, metric, _difference(sheet, scores, built_in.scores[metric]))
        for name, evaluation in sheet.evaluations.items()
        for built_in in evaluation.methods
        if built_in.kind == "built-in"
        for method in evaluation.methods
        if method is not built_in
        for metric, scores in method.scores.items()
        if metric in built_in.scores and METRICS[metric].is_of_images
    ]


def over_seeds(sheet: Sheet) -> list[OverSeeds]:
    """Of the models called NAME@SEED with several seeds: top-1, and every score of the methods that all have."""
    groups: defaultdict[str, list[Evaluation]] = defaultdict(list)
    for name, evaluation in sheet.evaluations.items():
        base, mark, _ = name.rpartition(SEED_MARK)
        if mark:
            groups[base].append(evaluation)
    return [
        OverSeeds(base, method, metric, _merged(sheet, torch.stack(scores)))
        for base, group in groups.items()
        if len(group) > 1
        for method, metric, scores in _shared_scores(group)
    ]


def _shared_scores(group: list[Evaluation]) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Method, metric, and the scores (b) of each of the evaluations."""
    yield "", "top1", [_right(evaluation).float() for evaluation in group]
    by_name: list[dict[str, MethodScores]] = [{own.name: own for own in evaluation.methods} for evaluation in group]
    for name, method in by_name[0].items():
        if all(name in methods for methods in by_name):
            for metric in filter(lambda name: METRICS[name].is_of_images, method.scores):
                yield name, metric, [methods[name].scores[metric] for methods in by_name]


def _right(evaluation: Evaluation) -> Tensor:
    return topk_correct(evaluation.logits, evaluation.labels, 1)


def _difference(sheet: Sheet, first: Tensor, second: Tensor) -> Difference:
    chosen = sheet.conventions
    return paired_difference(first.float(), second.float(), chosen.bootstrap, chosen.confidence, chosen.seed)


def _merged(sheet: Sheet, scores: Tensor) -> Merged:
    chosen = sheet.conventions
    return merge_seeds(scores, chosen.bootstrap, chosen.confidence, chosen.seed)
