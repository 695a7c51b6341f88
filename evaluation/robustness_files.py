"""Models under attack as text, files and a picture: the printed table, attack.json, attack.csv and attack.png."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from matplotlib.figure import Figure

from ..common.environment import code_version, device_name
from ..common.files import write_text
from .pictures import displayed, draw_evidence, save_figure
from .results import interval_cells, interval_columns, percent, score
from .robustness import ATTACKS, ROBUSTNESS_SCORES, MethodRobustness, Robustness
from .sheet_files import without_nan
from .statistics import Interval

_COLUMNS = {
    "clean": "as it is",
    "noise": "noise",
    "prediction": "prediction attacked",
    "targeted": "another aimed at",
    "explanation": "map attacked",
}


def robustness_line(found: Robustness) -> str:
    """What was attacked, in one line."""
    budget = found.budget
    return (
        f"{len(found.ids)} images, top1 {percent(found.accuracy())}; ε {budget.epsilon:g} of 255, "
        f"{budget.iterations} steps of {budget.step:g}, seed {budget.seed}"
    )


def robustness_rows(found: Mapping[str, Robustness]) -> list[list[str]]:
    """The table, first row the header: a row for each model, by name, map and attack."""
    rows = [["model", "map", "attack", *(about.title for about in ROBUSTNESS_SCORES.values())]]
    for name, method, attack, scores in _each(found):
        rows.append([name, method, attack, *(score(interval) for interval in scores.values())])
    return rows


def as_csv(found: Mapping[str, Robustness]) -> str:
    """A row for each model, map and attack; of each score mean, interval and the number of images that have one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "attack", *interval_columns(ROBUSTNESS_SCORES)])
    for name, method, attack, scores in _each(found):
        writer.writerow([name, method, attack, *interval_cells(scores.values())])
    return text.getvalue()


def as_json(found: Mapping[str, Robustness], **about: Any) -> dict[str, Any]:
    """All summaries as plain values, None where there is none; `about` says what was run."""
    first = next(iter(found.values()))
    device = device_name(next(first.model.parameters()).device)
    plain: dict[str, Any] = without_nan(
        {
            "about": {**about, "code": code_version(), "torch": torch.__version__, "device": device},
            "budget": asdict(first.budget),
            "conventions": asdict(first.conventions),
            "attacks": ATTACKS,
            "scores": {name: each._asdict() for name, each in ROBUSTNESS_SCORES.items()},
            "models": {
                name: {"images": len(own.ids), "accuracy": own.accuracy()._asdict(), "unreadable": own.unreadable}
                for name, own in found.items()
            },
            "rows": [
                {
                    "model": name,
                    "method": method,
                    "attack": attack,
                    "scores": {each: interval._asdict() for each, interval in scores.items()},
                }
                for name, method, attack, scores in _each(found)
            ],
        }
    )
    return plain


def _each(found: Mapping[str, Robustness]) -> Iterator[tuple[str, str, str, dict[str, Interval]]]:
    """Model, map, attack and scores."""
    for name, own in found.items():
        for method in own.methods:
            for attack, scores in method.scores.items():
                yield name, method.name, attack, {each: own.interval(values) for each, values in scores.items()}


def attack_figure(found: Mapping[str, Robustness]) -> Figure | None:
    """The images kept for it, a row for each model, map and image: image and map as they are, and under each attack.

    A row's maps share one scale. None where no image was kept.
    """
    cases = [(name, own, method) for name, own in found.items() for method in own.methods if method.shown]
    if not cases:
        return None
    attacks = list(cases[0][2].shown)
    rows = sum(len(method.shown["clean"].images) for _, _, method in cases)
    figure = Figure(figsize=(3.0 * len(attacks) + 0.4, 1.62 * rows + 0.4), dpi=90, layout="constrained")
    panels = figure.subplots(rows, 2 * len(attacks), squeeze=False)
    for column, attack in enumerate(attacks):
        panels[0][2 * column].set_title(_COLUMNS[attack], fontsize=9, loc="left", fontweight="bold")
    row = 0
    for name, own, method in cases:
        for image in range(len(method.shown["clean"].images)):
            panels[row][0].set_ylabel(f"{shorten(name, 24)}\n{method.name}", fontsize=8)
            _draw_row(panels[row], own, method, image)
            row += 1
    return figure


def _draw_row(panels: Any, own: Robustness, method: MethodRobustness, image: int) -> None:
    limit = max(shown.maps[image].abs().max().item() for shown in method.shown.values())
    for column, shown in enumerate(method.shown.values()):
        picture = displayed(shown.images[image], own.model.config.preprocessing)
        panels[2 * column].imshow(picture)
        panels[2 * column].set(xticks=[], yticks=[])
        predicted = int(shown.predicted[image])
        is_flipped = predicted != int(method.shown["clean"].predicted[image])
        panels[2 * column].set_xlabel(
            shorten(own.model.class_names[predicted], 20), fontsize=8, color="firebrick" if is_flipped else "black"
        )
        panels[2 * column].spines[:].set_visible(False)
        draw_evidence(panels[2 * column + 1], picture, shown.maps[image], limit)


def write_robustness(found: Mapping[str, Robustness], folder: Path, **about: Any) -> list[str]:
    """attack.json and attack.csv, and attack.png where images were kept for it; returns the names."""
    write_text(folder / "attack.json", json.dumps(as_json(found, **about), indent=1) + "\n")
    write_text(folder / "attack.csv", as_csv(found))
    if (figure := attack_figure(found)) is None:
        return ["attack.json", "attack.csv"]
    save_figure(figure, folder / "attack.png")
    return ["attack.json", "attack.csv", "attack.png"]
