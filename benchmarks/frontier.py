"""Accuracy against explanation quality, head by head, on the same backbone, data and seeds; resumes where it stopped.

    python benchmarks/frontier.py RECIPE --data DATA --out FOLDER [--weights local-dir:PATH] [--heads …]
                                  [--seeds 0 1 2] [--threads N] [KEY=VALUE …]

Every head and seed is a run of RECIPE in FOLDER/HEAD_SEED; the test split is read once, after training. The black box
is explained by Grad-CAM, every other head by its built-in map. Energy and pointing count all images with a mask
(`--pointing` spares maps where none has one), insertion and deletion the first `--curves` of an even spread, in 14
steps. Written: FOLDER/runs.csv (a row a run; `minutes` are those of training), FOLDER/heads.csv (mean and standard
deviation over seeds), FOLDER/frontier.png and FOLDER/about.json (command, code, hardware); and, of heads with
prototypes, FOLDER/prototypes.csv: validation top-1 before and after projection and pruning, and the scores of
prototypes.
"""

import argparse
import csv
import json
import math
import shlex
import sys
import time
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

import glasszoo
from glasszoo.common.environment import code_version, device_name
from glasszoo.common.errors import InputError
from glasszoo.common.files import write_text
from glasszoo.data import create_dataset
from glasszoo.data.samples import ImageDataset
from glasszoo.evaluation import Conventions, Evaluation, evaluate
from glasszoo.evaluation.pictures import save_figure
from glasszoo.evaluation.prototype_scores import PrototypeScores
from glasszoo.evaluation.results import as_table
from glasszoo.models import BLACK_BOX, ImageClassifier
from glasszoo.training import Recipe, Trainer, load_recipe

SCORES = (
    "validation_top1",
    "top1",
    "ece",
    "insertion",
    "deletion",
    "energy_pointing_game",
    "pointing_game",
    "completeness_gap",
)
COSTS = ("milliseconds", "head_parameters")
CHANGES = (
    "top1_before_projection",
    "top1_after_projection",
    "top1_before_pruning",
    "top1_after_pruning",
)
PROTOTYPES = tuple(field.name for field in fields(PrototypeScores))
COLUMNS = ("head", "seed", *SCORES, *COSTS, "minutes")


def run(
    recipe: Recipe, folder: Path, test_set: ImageDataset, curves: int, pointing: int | None = None
) -> dict[str, Any]:
    """Train and judge one head with one seed; what was done already is read."""
    done = folder / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    resumed, began = (folder / "training_state.pt").exists(), time.perf_counter()
    trained = Trainer(recipe, folder, resume=resumed, shows_progress=False).fit()
    minutes = math.nan if resumed else (time.perf_counter() - began) / 60
    model = glasszoo.load_pretrained(f"local-dir:{trained.best}")
    about = {"head": recipe.model.head, "seed": recipe.seed, "validation_top1": trained.score, "minutes": minutes}
    scores = {**about, **changes(folder / "metrics.csv"), **judged(model, test_set, curves, pointing)}
    write_text(done, json.dumps(scores) + "\n")
    return scores


def changes(metrics: Path) -> dict[str, float]:
    """What projection and pruning did to validation top-1, from a run's metrics.csv."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: float(row[name]) for row in rows for name in CHANGES if row.get(name)}


def judged(
    model: ImageClassifier, test_set: ImageDataset, curves: int, pointing: int | None = None
) -> dict[str, float]:
    """All scores of one model; `curves` and `pointing`: on how many images the metrics of maps are measured."""
    method = "grad-cam" if model.config.head == BLACK_BOX else "built-in"
    shared: dict[str, Any] = {"methods": [method], "progress": False, "conventions": Conventions(steps=14)}
    masked = evaluate(
        model, test_set, metrics=("energy_pointing_game", "pointing_game"), max_explained=pointing, **shared
    )
    curved = evaluate(
        model, test_set, metrics=("insertion", "deletion"), max_explained=curves, judges_prototypes=False, **shared
    )
    gaps = masked.gaps[~masked.gaps.isnan()]
    return {
        "top1": masked.accuracy()["top1"].mean,
        "ece": masked.calibration_error(),
        **_means(masked),
        **_means(curved),
        "completeness_gap": gaps.max().item() if len(gaps) else math.nan,
        "milliseconds": masked.methods[0].cost["milliseconds"],
        **({} if masked.prototypes is None else asdict(masked.prototypes)),
        "head_parameters": sum(parameter.numel() for parameter in model.get_classifier().parameters()),
    }


def _means(evaluation: Evaluation) -> dict[str, float]:
    return {name: evaluation.interval(scores).mean for name, scores in evaluation.methods[0].scores.items()}


def by_accuracy(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of each head, best accuracy first."""
    by_head: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_head[row["head"]].append(row)
    return sorted(by_head.items(), key=lambda item: -mean(row["top1"] for row in item[1]))


