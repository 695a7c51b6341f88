"""A sheet as text and as files: the printed table, sheet.json and sheet.csv."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common.files import write_text
from .accuracy import MEASURES
from .metrics import METRICS
from .paired import method_differences, model_differences, over_seeds
from .results import accuracy_line, as_table, environment, percent, score
from .results import as_json as model_json
from .sheet import Row, Sheet
from .statistics import Difference, Interval

FRONT = "◆"  # marks the rows of the Pareto front
COST_TITLES = {
    "milliseconds": "ms/map",
    "times_plain_forward": "× forward",
    "peak_mib": "MiB",
}  # others: their own names

# Of a model, what its own results.json says as well.
_OF_MODEL = (
    "model",
    "accuracy",
    "expected_calibration_error",
    "brier",
    "selective",
    "completeness_gap_max",
    "prototypes",
    "unreadable",
    "notes",
)


def sheet_rows(sheet: Sheet) -> list[list[str]]:
    """The wide table, first row the header."""
    header = [
        "",
        "model",
        "map",
        "kind",
        "top-1 ↑",
        *(metric.heading for metric in sheet.metrics),
        *(cost_title(name) for name in sheet.costs),
        "completeness gap ↓",
    ]
    return [header, *(_cells(sheet, row, front) for row, front in zip(sheet.rows, sheet.on_front, strict=True))]


def cost_title(name: str) -> str:
    """The heading of a cost."""
    return COST_TITLES.get(name, name.replace("_", " "))


def cost_text(value: float | None) -> str:
    """A cost, whole numbers without a point."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:g}" if value == round(value) else f"{value:.2f}"


def _cells(sheet: Sheet, row: Row, is_on_front: bool) -> list[str]:
    return [
        FRONT if is_on_front else "",
        row.model,
        row.method,
        row.kind,
        percent(row.accuracy),
        *(score(row.scores[metric.name]) if metric.name in row.scores else "–" for metric in sheet.metrics),
        *(cost_text(row.cost.get(name)) for name in sheet.costs),
        gap_text(row.gap),
    ]


def gap_text(gap: float) -> str:
    """A completeness gap."""
    return "–" if math.isnan(gap) else f"{gap:.0e}"


def front_line(sheet: Sheet) -> str:
    """What the mark means; empty where nothing was scored."""
    if sheet.front_by is None:
        return ""
    return (
        f"{FRONT} Pareto front of top-1 accuracy and {sheet.front_by.title}, controls apart: no other row is as good "
        "in both and better in one"
    )


def missing_line(sheet: Sheet) -> str:
    """How many scores are missing (NaN), by metric; empty where none is."""
    counts = {
        metric.title: sum(row.scores[metric.name].missing for row in sheet.rows if metric.name in row.scores)
        for metric in sheet.metrics
    }
    told = [f"{title} {count}" for title, count in counts.items() if count]
    return f"left out for want of a score (NaN), over all rows: {', '.join(told)}" if told else ""


def correlation_rows(sheet: Sheet) -> list[list[str]]:
    """The matrix of rank correlations as a table."""
    titles = [metric.title for metric in sheet.metrics]
    cells = [["–" if math.isnan(value) else f"{value:+.2f}" for value in row] for row in sheet.correlation.tolist()]
    return [["", *titles], *([title, *row] for title, row in zip(titles, cells, strict=True))]


def model_difference_rows(sheet: Sheet) -> list[list[str]]:
    """Each model against the most accurate one; the header alone where there is one model."""
    rows = [["model", "against", "top-1", "only it is right", "only the other", "p (McNemar)"]]
    for found in model_differences(sheet):
        pairs = [str(found.mcnemar.only_first), str(found.mcnemar.only_second), f"{found.mcnemar.p_value:.2g}"]
        rows.append([found.model, found.reference, difference_text(found.top1), *pairs])
    return rows


def method_difference_rows(sheet: Sheet) -> list[list[str]]:
    """Each method against its model's built-in map, by the front's metric; the header alone where there is none."""
    by = sheet.front_by
    rows = [["model", "map", by.heading if by else "", "p (sign flips)"]]
    for found in method_differences(sheet):
        if by and found.metric == by.name:
            rows.append([found.model, found.method, difference_text(found.score), f"{found.score.p_value:.2g}"])
    return rows


def seed_rows(sheet: Sheet) -> list[list[str]]:
    """Means over seeds; the header alone where no model has several."""
    rows = [["model", "map", "metric", "mean", "interval", "deviation of seeds", "seeds"]]
    for found in over_seeds(sheet):
        merged, title = found.merged, METRICS[found.metric].heading if found.metric in METRICS else "top-1 ↑"
        interval = f"[{merged.low:.3f}, {merged.high:.3f}]"
        numbers = [f"{merged.mean:.3f}", interval, f"{merged.seed_deviation:.3f}", str(merged.seeds)]
        rows.append([found.model, found.method or "–", title, *numbers])
    return rows


def difference_tables(sheet: Sheet) -> list[tuple[str, list[list[str]]]]:
    """Titles and tables of what is compared image by image, and over seeds; those that have rows."""
    tables = [
        ("Against the most accurate model, image by image (p values are not corrected for their number)",
         model_difference_rows(sheet)),
        ("Against the model's built-in map, image by image", method_difference_rows(sheet)),
        ("Over seeds: intervals over seeds and images", seed_rows(sheet)),
    ]  # fmt: skip
    return [(title, rows) for title, rows in tables if len(rows) > 1]


