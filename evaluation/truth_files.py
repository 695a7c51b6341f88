"""The truth about models and maps as text and as files: the printed table, truth.json and truth.csv."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..common.environment import code_version, device_name
from ..common.files import write_text
from .results import interval_cells, interval_columns, percent, score
from .sheet_files import without_nan
from .truth import TRUTH_SCORES, Truth


def worth_line(truth: Truth) -> str:
    """What the parts are worth to the model, in one line."""
    worth = ", ".join(f"{slot} {score(interval)}" for slot, interval in truth.worth().items())
    return (
        f"{len(truth.ids)} images, top1 {percent(truth.accuracy())}; mean Shapley value of {worth}; "
        f"parts of the rule have {percent(truth.rule_share())} of it; "
        f"{int(truth.follows.sum())} predictions follow a swap of parts"
    )


def truth_rows(truths: Mapping[str, Truth]) -> list[list[str]]:
    """The table, first row the header: a row for each model, by name, and method."""
    rows = [["model", "map", "kind", *(about.heading for about in TRUTH_SCORES.values())]]
    for name, truth in truths.items():
        for method in truth.methods:
            scores = [score(truth.interval(method.scores[each])) for each in TRUTH_SCORES]
            rows.append([name, method.name, method.kind, *scores])
    return rows


def as_csv(truths: Mapping[str, Truth]) -> str:
    """A row for each model and method; of each score mean, interval and the number of images that have one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "kind", *interval_columns(TRUTH_SCORES)])
    for name, truth in truths.items():
        for method in truth.methods:
            cells = interval_cells(truth.interval(method.scores[each]) for each in TRUTH_SCORES)
            writer.writerow([name, method.name, method.kind, *cells])
    return text.getvalue()


def as_json(truths: Mapping[str, Truth], **about: Any) -> dict[str, Any]:
    """All summaries as plain values, None where there is none; `about` says what was run."""
    first = next(iter(truths.values()))
    device = device_name(next(first.model.parameters()).device)
    found = {
        "about": {**about, "code": code_version(), "torch": torch.__version__, "device": device},
        "conventions": asdict(first.conventions),
        "scores": {name: each._asdict() for name, each in TRUTH_SCORES.items()},
        "models": {name: _as_json(truth) for name, truth in truths.items()},
    }
    plain: dict[str, Any] = without_nan(found)
    return plain


def _as_json(truth: Truth) -> dict[str, Any]:
    return {
        "images": len(truth.ids),
        "accuracy": truth.accuracy()._asdict(),
        "follow_swap": int(truth.follows.sum()),
        "shapley": {slot: interval._asdict() for slot, interval in truth.worth().items()},
        "rule_share": truth.rule_share()._asdict(),
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "scores": {name: truth.interval(own)._asdict() for name, own in method.scores.items()},
                "kept": method.kept.tolist(),
                "removed": method.removed.tolist(),
            }
            for method in truth.methods
        ],
    }


def write_truth(truths: Mapping[str, Truth], folder: Path, **about: Any) -> None:
    """truth.json and truth.csv."""
    write_text(folder / "truth.json", json.dumps(as_json(truths, **about), indent=1) + "\n")
    write_text(folder / "truth.csv", as_csv(truths))
