"""Judges predictions and maps under attack: how far each moves, with a control of random noise of the same size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError, unknown_name
from ..data.loading import image_numbers
from ..data.samples import Batch, ImageDataset
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .adversarial import SHARE, Budget, attack_explanation, attack_prediction, noise
from .benchmark import check_classes
from .conventions import Conventions
from .differentiable_maps import Explain, Explanation, differentiable
from .exhibits import spread_places
from .map_similarity import similarity
from .methods import without_missing
from .misalignment import high_region
from .parts import Part, Reading, joined, worked_through
from .statistics import Interval, bootstrap_interval

ATTACKS = {
    "noise": "the control: each pixel changed by ±ε at random",
    "prediction": "PGD that raises the cross-entropy of the class predicted at first",
    "targeted": "PGD that lowers the cross-entropy of the class that was the least likely",
    "explanation": "PGD that changes the map and holds the prediction",
}


class RobustnessScore(NamedTuple):
    """What an attack did."""

    title: str
    meaning: str


ROBUSTNESS_SCORES = {
    "flipped": RobustnessScore("flipped", "share of images whose prediction is another"),
    "reached": RobustnessScore("reached", "share of images predicted as the class that the attack aimed at"),
    "logit": RobustnessScore("Δ logit", "change of the logit of the class predicted at first"),
    "probability": RobustnessScore("Δ probability", "change of that class's probability"),
    "rank_correlation": RobustnessScore("Spearman", "of that class's map before and after, over its cells"),
    "top_tenth": RobustnessScore("top 10 %", "share of the map's highest tenth of cells that are in it afterwards"),
    "ssim": RobustnessScore("SSIM", "structural similarity of the map before and after"),
}


class Shown(NamedTuple):
    """The first images as a picture shows them."""

    images: Tensor  # n c H W, normalised
    maps: Tensor  # n h w, of the classes predicted at first
    predicted: Tensor  # n


@dataclass
class MethodRobustness:
    """One map under attack."""

    name: str
    scores: dict[str, dict[str, Tensor]]  # attack → name from ROBUSTNESS_SCORES → (n,), NaN where there is none
    shown: dict[str, Shown] = field(default_factory=dict)  # attack, and "clean"


@dataclass
class Robustness:
    """One model, and each of its maps, under attack."""

    model: ImageClassifier
    budget: Budget
    conventions: Conventions
    ids: list[str]  # n, as all tensors
    labels: Tensor  # (n,)
    predicted: Tensor  # (n,), of the images as they are
    methods: list[MethodRobustness]
    unreadable: list[str]  # a sentence each

    def accuracy(self) -> Interval:
        """Share of images, as they are, that are classified rightly."""
        return self.interval((self.predicted == self.labels).double())

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by the conventions."""
        chosen = self.conventions
        return bootstrap_interval(scores, chosen.bootstrap, chosen.confidence, chosen.seed)


def attacked_methods(model: ImageClassifier, names: Sequence[str] | None) -> dict[str, Explain]:
    """The methods of these names, by default built-in and grad-cam; "built-in" is passed over for a black box.

    Raises:
        InputError: No such method, or none is left.
    """
    asked = ("built-in", "grad-cam") if names is None else names
    left = without_missing(asked, model)
    if not left:
        raise InputError("no explanation is left to attack: a black box has no built-in map")
    return {name: differentiable(name, model) for name in left}


def judge_robustness(
    model: ImageClassifier,
    dataset: ImageDataset,
    *,
    methods: Sequence[str] | None = None,
    attacks: Sequence[str] = tuple(ATTACKS),
    budget: Budget | None = None,
    conventions: Conventions | None = None,
    reading: Reading | None = None,
    max_explained: int | None = None,
    pictures: int = 0,
    progress: bool = True,
) -> Robustness:
    """What `attacks` do to the predictions of `model` and to its maps by `methods`.

    All look at the class that the image is predicted as before the attack. The model is left as it was found.

    Args:
        model: On the device where it shall run.
        dataset: Images of one split; stored images, the model's own preprocessing is applied.
        methods: Names from `differentiable_maps.DIFFERENTIABLE`; "built-in" is passed over for a black box, which has
            none. None: built-in and grad-cam.
        attacks: Names from `ATTACKS`.
        budget: What an attack may spend.
        conventions: Those of the intervals count here.
        reading: How images are read; results do not depend on the size of a batch but for rounding.
        max_explained: Attack this many images, spread evenly over the data set; None: all.
        pictures: Keep so many of the first images for a picture.
        progress: Show a bar.

    Raises:
        InputError: Unknown method or attack, other classes than the model's, an unreadable image, no images.
    """
    check_classes(model, dataset)
    if max_explained is not None and max_explained < 1:
        raise InputError(f"at least 1 image is to be attacked, got {max_explained}")
    budget, explains = budget or Budget(), attacked_methods(model, methods)
    judge = _Judge(model, explains, attacks, budget, pictures)
    places = spread_places(dataset, len(dataset) if max_explained is None else max_explained)
    with eval_mode(model):
        parts, unreadable = worked_through(
            judge.part, model, dataset, places, reading or Reading(16), title="attacking", progress=progress
        )
    if not parts:
        raise InputError("none of the images could be read")
    found = joined(parts)
    return Robustness(
        model=model,
        budget=budget,
        conventions=conventions or Conventions(),
        ids=[identifier for part in parts for identifier in part.ids],
        labels=found["labels"],
        predicted=found["predicted"],
        methods=[
            MethodRobustness(
                name,
                {
                    attack: {score: found[f"{name}/{attack}/{score}"] for score in ROBUSTNESS_SCORES}
                    for attack in attacks
                },
                judge.shown(name),
            )
            for name in explains
        ],
        unreadable=list(unreadable.values()),
    )