def difference_text(difference: Difference) -> str:
    """A mean difference with its interval: "+0.120 [+0.030, +0.210]"; "–" where no image has both scores."""
    if not difference.images:
        return "–"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def as_text(sheet: Sheet) -> str:
    """All that is printed."""
    models = as_table([["model", ""], *([name, accuracy_line(found)] for name, found in sheet.evaluations.items())])
    blocks = [models, as_table(sheet_rows(sheet)), "\n".join(filter(None, [front_line(sheet), missing_line(sheet)]))]
    blocks += [f"{title}\n{as_table(rows)}" for title, rows in difference_tables(sheet)]
    if len(sheet.metrics) > 1:
        count = sum(row.is_explanation for row in sheet.rows)
        title = f"Spearman's rank correlation between metrics, over {count} rows (controls apart; + where they agree)"
        blocks.append(f"{title}\n{as_table(correlation_rows(sheet))}")
    return "\n\n".join(filter(None, blocks))


def as_json(sheet: Sheet, **about: Any) -> dict[str, Any]:
    """All of it as plain values; `about` says what was run (command, data, seed, commit)."""
    models = {name: model_json(evaluation) for name, evaluation in sheet.evaluations.items()}
    first = sheet.first
    tree = {
        "about": {**about, **environment(first)},
        "conventions": asdict(sheet.conventions),
        "classes": list(first.class_names),
        "images": len(first.ids),
        "explained_images": len(first.explained_ids),
        "chance": first.interval(first.chance)._asdict(),
        "metrics": {
            metric.name: {
                "title": metric.title,
                "best": metric.best,
                "needs_mask": metric.needs_mask,
                "protocol": metric.protocol(sheet.conventions),
            }
            for metric in sheet.metrics
        },
        "models": {name: {key: found[key] for key in _OF_MODEL} for name, found in models.items()},
        "rows": [
            {
                "model": row.model,
                "method": row.method,
                "kind": row.kind,
                "is_on_front": is_on_front,
                sheet.measure: row.accuracy._asdict(),
                "scores": {name: interval._asdict() for name, interval in row.scores.items()},
                "curves": {name: [round(value, 6) for value in curve.tolist()] for name, curve in row.curves.items()},
                "cost": row.cost,
                "completeness_gap": row.gap,
            }
            for row, is_on_front in zip(sheet.rows, sheet.on_front, strict=True)
        ],
        "differences": {
            "models": [_told(found) for found in model_differences(sheet)],
            "methods": [_told(found) for found in method_differences(sheet)],
            "over_seeds": [_told(found) for found in over_seeds(sheet)],
        },
        "front": {"by": [sheet.measure, sheet.front_by.name]} if sheet.front_by else None,
        "correlation": {"metrics": [metric.name for metric in sheet.metrics], "spearman": sheet.correlation.tolist()},
    }
    return without_nan(tree)


def _told(found: object) -> dict[str, Any]:
    """The fields of a dataclass, named tuples among them as objects."""
    return {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in vars(found).items()}


def without_nan(tree: Any) -> Any:
    """Plain values, None in place of NaN, which JSON does not know."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


LONG_COLUMNS = (
    "model", "method", "kind", "on_front", "quantity", "better", "value", "low", "high", "images", "missing",
    "protocol",
)  # fmt: skip


def long_rows(sheet: Sheet) -> Iterator[list[Any]]:
    """A row for each model, method and quantity (accuracy, each metric, each cost, completeness gap).

    Columns: `better` is "highest" or "lowest"; `low` and `high` the interval; `images` with a score and `missing`
    ones without; `protocol` what the number is. "": there is none; NaN: there is none on these images.
    """
    for row, is_on_front in zip(sheet.rows, sheet.on_front, strict=True):
        for cells in _quantities(sheet, row):
            yield [row.model, row.method, row.kind, int(is_on_front), *cells]


def as_csv(sheet: Sheet) -> str:
    """The `long_rows` under their columns; NaN is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LONG_COLUMNS)
    for cells in long_rows(sheet):
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells])
    return text.getvalue()


def _quantities(sheet: Sheet, row: Row) -> Iterator[list[Any]]:
    """Quantity, better, value, low, high, images, missing, protocol."""

    def told(name: str, better: str, interval: Interval, protocol: str) -> list[Any]:
        return [name, better, *interval, protocol]

    yield told(sheet.measure, "highest", row.accuracy, f"{MEASURES[sheet.measure]}, of the model")
    for metric in sheet.metrics:
        if metric.name in row.scores:
            yield told(metric.name, metric.best, row.scores[metric.name], metric.protocol(sheet.conventions))
    for name, value in row.cost.items():
        yield [name, "lowest", value, "", "", "", "", "of one map, on the machine that the JSON names"]
    if not math.isnan(row.gap):
        protocol = (
            "how far evidence and offset miss the logit at the worst image, relative to the largest logit"
            if row.kind == "built-in"
            else "how far the map's sum misses the logit's rise over the mean colour, relative to it, at worst"
        )
        yield ["completeness_gap", "lowest", row.gap, "", "", "", "", protocol]


def write_sheet(sheet: Sheet, folder: Path, **about: Any) -> None:
    """sheet.json and sheet.csv."""
    write_text(folder / "sheet.json", json.dumps(as_json(sheet, **about), indent=1, allow_nan=False) + "\n")
    write_text(folder / "sheet.csv", as_csv(sheet))
