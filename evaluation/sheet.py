"""Several models on one sheet: a row for each model and explanation method, with what it scores and what it costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..common.errors import InputError
from .benchmark import Evaluation
from .conventions import Conventions
from .judged import Metric
from .map_similarity import rank_correlation
from .metrics import METRICS, chosen_metrics
from .scoring import MethodScores
from .statistics import Interval

NO_MAP = "none"  # method and kind of the row of a model that was asked for no map which it has
_FRONT_BY = "insertion"  # unless another metric is asked for


@dataclass(frozen=True)
class Row:
    """One model under one explanation method."""

    model: str
    method: str
    kind: str  # of the method: built-in, post-hoc or control
    accuracy: Interval  # of the model, by the sheet's measure
    scores: dict[str, Interval] = field(default_factory=dict)  # by metric; an interval without images is all NaN
    cost: dict[str, float] = field(default_factory=dict)
    gap: float = torch.nan  # completeness gap at the worst image; of built-in maps and those that claim to add up
    curves: dict[str, Tensor] = field(default_factory=dict)  # metric → mean curve (k + 1,)

    @property
    def is_explanation(self) -> bool:
        """Whether it can be on the front and counts in the correlations: no control, and not without a map."""
        return self.kind not in ("control", NO_MAP)

    def score(self, metric: str) -> float:
        """Its mean by `metric`; NaN where there is none."""
        return self.scores[metric].mean if metric in self.scores else torch.nan


class Sheet:
    """Evaluations of several models on one data set, side by side.

    Args:
        evaluations: With the model's name in the sheet; all of the same images, by the same conventions.
        front_by: The metric that, with accuracy, spans the Pareto front; None: insertion, or the first there is.

    Raises:
        InputError: A name occurs twice, evaluations of different images or conventions, an unknown metric or one that
            was not scored.
    """

    def __init__(self, evaluations: Sequence[tuple[str, Evaluation]], front_by: str | None = None) -> None:
        if not evaluations:
            raise InputError("a sheet needs at least one evaluation")
        check_names([name for name, _ in evaluations])
        self.evaluations = dict(evaluations)
        for name, evaluation in evaluations:
            self._check_alike(name, evaluation)
        self.rows = [row for name, evaluation in evaluations for row in _rows(name, evaluation)]
        scored = {name for row in self.rows for name in row.scores}
        self.metrics: list[Metric] = chosen_metrics(name for name in METRICS if name in scored)
        self.front_by = _front_metric(front_by, [metric.name for metric in self.metrics])

    @property
    def first(self) -> Evaluation:
        """The first model's; conventions, images and classes are all the others' as well."""
        return next(iter(self.evaluations.values()))

    @property
    def measure(self) -> str:
        """Which of `MEASURES` judges the models."""
        return self.first.measure

    @property
    def conventions(self) -> Conventions:
        """What the scores depend on."""
        return self.first.conventions

    @property
    def costs(self) -> list[str]:
        """The names of what any row's cost holds."""
        return list(dict.fromkeys(name for row in self.rows for name in row.cost))

    @cached_property
    def on_front(self) -> list[bool]:
        """Of each row, whether no other is as good in accuracy and `front_by`, and better in one."""
        if self.front_by is None:
            return [False] * len(self.rows)
        points = torch.stack(
            [_column([row.accuracy.mean for row in self.rows]), self._scores(self.front_by, self.rows)], 1
        )
        points[[not row.is_explanation for row in self.rows]] = torch.nan
        return pareto_front(points).tolist()

    @cached_property
    def correlation(self) -> Tensor:
        """Spearman's rank correlation between the metrics, `m m`, over the rows that are explanations.

        Directions are aligned: + where two metrics agree on which maps are better.
        """
        rows = [row for row in self.rows if row.is_explanation]
        columns = [self._scores(metric, rows) for metric in self.metrics]
        return torch.tensor([[spearman(one, two) for two in columns] for one in columns]).reshape(
            len(columns), len(columns)
        )

    @staticmethod
    def _scores(metric: Metric, rows: Sequence[Row]) -> Tensor:
        """Of each row, turned so that higher is better."""
        scores = _column([row.score(metric.name) for row in rows])
        return scores if metric.best == "highest" else -scores

    def _check_alike(self, name: str, evaluation: Evaluation) -> None:
        same = self.first
        if evaluation.conventions != same.conventions:
            differing = [key for key, value in asdict(same.conventions).items()
                         if value != getattr(evaluation.conventions, key)]  # fmt: skip
            raise InputError(f"{name} was judged by other conventions than the first model: {', '.join(differing)}")
        if (evaluation.ids, evaluation.explained_ids) != (same.ids, same.explained_ids):
            raise InputError(f"{name} was judged on other images than the first model, so the two do not compare")


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that stands twice.

    Raises:
        InputError: The first such name.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(f"the model {name!r} is given twice: a sheet tells its rows apart by the model's name")


def pareto_front(points: Tensor) -> Tensor:
    """Which of `points` (n k, higher is better in each) no other dominates: n bool.

    One point dominates another if it is as good everywhere and better somewhere; so equal points stand or fall
    together. A point with a NaN is never on the front and dominates nothing.
    """
    ours, theirs = points[:, None], points[None]
    is_dominated = ((theirs >= ours).all(-1) & (theirs > ours).any(-1)).any(1)
    return ~is_dominated & ~points.isnan().any(-1)


def spearman(one: Tensor, two: Tensor) -> float:
    """Rank correlation of two scores of the same rows (n), equal values sharing their mean rank.

    Rows where one is NaN are left out; NaN if fewer than three are left, or if one score is the same in all.
    """
    is_known = ~(one.isnan() | two.isnan())
    if is_known.sum() < 3:
        return torch.nan
    return rank_correlation(one[is_known][None, None], two[is_known][None, None]).item()


def _column(values: Sequence[float]) -> Tensor:
    """To six digits: maps that are the same up to rounding tie, and neither pushes the other off the front."""
    return torch.tensor([float(f"{value:.6g}") for value in values], dtype=torch.float64)


def _front_metric(asked: str | None, scored: list[str]) -> Metric | None:
    if asked is None:
        return METRICS[_FRONT_BY if _FRONT_BY in scored else scored[0]] if scored else None
    (metric,) = chosen_metrics([asked])
    if asked not in scored:
        raise InputError(f"the Pareto front is asked for by {asked}, which was not scored: {', '.join(scored)} were")
    return metric


def _rows(name: str, evaluation: Evaluation) -> list[Row]:
    accuracy = evaluation.accuracy()[evaluation.measure]
    gaps = evaluation.gaps[~evaluation.gaps.isnan()]

    def row(method: MethodScores) -> Row:
        has_gap = method.kind == "built-in" and len(gaps) > 0
        return Row(
            model=name,
            method=method.name,
            kind=method.kind,
            accuracy=accuracy,
            scores={metric: evaluation.score(method, metric) for metric in method.metrics},
            cost=method.cost,
            gap=gaps.max().item() if has_gap else method.gap,
            curves=method.curves,
        )

    return [row(method) for method in evaluation.methods] or [Row(name, NO_MAP, NO_MAP, accuracy)]
