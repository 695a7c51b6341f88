"""Judges a model: is it right, and which of its explanations can be believed? One sweep scores all methods."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError, unknown_name
from ..data.loading import Loader, OnError
from ..data.samples import Batch, ImageDataset
from ..data.subsets import Subset
from ..heads import Contract
from ..models import Grid, ImageClassifier
from ..models.eval_mode import eval_mode
from .accuracy import expected_calibration_error, topk_correct
from .completeness import completeness_gap
from .conventions import Conventions
from .cost import Meter
from .localisation import chance_level, energy_pointing_game, pointing_game
from .maps import placed, stacked
from .methods import MapMethod, installed_methods, map_method
from .perturbation import deletion, insertion
from .prototype_scores import PrototypeScores, judge_prototypes
from .statistics import Interval, bootstrap_interval

CURVE_METRICS = {"insertion": insertion, "deletion": deletion}
MASK_METRICS = {"energy_pointing_game": energy_pointing_game, "pointing_game": pointing_game}
MAP_METRICS = (*CURVE_METRICS, *MASK_METRICS)
EVIDENCE = 255  # the value of the evidence proper in a mask


@dataclass
class MethodScores:
    """One method's scores: an entry an image, mean curves, cost."""

    name: str
    kind: str
    scores: dict[str, Tensor] = field(default_factory=dict)  # metric → (n,), NaN where there is none
    curves: dict[str, Tensor] = field(default_factory=dict)  # metric → mean curve (k + 1,)
    cost: dict[str, float] = field(default_factory=dict)


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

    @property
    def probabilities(self) -> Tensor:
        """`n c`."""
        return self.logits.softmax(1)

    def accuracy(self) -> dict[str, Interval]:
        """Top-1 and top-5, as shares with intervals."""
        return {f"top{k}": self.interval(topk_correct(self.logits, self.labels, k).float()) for k in (1, 5)}

    def calibration_error(self) -> float:
        """Expected calibration error, 0..1."""
        return expected_calibration_error(self.probabilities, self.labels)

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by this evaluation's conventions."""
        chosen = self.conventions
        return bootstrap_interval(scores, chosen.bootstrap, chosen.confidence, chosen.seed)


def evaluate(
    model: ImageClassifier,
    dataset: ImageDataset,
    *,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] = MAP_METRICS,
    conventions: Conventions | None = None,
    batch_size: int = 32,
    max_explained: int | None = None,
    judges_prototypes: bool = True,
    num_workers: int = 0,
    on_error: OnError = "raise",
    progress: bool = True,
) -> Evaluation:
    """Accuracy on all of `dataset`, and the maps of `methods` scored by `metrics`, in one sweep, on all or some of it.

    The prototypes of a head that has some are judged on all of it as well (`judge_prototypes`).

    The model is left as it was found. "built-in" is passed over for a black box, which has no map.

    Args:
        model: On the device where it shall run.
        dataset: Images of one split; stored images, the model's own preprocessing is applied.
        methods: Names from `METHODS`; None: all that are installed.
        metrics: Names from `MAP_METRICS`; those that need masks are left out where `dataset` has none.
        conventions: What scores depend on.
        batch_size: Images a forward pass, in the sweep as well; results do not depend on it.
        max_explained: Score the maps of this many images, spread evenly over the data set; None: all.
        judges_prototypes: Look at all images again for the prototypes of a head that has some.
        num_workers: Processes that read images.
        on_error: Stop at an unreadable image, or leave it out and list it.
        progress: Show a bar.

    Raises:
        InputError: Unknown method or metric, other classes than the model's, unreadable image, no images.
    """
    for metric in metrics:
        if metric not in MAP_METRICS:
            raise unknown_name("metric", metric, MAP_METRICS)
    check_classes(model, dataset)
    asked = installed_methods() if methods is None else methods
    wanted = [name for name in asked if not (name == "built-in" and model.contract is Contract.NONE)]
    judged = [map_method(name, model) for name in wanted]
    sweep = _Sweep(model, judged, metrics, conventions or Conventions(), batch_size)

    def loader(part: ImageDataset) -> Loader:
        return Loader(part, model.preprocess, batch_size, num_workers=num_workers, on_error=on_error)

    with eval_mode(model):
        everything = loader(dataset)
        ids, labels, logits, gaps = _predictions(model, tqdm(everything, "predicting", disable=not progress))
        some = loader(Subset(dataset, _spread(len(dataset), max_explained)))
        for batch in tqdm(some, "explaining", disable=not progress):
            sweep.add(batch)
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "on_error": on_error}
    prototypes = (
        judge_prototypes(model, dataset, seed=sweep.conventions.seed, progress=progress, **reading)
        if judges_prototypes
        else None
    )
    return Evaluation(
        model=model,
        class_names=dataset.classes,
        conventions=sweep.conventions,
        ids=ids,
        labels=labels,
        logits=logits,
        gaps=gaps,
        explained_ids=sweep.ids,
        chance=torch.cat(sweep.chance),
        methods=sweep.results(),
        unreadable=[missing.reason for missing in everything.unreadable.values()],
        prototypes=prototypes,
    )


