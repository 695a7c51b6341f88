"""Judges a model: is it right, and which of its explanations can be believed? One sweep scores all methods."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.environment import code_version
from ..common.errors import InputError
from ..data.loading import OnError
from ..data.samples import Batch, ImageDataset, are_numbers, targets_of
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .accuracy import (
    Selective,
    average_precision,
    brier_score,
    expected_calibration_error,
    selective_accuracy,
    topk_correct,
)
from .completeness import completeness_gap
from .conventions import Conventions
from .methods import map_method, quick_methods, without_missing
from .metrics import QUICK_METRICS, chosen_metrics
from .mosaics import score_mosaics
from .parts import Part, Reading, forget, from_first, joined, worked_through
from .prototype_scores import PrototypeScores, judge_prototypes
from .scoring import MethodScores, Scorer, summaries
from .statistics import Interval, bootstrap_interval, pooled_interval


@dataclass
class Evaluation:
    """All that was found out about one model on one data set."""

    model: ImageClassifier
    class_names: tuple[str, ...]  # the data set's, which are the model's as well, if it has any
    conventions: Conventions
    ids: list[str]  # n, as all per-image tensors
    labels: Tensor  # (n,)
    logits: Tensor  # n c
    gaps: Tensor  # (n,) completeness gap of the top class; NaN for a black box
    explained_ids: list[str]  # the images whose maps were scored
    chance: Tensor  # the mask's share of each explained image
    methods: list[MethodScores]
    unreadable: list[str]  # a sentence each
    prototypes: PrototypeScores | None = None  # of all images; None for a head without prototypes
    notes: list[str] = field(default_factory=list)  # why a score that was asked for is not there, a sentence each
    targets: Tensor | None = None  # n c, 0 or 1, where images can show several classes; `labels` mean nothing then

    @property
    def probabilities(self) -> Tensor:
        """`n c`."""
        return self.model.probabilities(self.logits)

    @property
    def measure(self) -> str:
        """Which of `MEASURES` judges the model: a key of `accuracy`."""
        return "top1" if self.targets is None else "map"

    def accuracy(self) -> dict[str, Interval]:
        """Top-1 and top-5, as shares with intervals; where images can show several classes, mean average precision."""
        if self.targets is not None:
            chosen = self.conventions
            ranked = torch.cat([self._ranked_by, self.targets.to(self.logits)], dim=1)
            return {"map": pooled_interval(ranked, _mean_precision, chosen.bootstrap, chosen.confidence, chosen.seed)}
        return {f"top{k}": self.interval(topk_correct(self.logits, self.labels, k).float()) for k in (1, 5)}

    @property
    def _ranked_by(self) -> Tensor:
        """What images are ranked by for each class, `n c`; sigmoids would round the surest alike."""
        return self.logits if self.model.config.multi_label else self.probabilities

    def precisions(self) -> dict[str, float]:
        """Average precision by class, where images can show several; NaN for one that none shows."""
        if self.targets is None:
            return {}
        return dict(zip(self.class_names, average_precision(self._ranked_by, self.targets).tolist(), strict=True))

    def told_labels(self) -> list[str]:
        """What each image shows, by name; several names where it shows several classes."""
        if self.targets is None:
            return [self.class_names[label] for label in self.labels.tolist()]
        return [" + ".join(compress(self.class_names, row)) or "none" for row in self.targets.tolist()]

    def calibration_error(self) -> float:
        """Expected calibration error, 0..1."""
        return expected_calibration_error(self.probabilities, self.labels)

    def brier(self) -> Interval:
        """The Brier score, 0..2, with its interval."""
        return self.interval(brier_score(self.probabilities, self.labels))

    def selective(self) -> Selective:
        """Accuracy where the model answers its surest images alone, by their share."""
        return selective_accuracy(self.probabilities, self.labels)

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by this evaluation's conventions."""
        chosen = self.conventions
        return bootstrap_interval(scores, chosen.bootstrap, chosen.confidence, chosen.seed)

    def score(self, method: MethodScores, metric: str) -> Interval:
        """A method's score by `metric`, with its interval over images."""
        if metric in method.scores:
            return self.interval(method.scores[metric])
        (found,) = chosen_metrics([metric])
        chosen = self.conventions
        assert found.pool is not None
        return pooled_interval(method.pooled[metric], found.pool, chosen.bootstrap, chosen.confidence, chosen.seed)


