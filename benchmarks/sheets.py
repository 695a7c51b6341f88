"""Every head on one data set, and the sheet that compares them with their explanations; resumes where it stopped.

    python benchmarks/sheets.py RECIPE --data DATA --runs FOLDER --out FOLDER [--weights local-dir:PATH] [--heads …]
                                [--train-only] [--methods …] [--metrics …] [--max-explained N]
                                [--skip-prototypes] [KEY=VALUE …]

Each head is a run of RECIPE with seed 0 in RUNS/HEAD, selected on a validation split of the training images; then
`glasszoo compare` judges all of them on the test split, read once. OUT holds its page, sheet.csv and sheet.json, and
what is short enough to be committed: table.csv (a row a model and method, means) and correlation.csv (between metrics).
A head that cannot be had on this backbone or data is left out, with its reason.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch

import glasszoo
from glasszoo.__main__ import main as glasszoo_command
from glasszoo.common.errors import InputError
from glasszoo.models import BLACK_BOX
from glasszoo.training import Trainer, load_recipe

# What a head needs beside the recipe; for the small sets here, as docs/prototypes.md gives them.
NEEDS = {
    "pipnet": ["model.head_kwargs={num_prototypes: 256}"],
    "protopool": ["model.head_kwargs={anneal_steps: 600}", "optimizer.lr=1e-2"],
    "prototree": ["label_smoothing=0", "optimizer.lr=1e-2"],
}


def trained(options: argparse.Namespace, head: str) -> Path | None:
    """The best checkpoint of one head, trained unless it is there; None where it cannot be had."""
    folder: Path = options.runs / head
    best = folder / "best"
    if (folder / "finished").exists():
        return best
    given = {"data.name": options.data, "model.head": head, "seed": 0}
    if options.weights:
        given["model.weights"] = options.weights
    try:
        recipe = load_recipe(
            options.recipe,
            [*options.overrides, *NEEDS.get(head, []), *(f"{key}={value}" for key, value in given.items())],
        )
        is_begun = (folder / "training_state.pt").exists()
        result = Trainer(recipe, folder, resume=is_begun, shows_progress=False).fit()
    except InputError as error:
        print(f"{head} is left out: {error}", flush=True)
        return None
    (folder / "finished").touch()
    print(f"{head}: validation top-1 {result.top1:.4f}", flush=True)
    return best


def write_tables(folder: Path) -> None:
    """table.csv and correlation.csv, from sheet.json."""
    sheet = json.loads((folder / "sheet.json").read_text())
    metrics, costs = list(sheet["metrics"]), list(sheet["rows"][0]["cost"])
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "map", "kind", "on_front", "top1", *metrics, *costs, "completeness_gap"])
        for row in sheet["rows"]:
            means = [row["scores"].get(name, {}).get("mean") for name in metrics]
            numbers = [row["top1"]["mean"], *means, *(row["cost"].get(name) for name in costs), row["completeness_gap"]]
            cells = ["" if number is None else f"{number:.4g}" for number in numbers]
            writer.writerow([row["model"], row["method"], row["kind"], int(row["is_on_front"]), *cells])
    with (folder / "correlation.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *sheet["correlation"]["metrics"]])
        for name, values in zip(sheet["correlation"]["metrics"], sheet["correlation"]["spearman"], strict=True):
            writer.writerow([name, *("" if value is None else f"{value:.2f}" for value in values)])


def main() -> int:
    """Train, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", default=[BLACK_BOX, *glasszoo.list_heads()])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--skip-prototypes", action="store_true", help="as of 'glasszoo compare'")
    for name in ("methods", "metrics", "max-explained", "images", "batch-size"):
        parser.add_argument(f"--{name}", help="as of 'glasszoo compare'")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    found = {head: trained(options, head) for head in options.heads}
    if options.train_only:
        return 0
    asked = ["compare", *(f"{head}=local-dir:{best}" for head, best in found.items() if best)]
    asked += ["--data", options.data, "--out", str(options.out)]
    for name in ("methods", "metrics", "max_explained", "images", "batch_size"):
        if (value := getattr(options, name)) is not None:
            asked += [f"--{name.replace('_', '-')}", value]
    code = glasszoo_command([*asked, *(["--skip-prototypes"] if options.skip_prototypes else [])])
    if not code:
        write_tables(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
