"""What interventions did as text and as files: the printed table, do.json and do.csv."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..common.environment import code_version
from ..common.files import write_text
from .interventions import Claim, Outcome
from .results import interval_cells, interval_columns, percent, score
from .sheet_files import without_nan
from .statistics import Interval

Outcomes = Mapping[str, list[Outcome]]  # by model
_NOTHING = Interval(math.nan, math.nan, math.nan, 0, 0)


class _Row(NamedTuple):
    model: str
    outcome: Outcome
    claim: Claim | None
    numbers: dict[str, Interval]


def _rows(found: Outcomes) -> Iterator[_Row]:
    for model, outcomes in found.items():
        for outcome in outcomes:
            real = {"real": outcome.interval(outcome.real), "flips": outcome.interval(outcome.flips)}
            claims: list[Claim | None] = [*outcome.claims] or [None]
            for claim in claims:
                said = {"predicted": _NOTHING, "slope": _NOTHING, "correlation": _NOTHING}
                if claim:
                    said = {
                        "predicted": outcome.interval(claim.predicted),
                        "slope": outcome.slope(claim),
                        "correlation": outcome.correlation(claim),
                    }
                yield _Row(model, outcome, claim, {**real, **said})


def outcome_rows(found: Outcomes) -> list[list[str]]:
    """The table, first row the header: a row for each model, intervention and method."""
    rows = [["model", "change", "real change", "flips", "map", "said", "real by said", "correlation"]]
    for model, outcome, claim, numbers in _rows(found):
        told = [score(numbers[name]) for name in ("predicted", "slope", "correlation")] if claim else [""] * 3
        name = claim.name if claim else ""
        rows.append([model, outcome.intervention, score(numbers["real"]), percent(numbers["flips"]), name, *told])
    return rows


def as_csv(found: Outcomes) -> str:
    """A row for each model, intervention and method; of each number mean, interval and images."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("real", "flips", "predicted", "slope", "correlation")
    writer.writerow(["model", "change", "map", *interval_columns(names)])
    for model, outcome, claim, numbers in _rows(found):
        cells = interval_cells(numbers[name] for name in names)
        writer.writerow([model, outcome.intervention, claim.name if claim else "", *cells])
    return text.getvalue()


def write_outcomes(found: Outcomes, folder: Path, **about: Any) -> None:
    """do.json and do.csv; `about` says what was run."""
    told = {
        "about": {**about, "code": code_version(), "torch": torch.__version__},
        "outcomes": [
            {
                "model": model,
                "change": outcome.intervention,
                "map": claim.name if claim else None,
                **{name: interval._asdict() for name, interval in numbers.items()},
            }
            for model, outcome, claim, numbers in _rows(found)
        ],
    }
    write_text(folder / "do.json", json.dumps(without_nan(told), indent=1) + "\n")
    write_text(folder / "do.csv", as_csv(found))