def evaluate(
    model: ImageClassifier,
    dataset: ImageDataset,
    *,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] = QUICK_METRICS,
    conventions: Conventions | None = None,
    batch_size: int = 32,
    max_explained: int | None = None,
    judges_prototypes: bool = True,
    num_workers: int = 0,
    on_error: OnError = "raise",
    progress: bool = True,
    store: Path | None = None,
) -> Evaluation:
    """Accuracy on all of `dataset`, and the maps of `methods` scored by `metrics`, in one sweep, on all or some of it.

    The prototypes of a head that has some are judged on all of it as well (`judge_prototypes`).

    The model is left as it was found. "built-in" is passed over for a black box, which has no map. Under
    torch.distributed every process does its share of the batches, and all get the same evaluation.

    Args:
        model: On the device where it shall run.
        dataset: Images of one split; stored images, the model's own preprocessing is applied.
        methods: Names from `METHODS`; None: those that are quick and installed.
        metrics: Names from `METRICS`; those that need masks give NaN where there is none.
        conventions: What scores depend on.
        batch_size: Images a forward pass, in the sweep as well; results do not depend on it.
        max_explained: Score the maps of this many images, spread evenly over the data set; None: all.
        judges_prototypes: Look at all images again for the prototypes of a head that has some.
        num_workers: Processes that read images.
        on_error: Stop at an unreadable image, or leave it out and list it.
        progress: Show a bar.
        store: A folder for what each batch gave, so that a killed evaluation, asked for again, goes on where it was.

    Raises:
        InputError: Unknown method or metric, other classes than the model's, unreadable image, no images; what
            needs one label an image, where images can show several classes.
    """
    wanted_metrics = chosen_metrics(metrics)
    check_classes(model, dataset)
    asked = quick_methods() if methods is None else methods
    wanted = without_missing(asked, model)
    judged = [map_method(name, model) for name in wanted]
    conventions = conventions or Conventions()
    if targets_of(dataset) is not None:
        if conventions.target == "label":
            raise InputError("maps of the label cannot be judged where images show several classes or none")
        if refused := [metric.name for metric in wanted_metrics if metric.sweep is None]:
            raise InputError(
                f"metric {refused[0]!r} needs images of one class each, but here they show several or none"
            )
    reading = Reading(batch_size, num_workers, on_error)
    if store:
        store = store / fingerprint(model, dataset, wanted, metrics, conventions, batch_size, max_explained)
    scorer = Scorer(model, judged, wanted_metrics, conventions, batch_size)
    shared: dict[str, Any] = {"store": store, "progress": progress}

    with eval_mode(model):
        predictions, unreadable = worked_through(
            lambda batch: _predicted(model, batch), model, dataset, range(len(dataset)), reading, title="predicting",
            **shared,
        )  # fmt: skip
        if not predictions:
            raise InputError("none of the images could be read")
        places = _spread(len(dataset), max_explained)
        explained, _ = worked_through(scorer.part, model, dataset, places, reading, title="explaining", **shared)
        predicted = joined(predictions)
        scored = summaries(judged, metrics, explained)
        of_mosaics, notes = score_mosaics(
            model, judged, dataset, model.probabilities(predicted["logits"]), predicted["labels"], conventions, metrics,
            max_explained, reading, **shared,
        )  # fmt: skip
        for row, method in enumerate(scored):
            method.scores.update({name: scores[row] for name, scores in of_mosaics.items()})
    again: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
    prototypes = (
        from_first(lambda: judge_prototypes(model, dataset, seed=conventions.seed, progress=progress, **again))
        if judges_prototypes
        else None
    )
    result = Evaluation(
        model=model,
        class_names=model.config.class_names or dataset.classes,
        conventions=conventions,
        ids=[identifier for part in predictions for identifier in part.ids],
        labels=predicted["labels"],
        logits=predicted["logits"],
        gaps=predicted["gaps"],
        explained_ids=[identifier for part in explained for identifier in part.ids],
        chance=joined(explained).get("chance", torch.zeros(0)),
        methods=scored,
        unreadable=list(unreadable.values()),
        prototypes=prototypes,
        notes=notes,
        targets=predicted["targets"] if targets_of(dataset) is not None else None,
    )
    if store:
        forget(store)
    return result


def check_classes(model: ImageClassifier, dataset: ImageDataset) -> None:
    """Refuse a data set whose classes are not the model's.

    Raises:
        InputError: Other names, or another number of classes where the model knows no names. Of classes that are only
            numbers the data set need not show the last.
    """
    own, given = model.config.class_names, dataset.classes
    if own and are_numbers(own) and are_numbers(given) and len(given) <= len(own) and targets_of(dataset) is None:
        return
    if (own or given) != given or model.num_classes != len(given):
        raise InputError(
            f"the model knows {_listed(own, model.num_classes)}, but the data set has {_listed(given, len(given))}"
        )


@torch.no_grad()
def _predicted(model: ImageClassifier, batch: Batch) -> Part:
    """Labels, logits and the top class's completeness gap."""
    out = model(batch.images.to(next(model.parameters()).device), explain=1)
    gap = completeness_gap(out, model.contract).float().cpu()
    gaps = gap[:, 0] if gap.shape[1] else torch.full((len(batch.ids),), torch.nan)
    found = {"labels": batch.labels, "targets": batch.targets, "logits": out.logits.float().cpu(), "gaps": gaps}
    return Part(batch.ids, found)


def _mean_precision(values: Tensor, counts: Tensor) -> Tensor:
    """`r`, from what images are ranked by and whether they show each class, `n 2c`, and `r n`."""
    scores, targets = values.chunk(2, dim=1)
    return average_precision(scores, targets, counts).nanmean(1)


def fingerprint(model: ImageClassifier, dataset: ImageDataset, *choices: object) -> str:
    """What parts depend on, in short: only those of the same code, weights, images and choices are taken up again."""
    digest = sha256(f"{code_version()} {torch.__version__} {model.config.to_json()} {choices}".encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(dataset.labels.numpy().tobytes())
    if (targets := targets_of(dataset)) is not None:
        digest.update(targets.numpy().tobytes())
    return digest.hexdigest()[:16]


def _spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` places, evenly spaced from the first on; all of them where None or too many are wanted."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def _listed(names: tuple[str, ...] | None, count: int) -> str:
    if not names:
        return f"{count} unnamed classes"
    return f"{count} classes ({', '.join(names[:6])}{', …' if count > 6 else ''})"