def check_classes(model: ImageClassifier, dataset: ImageDataset) -> None:
    """Refuse a data set whose classes are not the model's.

    Raises:
        InputError: Other names, or another number of classes where the model knows no names.
    """
    own, given = model.config.class_names, dataset.classes
    if (own or given) != given or model.num_classes != len(given):
        raise InputError(
            f"the model knows {_listed(own, model.num_classes)}, but the data set has {_listed(given, len(given))}"
        )


class _Sweep:
    """Scores all methods on one batch after the other."""

    def __init__(
        self,
        model: ImageClassifier,
        methods: Sequence[MapMethod],
        metrics: Sequence[str],
        conventions: Conventions,
        chunk: int,
    ) -> None:
        self.conventions = conventions
        self.ids: list[str] = []
        self.chance: list[Tensor] = []
        self._model, self._methods, self._metrics, self._chunk = model, methods, metrics, chunk
        self._plain = Meter()
        self._meters = [Meter() for _ in methods]
        self._scores: dict[str, list[Tensor]] = defaultdict(list)  # metric → m b, a batch
        self._curves: dict[str, list[Tensor]] = defaultdict(list)  # metric → m b (k + 1)

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Explain and score one batch."""
        indices = torch.arange(len(self.ids), len(self.ids) + len(batch.ids))
        self.ids += batch.ids
        model, size = self._model, (batch.images.shape[-2], batch.images.shape[-1])
        batch = batch.to(next(model.parameters()).device)
        if is_first := not self.chance:
            self._logits(batch.images)  # the first call of anything is slow, and is not timed
        logits = self._plain.measure(model, len(batch.ids), lambda: self._logits(batch.images))
        classes = logits.argmax(1) if self.conventions.target == "predicted" else batch.labels
        if is_first:
            for method in self._methods:
                method.explain(batch.images, classes, indices)
        maps = torch.cat(
            [
                placed(
                    stacked(self._explain(method, meter, batch, classes, indices), len(batch.ids)),
                    size,
                    self._grid(method),
                )
                for method, meter in zip(self._methods, self._meters, strict=True)
            ]
        )
        # A map with a hole in it has no score, and no metric may invent one.
        is_broken = ~maps.isfinite().all(-1).all(-1)
        evidence = (batch.masks == EVIDENCE) & batch.has_mask[:, None, None]
        self.chance.append(chance_level(evidence).cpu())
        for name in self._metrics:
            if name in MASK_METRICS:
                scores = MASK_METRICS[name](maps, evidence)
            else:
                step = -(-size[0] * size[1] // self.conventions.steps)
                curves = CURVE_METRICS[name](self._watched, batch.images, maps, classes, step, self._chunk)
                self._curves[name].append(curves.scores.cpu())
                scores = curves.auc
            self._scores[name].append(scores.masked_fill(is_broken, torch.nan).cpu())

    def results(self) -> list[MethodScores]:
        """A summary for each method, in the order asked for."""
        scores = {name: torch.cat(parts, 1) for name, parts in self._scores.items()}
        curves = {name: torch.cat(parts, 1).mean(1) for name, parts in self._curves.items()}
        return [
            MethodScores(
                name=method.name,
                kind=method.kind,
                scores={name: values[row] for name, values in scores.items()},
                curves={name: values[row] for name, values in curves.items()},
                cost=self._meters[row].summary(self._plain),
            )
            for row, method in enumerate(self._methods)
        ]

    def _explain(self, method: MapMethod, meter: Meter, batch: Batch, classes: Tensor, indices: Tensor) -> Tensor:
        return meter.measure(self._model, len(batch.ids), lambda: method.explain(batch.images, classes, indices))

    def _grid(self, method: MapMethod) -> Grid | None:
        return self.conventions.placing(self._model.grid) if method.is_on_grid else None

    def _logits(self, images: Tensor) -> Tensor:
        return self._model(images, explain=0).logits

    def _watched(self, images: Tensor, classes: Tensor) -> Tensor:
        logits = self._logits(images).float()
        output = logits.softmax(1) if self.conventions.output == "probability" else logits
        return output.gather(1, classes[:, None])[:, 0]


@torch.no_grad()
def _predictions(model: ImageClassifier, batches: Iterable[Batch]) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Ids, labels, logits and the top class's completeness gap of all images."""
    device = next(model.parameters()).device
    ids: list[str] = []
    labels, logits, gaps = [], [], []
    for batch in batches:
        out = model(batch.images.to(device), explain=1)
        ids += batch.ids
        labels.append(batch.labels)
        logits.append(out.logits.float().cpu())
        gap = completeness_gap(out, model.contract).float().cpu()
        gaps.append(gap[:, 0] if gap.shape[1] else torch.full((len(batch.ids),), torch.nan))
    if not ids:
        raise InputError("none of the images could be read")
    return ids, torch.cat(labels), torch.cat(logits), torch.cat(gaps)


def _spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` places, evenly spaced from the first on; all of them where None or too many are wanted."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def _listed(names: tuple[str, ...] | None, count: int) -> str:
    if not names:
        return f"{count} unnamed classes"
    return f"{count} classes ({', '.join(names[:6])}{', …' if count > 6 else ''})"
