"""glasszoo funnybirds: what it prints, what it writes, and one sentence for what is wrong."""

import csv
import json
from pathlib import Path

import pytest
import torch
from funny_birds import SIDE, write_birds

import glasszoo
from glasszoo.__main__ import main
from glasszoo.evaluation.funnybirds_results import FUNNYBIRDS_SCORES
from glasszoo.models import BLACK_BOX, Preprocessing, save_pretrained


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds").mkdir()
    write_birds(tmp_path / "birds", (0, 1))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained, but with classifiers that are not all zeros."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, head, classes) in enumerate((("clear", "cam", 4), ("dark", BLACK_BOX, 4), ("two", "cam", 2))):
        torch.manual_seed(seed)
        size = Preprocessing((3, SIDE, SIDE), crop_pct=1.0)
        model = glasszoo.create_model("test_byobnet", head=head, num_classes=classes, preprocessing=size)
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter)
        save_pretrained(model, folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


@pytest.mark.parametrize("published", [False, True])
def test_the_table_and_the_files(models: dict[str, str], capsys: pytest.CaptureFixture[str], published: bool) -> None:
    named = [f"{name}={models[name]}" for name in ("clear", "dark")]
    how = ["--methods", "built-in,uniform", "--target", "label", *(["--as-published"] if published else [])]
    assert main(["funnybirds", *named, "--data-root", "birds", *how, "--device", "cpu", "--out", "found"]) == 0
    printed = capsys.readouterr().out
    assert "clear: 2 images, top1" in printed and "of the background's objects hardly count" in printed
    assert all(name in printed for name in FUNNYBIRDS_SCORES)
    assert "funnybirds.json and funnybirds.csv are in found" in printed
    told = json.loads(Path("found/funnybirds.json").read_text())
    assert told["protocol"]["threshold"] == ("oracle" if published else "crossfit")
    assert told["conventions"]["target"] == "label" and list(told["models"]) == ["clear", "dark"]
    with Path("found/funnybirds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["method"]) for row in rows] == [
        ("clear", "built-in"),
        ("clear", "uniform"),
        ("dark", "uniform"),  # a black box has no map of its own
    ]
    for row, method in zip(rows, told["models"]["clear"]["methods"], strict=False):
        for name, interval in method["scores"].items():
            assert int(row[f"{name}_images"]) == interval["images"]
            if interval["mean"] is None:
                assert row[name] == ""
            else:
                assert float(row[name]) == pytest.approx(interval["mean"], rel=1e-5)
                assert interval["low"] <= interval["mean"] <= interval["high"]
    # Of a map that is the same everywhere, by the published protocol nothing is held against it.
    assert rows[1]["correctness"] == ("" if published else "0.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clear", "--methods", "grad-kam"], "clear: unknown explanation method 'grad-kam': did you mean 'grad-cam'"),
        (["two"], "two: the model knows 2 unnamed classes, but the data set has 4 classes"),
        (["clear", "--split", "train"], "birds/dataset_train.json does not exist: the layout of FunnyBirds has it"),
        (["clear", "--data-root", "nowhere"], "nowhere/parts.json does not exist: the layout of FunnyBirds has it"),
        (["clear", "--max-explained", "1"], "clear: one half of the images chooses the other's threshold"),
        (["clear", "clear"], "the model 'clear' is given twice"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    named = [f"{word}={models[word]}" if word in models else word for word in arguments]
    assert main(["funnybirds", "--data-root", "birds", *named]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"glasszoo: {message}") and "\n" not in printed
    assert not Path("runs").exists()
