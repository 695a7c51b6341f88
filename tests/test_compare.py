"""glasszoo compare, as a user runs it: what it writes, after a kill and under torchrun as well."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.evaluation import METHODS, METRICS, MapMethod
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, save_pretrained

PACKAGE = Path(glasszoo.__file__).parents[1]
DATA = ("--data", "critters", "--data-option", "count=14", "--data-option", "size=64", "--device", "cpu")
FEW = (*DATA, "--max-explained", "6", "--batch-size", "3", "--images", "3")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained, but with classifiers that are not all zeros."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, head, classes) in enumerate((("cam", "cam", 8), ("dark", BLACK_BOX, 8), ("two", "cam", 2))):
        torch.manual_seed(seed)
        size = Preprocessing((3, 64, 64), crop_pct=1.0)
        model = glasszoo.create_model(
            "test_byobnet", head=head, num_classes=classes, output_stride=16, preprocessing=size
        )
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter)
        save_pretrained(model, folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


def compare(*arguments: str) -> int:
    return main(["compare", *arguments])


def both(models: dict[str, str]) -> list[str]:
    return [f"clear={models['cam']}", f"dark={models['dark']}"]


def scores(folder: str) -> dict[str, Any]:
    """All numbers of a sheet that do not depend on the machine."""
    told = json.loads(Path(folder, "sheet.json").read_text())
    own = {
        f"{row['model']}/{row['method']}/{name}/{key}": value
        for row in told["rows"]
        for name, interval in {**row["scores"], "top1": row["top1"]}.items()
        for key, value in interval.items()
    }
    curves = {
        f"{row['model']}/{row['method']}/curve/{name}": curve
        for row in told["rows"]
        for name, curve in row["curves"].items()
    }
    passes = {
        f"{row['model']}/{row['method']}/{key}": row["cost"][key]
        for row in told["rows"]
        for key in ("forwards", "backwards")
    }
    return own | curves | passes  # fmt: skip


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys() and len(one) > 50
    for name, value in one.items():
        tolerance = 2.1e-6 if "/curve/" in name else 1e-6  # curves are rounded to six digits
        assert two[name] == (None if value is None else pytest.approx(value, abs=tolerance)), name


def test_a_sheet_of_two_models(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*both(models), *FEW, "--pareto", "deletion", "--out", "sheet") == 0
    printed = capsys.readouterr().out
    assert "clear  built-in  built-in" in printed and "dark   grad-cam  post-hoc" in printed
    assert "Pareto front of top-1 accuracy and deletion" in printed and "Spearman" in printed
    assert "left out: built-in of dark: a black box has no built-in map" in printed
    assert sorted(path.name for path in Path("sheet").iterdir()) == ["sheet.csv", "sheet.html", "sheet.json"]
    told = json.loads(Path("sheet/sheet.json").read_text())
    assert told["about"]["command"].startswith("glasszoo compare clear=local-dir:")
    methods = [(row["model"], row["method"]) for row in told["rows"]]
    assert len(methods) == 9 and ("clear", "built-in") in methods and ("dark", "built-in") not in methods
    assert (told["images"], told["explained_images"], told["front"]["by"][1]) == (14, 6, "deletion")
    # The same as evaluating one of them alone.
    alone = ("--metrics", ",".join(told["metrics"]), "--max-explained", "6", "--batch-size", "3", "--out", "alone")
    assert main(["evaluate", "--model", models["cam"], *DATA, *alone]) == 0
    by_method = {found["name"]: found for found in json.loads(Path("alone/results.json").read_text())["methods"]}
    for row in told["rows"]:
        if row["model"] == "clear":
            assert row["scores"] == by_method[row["method"]]["scores"]
    page = Path("sheet/sheet.html").read_text()
    assert page.count("data:image/jpeg") == 3 and len(page) < 8e6


def test_all_means_all(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(model: ImageClassifier) -> MapMethod:
        if model.config.head == "cam":
            raise InputError("not for cam")
        return MapMethod("picky", "post-hoc", lambda images, classes, indices: images[:, 0])

    for name in [*METHODS]:
        if name not in ("built-in", "gradient", "uniform"):  # others take their time
            monkeypatch.delitem(METHODS, name)
    monkeypatch.setitem(METHODS, "picky", picky)
    out = ("--images", "0", "--out", "sheet")
    assert compare(*both(models), *DATA, "--max-explained", "2", "--methods", "all", "--metrics", "all", *out) == 0
    told = json.loads(Path("sheet/sheet.json").read_text())
    assert list(told["metrics"]) == list(METRICS)
    assert [row["model"] for row in told["rows"] if row["method"] == "picky"] == ["dark"]
    assert any("picky of clear: not for cam" in line for line in told["about"]["left_out"])
    assert compare(models["cam"], *DATA, "--methods", "picky") == 2


class Killed(Exception):
    """As good as a signal."""


def test_a_killed_comparison_goes_on(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*both(models), *FEW, "--out", "whole") == 0
    asked = (*both(models), *FEW, "--out", "sheet", "--debug")
    calls = {"cam": 0, BLACK_BOX: 0}
    limit = 4  # of the second model: one call to warm up, one for memory, a batch; then the end
    random_map = METHODS["random"]

    def mortal(model: ImageClassifier) -> MapMethod:
        whole = random_map(model)

        def explain(*arguments: torch.Tensor) -> torch.Tensor:
            calls[model.config.head] += 1
            if calls[BLACK_BOX] >= limit:
                raise Killed
            return whole.explain(*arguments)

        return MapMethod(whole.name, whole.kind, explain, whole.is_on_grid)

    monkeypatch.setitem(METHODS, "random", mortal)
    with pytest.raises(Killed):
        compare(*asked)
    assert not list(Path("sheet").glob("sheet.*")), "no half sheet"
    capsys.readouterr()
    calls.update({"cam": 0, BLACK_BOX: 0})
    limit = 99
    assert compare(*asked) == 0
    told = capsys.readouterr().err
    assert "clear (1 of 2): finished before the stop" in told and "dark (2 of 2): resumes where it was stopped" in told
    assert calls["cam"] == 0, "what was done is not done again"
    assert 0 < calls[BLACK_BOX] <= 3
    assert_same(scores("whole"), scores("sheet"))
    assert not Path("sheet/parts").exists(), "what has become a result is not kept"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def test_a_real_kill(models: dict[str, str]) -> None:
    """SIGKILL, while the second model is judged."""
    asked = [sys.executable, "-m", "glasszoo", "compare", *both(models), *FEW, "--out", "sheet"]
    asked += ["--data-option", "count=200", "--max-explained", "200", "--batch-size", "2", "--metrics", "pointing_game"]
    process = subprocess.Popen(asked, env=environment(), stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while (
        len(list(Path("sheet").rglob("evaluation.safetensors"))) < 1
        or len(list(Path("sheet").rglob("explaining/*"))) < 2
    ):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not Path("sheet/sheet.json").exists()
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finished before the stop" in done.stderr and "resumes where it was stopped" in done.stderr
    assert json.loads(Path("sheet/sheet.json").read_text())["explained_images"] == 200


def test_two_processes_write_what_one_does(models: dict[str, str]) -> None:
    assert compare(*both(models), *FEW, "--out", "alone") == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "glasszoo",
    ]
    done = subprocess.run(
        [*torchrun, "compare", *both(models), *FEW, "--out", "shared"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sheet.html, sheet.csv and sheet.json are in shared") == 1, "one process prints"
    assert_same(scores("alone"), scores("shared"))
    assert sorted(path.name for path in Path("shared").iterdir()) == ["sheet.csv", "sheet.html", "sheet.json"]


def test_what_is_wrong_is_said_at_once(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    cam = models["cam"]
    for arguments, sentence in (
        ((cam, cam), "is given twice"),
        ((f"a={cam}", f"a={models['dark']}"), "the model 'a' is given twice"),
        ((cam, f"few={models['two']}"), "few: the model knows 2 unnamed classes, but the data set has 8 classes"),
        ((cam, "--metrics", "insertoin"), "unknown metric 'insertoin'"),
        ((cam, "--methods", "gradcam"), "unknown explanation method 'gradcam'"),
        ((cam, "--metrics", "deletion", "--pareto", "insertion"), "--pareto insertion is not among the metrics"),
        ((models["dark"], "--methods", "built-in"), "a black box has no built-in map"),
        ((cam, "--images", "-1"), "--images must be 0 or more"),
    ):
        assert compare(*arguments, *DATA, "--out", "sheet") == 2, sentence
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1
        assert not Path("sheet").exists()
