"""Prototypes and evaluations as tables of W&B, read back from the run's files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import fit, recipe
from wandb_files import Logged, offline_runs

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation.gallery import Pictures, framed
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, save_pretrained
from glasszoo.training import wandb_tables
from glasszoo.training.wandb_run import WandbRun

DATA = ("--data", "critters", "--data-option", "count=14", "--data-option", "size=64", "--device", "cpu")
FEW = (*DATA, "--max-explained", "4", "--methods", "built-in,gradient", "--metrics", "deletion,gini")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_DATA"))


def tables(logged: Logged, key: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The rows of the history that hold a table of that name, with its rows."""
    return [(row, logged.table(row, key)) for row in logged.history if f"{key}.path" in row]


@pytest.mark.parametrize("head", ["protopnet", "pipnet", "prototree"])
def test_prototypes_after_their_projection_and_at_the_end(head: str, tmp_path: Path) -> None:
    own = recipe(tmp_path, "epochs=5", f"model.head={head}")
    folder = fit(own, tmp_path / "run", wandb="offline")
    (logged,) = offline_runs(folder)
    (after, first), (_, last) = tables(logged, "prototypes")
    assert any("projection" in name for name in after) and after["epoch"] == 5
    model = glasszoo.load_pretrained(f"local-dir:{folder / 'last'}")
    entries = {entry["prototype"]: entry for entry in model.provenance}
    assert {row["prototype"] for row in last} == entries.keys() and last
    training = create_dataset("critters", "train", **own.data.options)
    pictures = Pictures(training, model)
    for row in last:
        entry = entries[row["prototype"]]
        assert row["image"] == entry["image"] and row["proximity"] == pytest.approx(entry["proximity"])
        assert row["box"] == " ".join(f"{edge:g}" for edge in entry["box"])
        with Image.open(row["source"]) as source:
            assert np.array_equal(np.array(source), np.array(framed(pictures.picture(entry["image"]), entry["box"])))
        if head == "prototree":
            assert row["class"] is row["weight"] is row["is_kept"] is None
        else:
            weights = model.head.weight[:, row["prototype"]]
            label = model.class_names.index(row["class"])
            assert row["weight"] == pytest.approx(weights[label].item(), abs=1e-6)
            assert label == (int(weights.argmax()) if entry["class"] is None else entry["class"])
            assert row["is_kept"] == bool(model.head.is_kept[row["prototype"]])
    assert [row["image"] for row in first] == [row["image"] for row in last]


def test_of_many_prototypes_some_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "MOST", 6)
    (logged,) = offline_runs(
        fit(recipe(tmp_path, "epochs=5", "model.head=protopnet"), tmp_path / "run", wandb="offline")
    )
    assert [row["prototype"] for row in tables(logged, "prototypes")[-1][1]] == [0, 6, 13, 20, 26, 33]


def test_no_prototypes_no_table(tmp_path: Path) -> None:
    (logged,) = offline_runs(fit(recipe(tmp_path, "epochs=1"), tmp_path / "run", wandb="offline"))
    assert not tables(logged, "prototypes")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, head in enumerate(("cam", BLACK_BOX)):
        torch.manual_seed(seed)
        size = Preprocessing((3, 64, 64), crop_pct=1.0)
        model: ImageClassifier = glasszoo.create_model(
            "test_byobnet", head=head, num_classes=8, output_stride=16, preprocessing=size
        )
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter)
        save_pretrained(model, folder / head)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


def as_in(cell: Any) -> str:
    return "" if cell is None else str(cell)


def test_a_comparison_is_one_table_and_the_front(models: dict[str, str]) -> None:
    named = [f"clear={models['cam']}", f"dark={models[BLACK_BOX]}"]
    assert main(["compare", *named, *FEW, "--images", "0", "--out", "sheet", "--wandb", "offline"]) == 0
    (logged,) = offline_runs(Path("sheet"))
    (run,) = logged.of("run")
    assert (run.job_type, run.display_name, logged.config["data"]) == ("compare", "sheet", "critters")
    ((row, table),) = tables(logged, "evaluation")
    with Path("sheet/sheet.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(table) == len(expected) > 10
    for found, wanted in zip(table, expected, strict=True):
        assert found.keys() == wanted.keys()
        for name, cell in wanted.items():
            if isinstance(found[name], float):
                assert found[name] == pytest.approx(float(cell)), name
            else:
                assert as_in(found[name]) == cell, name
    told = json.loads(Path("sheet/sheet.json").read_text())
    by = told["front"]["by"][1]
    explained = [r for r in told["rows"] if r["kind"] != "control" and not math.isnan(r["scores"][by]["mean"])]
    points = logged.table(row, "pareto_table")
    assert [(p["model"], p["method"], p["on_front"]) for p in points] == [
        (r["model"], r["method"], r["is_on_front"]) for r in explained
    ]
    for point, r in zip(points, explained, strict=True):
        assert point[by] == pytest.approx(r["scores"][by]["mean"])
        assert point["top1"] == pytest.approx(r["top1"]["mean"])
    chart = logged.config["_wandb"]["visualize"]["pareto"]["panel_config"]
    assert chart["fieldSettings"] == {"x": by, "y": "top1"} and "scatter" in chart["panelDefId"]
    with Image.open(logged.file(row["pareto_front.path"])) as image:
        assert image.size[0] > 500


def test_an_evaluation_is_reported_as_a_sheet_of_one_model(models: dict[str, str]) -> None:
    assert main(["evaluate", "--model", models["cam"], *FEW, "--out", "alone", "--wandb", "offline"]) == 0
    (logged,) = offline_runs(Path("alone"))
    assert logged.of("run")[0].job_type == "evaluate"
    ((_, table),) = tables(logged, "evaluation")
    results = json.loads(Path("alone/results.json").read_text())
    scores = {(row["method"], row["quantity"]): row for row in table}
    for method in results["methods"]:
        for metric, interval in method["scores"].items():
            row = scores[method["name"], metric]
            assert [row["value"], row["low"], row["high"]] == pytest.approx(
                [interval["mean"], interval["low"], interval["high"]]
            )
    assert len({row["model"] for row in table}) == 1


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_nothing_is_reported_unless_asked_for(command: str, models: dict[str, str]) -> None:
    model = ["--model", models["cam"]] if command == "evaluate" else [models["cam"], "--images", "0"]
    assert main([command, *model, *FEW, "--out", "out"]) == 0
    assert not list(Path().rglob("wandb"))
    assert main([command, *model, *FEW, "--out", "out", "--wandb", "on"]) == 2
    with pytest.raises(InputError, match="unknown wandb mode 'on'"):
        WandbRun("on")
