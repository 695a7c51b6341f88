"""Metrics judged: which of them prefers maps that tell the truth?

Where the exact worth of every part is known, each map has a true error. A metric is as good as the order in which it
puts several maps of an image agrees with the order of their errors; and it has to put an exact map above a random one,
and that above the exact map turned over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor
from torch.nn import functional

from ..common.seeds import mixed_seed
from ..models import InterpretableClassifier
from .benchmark import Evaluation
from .map_similarity import mean_ranks
from .maps import MapMethod
from .metrics import METRICS
from .statistics import Interval
from .truth_scores import correctness

EXACT, NEGATED, RANDOM = "exact", "negated", "random"
_CELLS = 8  # a side, of coarse maps and noise
_SHIFT = 8  # pixels
_NOISE = {"noise 25 %": 0.25, "noise 50 %": 0.5, "noise 75 %": 0.75}


@dataclass(frozen=True)
class MetricJudgement:
    """How a metric stands to the truth."""

    metric: str
    agreement: Interval  # rank correlation over the maps of an image of score and truth, mean over images: −1..1
    ladder: tuple[Interval, ...] = ()  # its scores of the exact map, a random one and the negated one

    @property
    def climbs(self) -> bool:
        """Whether exact is better than random and random than negated, with intervals that do not touch."""
        sign = 1 if METRICS[self.metric].best == "highest" else -1
        bounds = [sorted((sign * each.low, sign * each.high)) for each in self.ladder]
        return len(bounds) == 3 and all(better[0] > worse[1] for better, worse in pairwise(bounds))


def true_errors(maps: Tensor, parts: Tensor, shapley: Tensor, *, counts_elsewhere: bool) -> Tensor:
    """How far maps `m b h w` miss the exact worth of the parts, `m b` in 0..1: 0 exact, 1 no better than an empty map.

    `truth_scores.correctness`'s error; with `counts_elsewhere` what lies outside all parts is one more, worth nothing.

    Args:
        maps: At the parts' resolution.
        parts: `b p h w` bool.
        shapley: `b p`.
        counts_elsewhere: Only right where the model is known to use nothing else.
    """
    places = torch.cat([parts, ~parts.any(1, keepdim=True)], 1) if counts_elsewhere else parts
    worth = functional.pad(shapley, (0, places.shape[1] - shapley.shape[1]))
    sums = torch.einsum("mbhw,bphw->mbp", maps.double(), places.double())
    return correctness(sums, worth).error


def order_agreement(scores: Tensor, truth: Tensor) -> Tensor:
    """Spearman's correlation over the maps of an image, of scores `m b` and truth `m b`: `b`.

    Maps without a score (NaN) are left out; an image with fewer than three, or of which all scores are equal, is NaN.
    """
    found = []
    for own, true in zip(scores.T, truth.T, strict=True):
        known = ~(own.isnan() | true.isnan())
        ranks = mean_ranks(torch.stack([own[known].double(), true[known].double()]))
        centred = ranks - ranks.mean(1, keepdim=True)
        norm = centred.square().sum(1).prod().sqrt()
        is_enough = int(known.sum()) >= 3 and norm > 0
        found.append(centred.prod(0).sum() / norm if is_enough else torch.tensor(torch.nan).double())
    return torch.stack(found)


def judge_metrics(judged: Evaluation, errors: Tensor) -> list[MetricJudgement]:
    """Every metric of `judged` that scores these images, the one that agrees best first.

    Of a metric that has one score for the whole set, that score and the mean error are ranked, in resamples of the set.

    Args:
        judged: Maps of m methods of b images.
        errors: `m b`, of the same maps.
    """
    by_name = {method.name: method for method in judged.methods}
    ladder = (EXACT, RANDOM, NEGATED)
    rungs = [by_name[name] for name in ladder] if by_name.keys() >= set(ladder) else []
    found = []
    for metric in judged.methods[0].metrics:
        if metric in judged.methods[0].pooled:
            agreement = _pooled_agreement(judged, metric, errors)
        elif len(judged.methods[0].scores[metric]) == errors.shape[1]:
            scores = torch.stack([method.scores[metric] for method in judged.methods])
            agreement = judged.interval(order_agreement(_sign(metric) * scores, -errors))
        else:
            continue  # of mosaics
        found.append(MetricJudgement(metric, agreement, tuple(judged.score(rung, metric) for rung in rungs)))
    return sorted(found, key=lambda each: -each.agreement.mean if each.agreement.images else 2.0)


def _sign(metric: str) -> int:
    return 1 if METRICS[metric].best == "highest" else -1


def _pooled_agreement(judged: Evaluation, metric: str, errors: Tensor) -> Interval:
    pool = METRICS[metric].pool
    assert pool is not None
    chosen, count = judged.conventions, errors.shape[1]
    drawn = torch.randint(count, (chosen.bootstrap, count), generator=torch.Generator().manual_seed(chosen.seed))
    resampled = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    counts = torch.cat([torch.ones(1, count, dtype=torch.float64), resampled])  # the set itself comes first
    scores = torch.stack([pool(method.pooled[metric], counts) for method in judged.methods])  # m r
    agreement = order_agreement(_sign(metric) * scores, -(errors.double() @ counts.T))
    tail = (1 - chosen.confidence) / 2
    low, high = agreement[1:].nanquantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return Interval(agreement[0].item(), low, high, count, 0)


Maker = Callable[[InterpretableClassifier], MapMethod]


def graded_maps() -> dict[str, Maker]:
    """Makers of maps of known quality for a programmed classifier, by name, from exact to turned over.

    `exact`: the worth of every pixel. `coarse`: that on 8 × 8 cells. `noise 25 %` …: so much of its mass is smooth
    noise. `equal parts`: the right parts with the right sign, all alike. `strongest part`: one alone. `unsigned`: what
    speaks against counts for. `shifted`: by an eighth of the side. `other class`. `negated`.
    """
    return {
        EXACT: _of_exact(EXACT, lambda maps, indices: maps),
        "coarse": _of_exact("coarse", lambda maps, indices: _coarse(maps)),
        **{name: _of_exact(name, partial(_noisy, share=share)) for name, share in _NOISE.items()},
        "equal parts": _of_parts("equal parts", lambda sums: sums.sign()),
        "strongest part": _of_parts("strongest part", lambda sums: sums * (sums == sums.amax(1, keepdim=True))),
        "unsigned": _of_exact("unsigned", lambda maps, indices: maps.abs()),
        "shifted": _of_exact("shifted", lambda maps, indices: maps.roll((_SHIFT, _SHIFT), (1, 2))),
        "other class": _other_class,
        NEGATED: _of_exact(NEGATED, lambda maps, indices: -maps),
    }


def _of_exact(name: str, change: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    def make(model: InterpretableClassifier) -> MapMethod:
        return MapMethod(
            name, "post-hoc", lambda images, classes, indices: change(model(images, classes).maps[:, 0], indices)
        )

    return make


def _other_class(model: InterpretableClassifier) -> MapMethod:
    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        return model(images, (classes + 1) % model.num_classes).maps[:, 0]

    return MapMethod("other class", "post-hoc", explain)


def _of_parts(name: str, change: Callable[[Tensor], Tensor]) -> Maker:
    """Maps that give each part, the pixels that a feature of the model sees, another sum."""

    def make(model: InterpretableClassifier) -> MapMethod:
        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            features = model.backbone(images)
            assert isinstance(features, Tensor)
            weights = model.head.get_parameter("classifier.weight")[classes]
            sums = change(weights * features.sum((2, 3)))  # b slot
            shares = features / features.sum((2, 3), keepdim=True).clamp(min=1e-6)
            return torch.einsum("bs,bshw->bhw", sums, shares)

        return MapMethod(name, "post-hoc", explain)

    return make


def _coarse(maps: Tensor) -> Tensor:
    cell = maps.shape[-1] // _CELLS
    cells = reduce(maps, "b (h y) (w x) -> b h w", "mean", y=cell, x=cell)
    return repeat(cells, "b h w -> b (h y) (w x)", y=cell, x=cell)


def _noisy(maps: Tensor, indices: Tensor, share: float) -> Tensor:
    """So much of the absolute mass is noise: normal numbers on 8 × 8 cells, stretched over the image."""
    generators = [torch.Generator().manual_seed(mixed_seed(17, index)) for index in indices.tolist()]
    drawn = torch.stack([torch.randn(_CELLS, _CELLS, generator=own) for own in generators]).to(maps)
    size = (maps.shape[-2], maps.shape[-1])
    noise = functional.interpolate(rearrange(drawn, "b h w -> b 1 h w"), size=size, mode="bilinear")[:, 0]

    def mass(values: Tensor) -> Tensor:
        return values.abs().sum((1, 2), keepdim=True).clamp(min=1e-12)

    return (1 - share) * maps / mass(maps) + share * noise / mass(noise)
