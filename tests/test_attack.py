"""glasszoo attack: what it prints, what it writes, and one sentence for what is wrong."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import glasszoo
from glasszoo.__main__ import main
from glasszoo.evaluation.robustness import ATTACKS, ROBUSTNESS_SCORES
from glasszoo.models import BLACK_BOX, Preprocessing, save_pretrained

FEW = ("--data", "critters", "--data-option", "count=3", "--iterations", "2", "--batch-size", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained, but with classifiers that are not all zeros."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, head, classes) in enumerate((("clear", "cam", 8), ("dark", BLACK_BOX, 8), ("two", "cam", 2))):
        torch.manual_seed(seed)
        size = Preprocessing((3, 64, 64), crop_pct=1.0)
        model = glasszoo.create_model("test_byobnet", head=head, num_classes=classes, preprocessing=size)
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter)
        save_pretrained(model, folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


def test_the_table_and_the_files(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    named = [f"{name}={models[name]}" for name in ("clear", "dark")]
    assert main(["attack", *named, *FEW, "--epsilon", "4", "--pictures", "1", "--out", "found"]) == 0
    printed = capsys.readouterr().out
    assert "clear: 3 images, top1" in printed and "ε 4 of 255, 2 steps of 1, seed 0" in printed
    assert all(about.title in printed for about in ROBUSTNESS_SCORES.values())
    assert "attack.json, attack.csv and attack.png are in found" in printed
    told = json.loads(Path("found/attack.json").read_text())
    assert told["about"]["command"].startswith("glasszoo attack") and told["budget"]["step"] == 1
    with Path("found/attack.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(model, method, attack) for model, method in (("clear", "built-in"), ("clear", "grad-cam"),
                ("dark", "grad-cam")) for attack in ATTACKS]  # fmt: skip
    assert [(row["model"], row["method"], row["attack"]) for row in rows] == expected
    assert [(row["model"], row["method"], row["attack"]) for row in told["rows"]] == expected
    for row, own in zip(rows, told["rows"], strict=True):
        for name, interval in own["scores"].items():
            assert int(row[f"{name}_images"]) == interval["images"] == (0 if interval["mean"] is None else 3)
            if interval["mean"] is None:
                assert row[name] == "" and (name != "reached" or row["attack"] != "targeted")
            else:
                assert float(row[name]) == pytest.approx(interval["mean"], rel=1e-5)
        assert row["attack"] != "explanation" or float(row["flipped"]) == 0
    with Image.open("found/attack.png") as picture:
        assert picture.width > picture.height  # three rows of two panels for each of five columns


def test_no_picture_is_a_choice(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", models["clear"], *FEW, "--methods", "gradient", "--softplus", "10", "--pictures", "0"]) == 0
    assert "attack.json and attack.csv are in runs/attack" in capsys.readouterr().out
    assert not Path("runs/attack/attack.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clear", "--methods", "grad-kam"], "clear: unknown explanation method with a gradient 'grad-kam': did you"),
        (["clear", "dark", "--methods", "built-in"], "dark: no explanation is left to attack"),
        (["clear", "two"], "two: the model knows 2 unnamed classes, but the data set has 8 classes"),
        (["clear", "clear"], "the model 'clear' is given twice"),
        (["clear", "--epsilon", "-2"], "an attack's epsilon must be at least 0, got -2.0"),
        (["clear", "--max-explained", "0"], "clear: at least 1 image is to be attacked, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    named = [f"{word}={models[word]}" if word in models else word for word in arguments]
    assert main(["attack", *named, *FEW]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"glasszoo: {message}") and "\n" not in printed
    assert not Path("runs").exists()
