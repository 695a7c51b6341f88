"""The metrics by name."""

from collections.abc import Iterable

from ..common.errors import unknown_name
from .judged import Metric
from .metric_table import METRIC_TABLE

METRICS: dict[str, Metric] = {metric.name: metric for metric in METRIC_TABLE}
QUICK_METRICS = tuple(metric.name for metric in METRIC_TABLE if metric.is_quick)


def chosen_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names.

    Raises:
        InputError: No such metric; the nearest names are listed.
    """
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    return [METRICS[name] for name in names]