def over_seeds(rows: list[dict[str, Any]], name: str) -> str:
    """Mean ± standard deviation; "–" where no run has it."""
    values = [row[name] for row in rows if row.get(name) is not None and not math.isnan(row[name])]
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def prototype_summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A row a head with prototypes: accuracy, what projection and pruning did to it, scores of prototypes."""
    names = ("top1", *CHANGES, *PROTOTYPES)
    table = [["head", "seeds", *names]]
    for head, own in by_accuracy(rows):
        if own[0].get("prototypes") is not None or head == BLACK_BOX:
            table.append([head, str(len(own)), *(over_seeds(own, name) for name in names)])
    return table


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A row a head, best accuracy first: mean ± standard deviation over seeds."""
    table = [["head", "seeds", *SCORES, *COSTS]]
    for head, own in by_accuracy(rows):
        cells = [over_seeds(own, name) for name in SCORES[:-1]]
        gap = max(row["completeness_gap"] for row in own)
        cost = [f"{min(row['milliseconds'] for row in own):.1f}", str(own[0]["head_parameters"])]
        table.append([head, str(len(own)), *cells, "–" if math.isnan(gap) else f"{gap:.0e}", *cost])
    return table


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against energy in the mask, and against insertion minus deletion; a dot a head, lines a deviation."""
    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained")
    heads = list(dict.fromkeys(row["head"] for row in rows))
    for axes, title in zip(figure.subplots(1, 2), ("energy in mask", "insertion − deletion"), strict=True):
        for place, head in enumerate(heads):
            own = [row for row in rows if row["head"] == head]
            quality = [
                row["energy_pointing_game"] if title.startswith("energy") else row["insertion"] - row["deletion"]
                for row in own
            ]
            if any(map(math.isnan, quality)):
                continue  # data without masks
            accuracy = [100 * row["top1"] for row in own]
            spread = [stdev(values) if len(values) > 1 else 0 for values in (quality, accuracy)]
            colour, marker = f"C{place % 10}", "os^Dvp"[place // 10]
            point = (mean(quality), mean(accuracy))
            axes.errorbar(*point, yerr=spread[1], xerr=spread[0], fmt=marker, color=colour, label=head, alpha=0.85)
        axes.set_xlabel(title)
        axes.set_ylabel("test top-1 (%)")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    """All runs, then the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", help="of the backbone: local-dir:PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", default=[BLACK_BOX, *glasszoo.list_heads()])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--curves", type=int, default=32, help="images whose insertion and deletion are measured")
    parser.add_argument("--pointing", type=int, help="images whose energy and pointing are measured; default: all")
    parser.add_argument("--threads", type=int, default=2, help="of torch: runs on as many give the same numbers")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    test_set = create_dataset(options.data, "test")
    rows = []
    for seed in options.seeds:
        for head in options.heads:
            given = {"data.name": options.data, "model.head": head, "seed": seed}
            if options.weights:
                given["model.weights"] = options.weights
            recipe = load_recipe(
                options.recipe, [*options.overrides, *(f"{key}={value}" for key, value in given.items())]
            )
            try:
                rows.append(run(recipe, options.out / f"{head}_{seed}", test_set, options.curves, options.pointing))
            except InputError as error:
                print(f"{head}, seed {seed}, is left out: {error}", flush=True)
                continue
            print(" ".join(f"{name}={_short(rows[-1].get(name, math.nan))}" for name in COLUMNS), flush=True)
    with (options.out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: _short(row.get(name, math.nan)) for name in COLUMNS} for row in rows])
    about = {
        "command": shlex.join(["python", "benchmarks/frontier.py", *sys.argv[1:]]),
        "code": code_version(),
        "hardware": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    write_text(options.out / "about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    table = summary(rows)
    tables = {"heads": table}
    if any(row.get("prototypes") is not None for row in rows):
        tables["prototypes"] = prototype_summary(rows)
    for name, lines in tables.items():
        with (options.out / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    save_figure(picture(rows), options.out / "frontier.png")
    print(as_table(table))


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