class _Judge:
    """Attacks one batch after the other."""

    def __init__(
        self,
        model: ImageClassifier,
        methods: dict[str, Explain],
        attacks: Sequence[str],
        budget: Budget,
        pictures: int,
    ) -> None:
        for attack in attacks:
            if attack not in ATTACKS:
                raise unknown_name("attack", attack, ATTACKS)
        self._model, self._methods, self._attacks, self._budget = model, methods, attacks, budget
        self._left = pictures
        self._shown: dict[tuple[str, str], list[Shown]] = {}

    def shown(self, method: str) -> dict[str, Shown]:
        """The first images under each attack on them, and "clean"."""
        kept = {attack: parts for (own, attack), parts in self._shown.items() if own == method}
        return {attack: Shown(*map(torch.cat, zip(*parts, strict=True))) for attack, parts in kept.items()}

    @torch.no_grad()
    def part(self, batch: Batch) -> Part:
        """What is found of a batch."""
        model = self._model
        images = batch.images.to(next(model.parameters()).device)
        indices = image_numbers(batch.ids)
        logits = model(images, 0).logits
        classes, least = logits.argmax(1), logits.argmin(1)
        of_model = {attack: self._attacked(attack, images, classes, least, indices) for attack in self._attacks}
        tensors = {"labels": batch.labels, "predicted": classes.cpu()}
        for name, explain in self._methods.items():
            before = explain(model, images, classes)
            self._keep(name, "clean", images, before)
            for attack in self._attacks:
                changed = of_model[attack]
                if changed is None:
                    changed = attack_explanation(model, explain, images, classes, indices, self._budget)
                after = explain(model, changed, classes)
                self._keep(name, attack, changed, after)
                aim = least if attack == "targeted" else None
                for score, values in moved(before, after, classes, aim).items():
                    tensors[f"{name}/{attack}/{score}"] = values.cpu()
        self._left = max(0, self._left - len(images))
        return Part(batch.ids, tensors)

    def _attacked(self, attack: str, images: Tensor, classes: Tensor, least: Tensor, indices: Tensor) -> Tensor | None:
        """The images under an attack that knows no map; None for the one that does."""
        if attack == "noise":
            return noise(self._model, images, indices, self._budget)
        if attack == "prediction":
            return attack_prediction(self._model, images, classes, indices, self._budget)
        if attack == "targeted":
            return attack_prediction(self._model, images, least, indices, self._budget, is_targeted=True)
        return None

    def _keep(self, name: str, attack: str, images: Tensor, found: Explanation) -> None:
        if self._left:
            kept = (each[: self._left].cpu() for each in (images, found.maps, found.logits.argmax(1)))
            self._shown.setdefault((name, attack), []).append(Shown(*kept))


def moved(before: Explanation, after: Explanation, classes: Tensor, aim: Tensor | None = None) -> dict[str, Tensor]:
    """The scores of `ROBUSTNESS_SCORES`, `b` each, for classes `b`; `aim` (b) is what a targeted attack aimed at."""
    first, last = before.logits.double(), after.logits.double()

    def change(old: Tensor, new: Tensor) -> Tensor:
        return (new - old).gather(1, classes[:, None])[:, 0]

    predicted = last.argmax(1)
    alike = similarity(before.maps, after.maps)
    high, still = (high_region(found.maps, SHARE).flatten(1) for found in (before, after))
    return {
        "flipped": (predicted != first.argmax(1)).double(),
        "reached": torch.full_like(first[:, 0], torch.nan) if aim is None else (predicted == aim).double(),
        "logit": change(first, last),
        "probability": change(first.softmax(1), last.softmax(1)),
        "rank_correlation": alike.rank_correlation,
        "top_tenth": ((high & still).sum(1) / high.sum(1)).double(),  # 0 / 0, a constant map: NaN
        "ssim": alike.ssim,
    }
