"""Evaluations made by hand: scores that a test names, of models that never saw an image."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

import glasszoo
from glasszoo.evaluation import Conventions, Evaluation, MethodScores
from glasszoo.models import ImageClassifier

IMAGES = 4


@cache
def small_model(head: str = "cam") -> ImageClassifier:
    return glasszoo.create_model("test_byobnet", head=head, num_classes=3).eval()


def method(name: str, scores: Mapping[str, float | Sequence[float]], kind: str = "post-hoc") -> MethodScores:
    """One number: that of every image."""
    tensors = {metric: torch.tensor(score).expand(IMAGES).clone() for metric, score in scores.items()}
    cost = {"forwards": 1.0, "backwards": 0.0, "milliseconds": 1.25, "times_plain_forward": 1.5, "peak_mib": 2.0}
    return MethodScores(name, kind, scores=tensors, cost=cost)


def judged(methods: Sequence[MethodScores], right: int = IMAGES, **other: Any) -> Evaluation:
    """An evaluation in which the first `right` images are classified rightly."""
    labels = torch.arange(IMAGES) % 3
    given = torch.where(torch.arange(IMAGES) < right, labels, (labels + 1) % 3)
    ids = [f"image {number}" for number in range(IMAGES)]
    told: dict[str, Any] = {
        "model": small_model(),
        "class_names": ("sound", "rust", "phoma"),
        "conventions": Conventions(bootstrap=50),
        "ids": ids,
        "labels": labels,
        "logits": 4 * torch.nn.functional.one_hot(given, 3).float(),
        "gaps": torch.full((IMAGES,), 2e-7),
        "explained_ids": ids,
        "chance": torch.full((IMAGES,), 0.25),
        "methods": list(methods),
        "unreadable": [],
    }
    return Evaluation(**{**told, **other})
