"""An evaluation as files and as text: results.json, per_image.csv and the printed table."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

from ..common.environment import code_version, device_name
from ..common.files import write_text
from .benchmark import Evaluation
from .metrics import METRICS
from .statistics import Interval

COVERAGES = (0.8, 0.5)  # shares of the images that a model may choose to answer, the surest
HEADINGS = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
_ATTACK = ("plc", "pac", "prc", "ac")  # of an attack on a prototype from outside its box


def as_json(evaluation: Evaluation, **about: Any) -> dict[str, Any]:
    """All summaries as plain values; `about` says what was run (command, data, seed, commit)."""
    model = evaluation.model
    return {
        "about": {**about, **environment(evaluation)},
        "model": {
            "architecture": model.config.architecture,
            "head": model.config.head,
            "contract": str(model.contract),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "classes": list(evaluation.class_names),
        },
        "conventions": asdict(evaluation.conventions),
        "accuracy": {name: _interval(interval) for name, interval in evaluation.accuracy().items()},
        **_of_confidence(evaluation),
        "completeness_gap_max": _number(evaluation.gaps.max().item()),
        "prototypes": None if evaluation.prototypes is None else asdict(evaluation.prototypes),
        "images": len(evaluation.ids),
        "explained_images": len(evaluation.explained_ids),
        "unreadable": evaluation.unreadable,
        "notes": evaluation.notes,
        "chance": _interval(evaluation.interval(evaluation.chance)),
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "scores": {name: _interval(evaluation.score(method, name)) for name in method.metrics},
                "curves": {
                    name: [round(value, 6) for value in curve.tolist()] for name, curve in method.curves.items()
                },
                "cost": method.cost,
                "completeness_gap_max": _number(method.gap),
            }
            for method in evaluation.methods
        ],
    }


def _of_confidence(evaluation: Evaluation) -> dict[str, Any]:
    """What confidence is worth; where images can show several classes, the precision of each instead."""
    if evaluation.targets is not None:
        return {"average_precision": {name: _number(value) for name, value in evaluation.precisions().items()}}
    selective = evaluation.selective()
    return {
        "expected_calibration_error": evaluation.calibration_error(),
        "brier": _interval(evaluation.brier()),
        "selective": {
            "aurc": selective.aurc,
            **{f"top1_at_{share:g}": selective.accuracy_at(share) for share in COVERAGES},
        },
    }


def environment(evaluation: Evaluation) -> dict[str, str]:
    """What ran it."""
    device = device_name(next(evaluation.model.parameters()).device)
    return {"code": code_version(), "torch": torch.__version__, "timm": timm.__version__, "device": device}


def as_csv(evaluation: Evaluation) -> str:
    """One row an image: label, prediction, confidence, completeness gap, and each method's scores (empty: none)."""
    names, labels = evaluation.class_names, evaluation.told_labels()
    confidence, predicted = evaluation.probabilities.max(1)
    columns = [(method, metric) for method in evaluation.methods for metric in method.scores
               if METRICS[metric].is_of_images]  # fmt: skip
    places = {identifier: place for place, identifier in enumerate(evaluation.explained_ids)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["id", "label", "predicted", "confidence", "completeness_gap", "mask_share"]
    writer.writerow(head + [f"{method.name}/{metric}" for method, metric in columns])
    for row, identifier in enumerate(evaluation.ids):
        place = places.get(identifier)
        known = [confidence[row].item(), evaluation.gaps[row].item()]
        scores = [math.nan] * (1 + len(columns))
        if place is not None:
            scores = [evaluation.chance[place].item(), *(m.scores[metric][place].item() for m, metric in columns)]
        cells = ["" if math.isnan(value) else f"{value:.6g}" for value in known + scores]
        writer.writerow([identifier, labels[row], names[predicted[row]], *cells])
    return text.getvalue()


def accuracy_line(evaluation: Evaluation) -> str:
    """Accuracy, calibration and completeness in one line."""
    parts = [
        f"{'mAP' if name == 'map' else name} {percent(interval)}" for name, interval in evaluation.accuracy().items()
    ]
    if evaluation.targets is not None:
        parts += [f"AP of {name} {100 * value:.1f} %" for name, value in evaluation.precisions().items()]
    else:
        parts.append(f"ECE {evaluation.calibration_error():.3f}")
        parts.append(f"Brier {evaluation.brier().mean:.3f}")
        parts.append(
            f"top1 of the surest {COVERAGES[0]:.0%} {100 * evaluation.selective().accuracy_at(COVERAGES[0]):.1f} %"
        )
    if not evaluation.gaps.isnan().all():
        parts.append(f"completeness gap ≤ {evaluation.gaps.max():.0e}")
    return f"{len(evaluation.ids)} images: {', '.join(parts)}"


def prototype_line(evaluation: Evaluation) -> str:
    """What is known of the prototypes in one line; empty where there are none."""
    scores = evaluation.prototypes
    if scores is None:
        return ""
    parts = [f"{scores.prototypes} prototypes"]
    if scores.used_per_decision is not None:
        parts.append(f"{scores.used_per_decision:.1f} used per decision")
    if scores.global_size is not None:
        parts.append(f"{scores.global_size} used by any")
    if scores.local_size is not None:
        parts.append(f"{scores.local_size:.1f} active in an image")
    if scores.sparsity is not None:
        parts.append(f"{scores.sparsity:.0%} of weights 0")
    for name in ("consistency", "stability", "purity"):
        value, chance = getattr(scores, name), getattr(scores, f"{name}_chance", None)
        if value is not None:
            parts.append(f"{name} {value:.3f}" + ("" if chance is None else f" (chance {chance:.3f})"))
    attack = [f"{name.upper()} {value:.1f}" for name in _ATTACK if (value := getattr(scores, name)) is not None]
    if attack:
        parts.append(f"attacked from outside: {' '.join(attack)}")
    return ", ".join(parts)


def score_rows(evaluation: Evaluation) -> list[list[str]]:
    """The table of methods, first row the header: scores with intervals, then the cost of a map."""
    metrics = evaluation.methods[0].metrics if evaluation.methods else []
    costs = ["forwards", "backwards", "ms/map", "× forward", "MiB", "gap"]
    rows = [["map", "kind", *(METRICS[name].heading for name in metrics), *costs]]
    for method in evaluation.methods:
        cost = method.cost
        rows.append(
            [
                method.name,
                method.kind,
                *(score(evaluation.score(method, name)) for name in metrics),
                f"{cost['forwards']:g}",
                f"{cost['backwards']:g}",
                f"{cost['milliseconds']:.2f}",
                f"{cost['times_plain_forward']:.2f}",
                f"{cost['peak_mib']:.1f}",
                "–" if math.isnan(method.gap) else f"{method.gap:.0e}",
            ]
        )
    chance = score(evaluation.interval(evaluation.chance))
    if chance != "–" and any(name in metrics for name in ("energy_pointing_game", "pointing_game")):
        cells = [chance if name in ("energy_pointing_game", "pointing_game") else "" for name in metrics]
        rows.append(["chance", "(mask's share)", *cells, *[""] * len(costs)])
    return rows


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def score(interval: Interval) -> str:
    """A score with half the width of its interval: ".612 ± .034"; "–" where no image has one."""
    if not interval.images:
        return "–"
    text = f"{interval.mean:.3f} ± {(interval.high - interval.low) / 2:.3f}"
    return text + (f" (n {interval.images})" if interval.missing else "")


def interval_columns(names: Iterable[str]) -> list[str]:
    """Headings of a CSV file for the cells of `interval_cells`."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_images")]


def interval_cells(intervals: Iterable[Interval]) -> list[str]:
    """Of each: mean, interval and the number of images that have a score; empty where there is no number."""
    cells = (cell for interval in intervals for cell in interval[:4])
    return ["" if math.isnan(cell) else f"{cell:.6g}" for cell in cells]


def percent(interval: Interval) -> str:
    """A share with its interval: "91.2 % [88.0, 94.1]"."""
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def write_results(evaluation: Evaluation, folder: Path, **about: Any) -> None:
    """results.json and per_image.csv."""
    write_text(folder / "results.json", json.dumps(as_json(evaluation, **about), indent=1) + "\n")
    write_text(folder / "per_image.csv", as_csv(evaluation))


def _interval(interval: Interval) -> dict[str, Any]:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON knows no NaN
