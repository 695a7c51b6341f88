"""Scores all methods on one batch after the other, and what the batches add up to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..data.loading import image_numbers
from ..data.samples import Batch
from ..models import ImageClassifier
from .conventions import Conventions
from .cost import Meter, peak_memory
from .judged import CURVE, POOLED, Judged, Metric
from .localisation import chance_level
from .maps import MapMethod
from .parts import Part, joined

EVIDENCE = 255  # the value of the evidence proper in a mask


@dataclass
class MethodScores:
    """One method's scores: an entry an image, mean curves, cost."""

    name: str
    kind: str
    scores: dict[str, Tensor] = field(default_factory=dict)  # metric → (n,), NaN where there is none
    pooled: dict[str, Tensor] = field(default_factory=dict)  # metric of the whole set → what each image gives, (n, …)
    curves: dict[str, Tensor] = field(default_factory=dict)  # metric → mean curve (k + 1,)
    cost: dict[str, float] = field(default_factory=dict)
    gaps: Tensor = field(default_factory=lambda: torch.zeros(0))  # (n,) of its sum, NaN where it claims none

    @property
    def gap(self) -> float:
        """Completeness gap of its sum at the worst image, relative to what it owes; NaN where it claims none."""
        known = self.gaps[~self.gaps.isnan()]
        return known.max().item() if len(known) else torch.nan

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics by which it was scored."""
        return [*self.scores, *self.pooled]


class Scorer:
    """Scores all methods on one batch after the other."""

    def __init__(
        self,
        model: ImageClassifier,
        methods: Sequence[MapMethod],
        metrics: Sequence[Metric],
        conventions: Conventions,
        chunk: int,
    ) -> None:
        self._model, self._methods, self._conventions, self._chunk = model, methods, conventions, chunk
        self._names = {metric.name for metric in metrics}
        self._sweeps = list(dict.fromkeys(metric.sweep for metric in metrics if metric.sweep))
        self._is_warm = False

    @torch.no_grad()
    def part(self, batch: Batch) -> Part:
        """Explain and score one batch. Tensors come by name, images first: "chance", "gap" and METRIC: `b m`."""
        model = self._model
        batch = batch.to(next(model.parameters()).device)
        indices = image_numbers(batch.ids)
        if not self._is_warm:
            model(batch.images, explain=0)  # the first call of anything is slow, and is not timed
        plain = Meter()
        logits = plain.measure(model, len(batch.ids), lambda: model(batch.images, explain=0).logits)
        classes = logits.argmax(1) if self._conventions.target == "predicted" else batch.labels
        meters = [Meter() for _ in self._methods]
        if not self._is_warm:
            one = batch.images[:1], classes[:1], indices[:1]
            for method, meter in zip(self._methods, meters, strict=True):
                method.explain(batch.images, classes, indices)
                meter.peak = peak_memory(lambda: method.explain(*one), batch.images.device)  # noqa: B023
            self._is_warm = True
        maps = [
            meter.measure(model, len(batch.ids), lambda: method.explain(batch.images, classes, indices))  # noqa: B023
            for method, meter in zip(self._methods, meters, strict=True)
        ]
        evidence = (batch.masks == EVIDENCE) & batch.has_mask[:, None, None]
        judged = Judged(
            model,
            self._methods,
            maps,
            batch.images,
            classes,
            indices,
            evidence,
            batch.boxes,
            self._conventions,
            self._chunk,
        )
        tensors = {"chance": chance_level(evidence).cpu(), "gap": self._gaps(batch.images, logits, classes, maps)}
        if maps:
            # A map with a hole in it has no score, and no metric may invent one.
            is_broken = torch.stack([~own.isfinite().flatten(1).all(1) for own in maps])
            for sweep in self._sweeps:
                for name, values in sweep(judged).items():
                    if name.partition("/")[0] in self._names:
                        if name in self._names:
                            values = values.masked_fill(is_broken.to(values.device), torch.nan)
                        tensors[name] = values.transpose(0, 1).cpu()
        costs = {method.name: asdict(meter) for method, meter in zip(self._methods, meters, strict=True)}
        return Part(batch.ids, tensors, {"plain": asdict(plain), "costs": costs})

    def _gaps(self, images: Tensor, logits: Tensor, classes: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """How far the maps that claim to complete miss what they owe, relative to it: `b m`, NaN for all others."""
        gaps = torch.full((len(images), len(maps)), torch.nan)
        if any(method.completes for method in self._methods):
            nothing = self._model(torch.zeros_like(images[:1]), explain=0).logits
            owed = (logits - nothing).float().gather(1, classes[:, None])[:, 0]
            for column, (method, own) in enumerate(zip(self._methods, maps, strict=True)):
                if method.completes:
                    due = method.owed(images, classes) if method.owed else owed
                    gaps[:, column] = ((own.flatten(1).sum(1) - due) / due).abs().cpu()
        return gaps


def summaries(methods: Sequence[MapMethod], metrics: Sequence[str], parts: Sequence[Part]) -> list[MethodScores]:
    """Each method's scores, methods and metrics in the order asked for."""
    found = joined(parts)
    plain = Meter.merged(part.about["plain"] for part in parts)
    summaries = []
    for row, method in enumerate(methods):
        own = {name: values[:, row] for name, values in found.items() if name != "chance"}
        gaps = own.pop("gap", torch.zeros(0))
        cost = Meter.merged(part.about["costs"][method.name] for part in parts)
        summaries.append(
            MethodScores(
                name=method.name,
                kind=method.kind,
                scores={name: own[name] for name in metrics if name in own},
                pooled={name: own[name + POOLED] for name in metrics if name + POOLED in own},
                curves={name: own[name + CURVE].mean(0) for name in metrics if name + CURVE in own},
                cost=cost.summary(plain) if parts else {},
                gaps=gaps,
            )
        )
    return summaries
