"""The command line, as a user meets it: what it prints, what it leaves, and one sentence for what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import glasszoo
from glasszoo.__main__ import main
from glasszoo.data import create_dataset
from glasszoo.evaluation import METHODS, METRICS
from glasszoo.heads import list_heads
from glasszoo.models import BLACK_BOX, Preprocessing, read_facts, save_pretrained


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained models for critters' eight classes, and one for two."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, head, classes in (("cam", "cam", 8), ("black_box", BLACK_BOX, 8), ("two", "cam", 2)):
        torch.manual_seed(0)
        size = Preprocessing((3, 64, 64), crop_pct=1.0)
        model = glasszoo.create_model(
            "test_byobnet", head=head, num_classes=classes, output_stride=16, preprocessing=size
        )
        save_pretrained(model, folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((90, 70), 80).convert("RGB").save(path)
    return str(path)


def run(*arguments: str) -> int:
    return main(arguments)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        run("--help")
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("list", "train", "evaluate", "truth", "explain", "shard", "demo"))


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    for what, expected in (
        ("heads", {*list_heads(), BLACK_BOX}),
        ("datasets", {"critters", "funnybirds"}),
        ("methods", {*METHODS}),
        ("metrics", {*METRICS}),
    ):
        assert run("list", what) == 0
        assert set(capsys.readouterr().out.split()) == expected
    assert run("list", "backbones", "test_res*") == 0
    assert capsys.readouterr().out.split() == ["test_resnet"]
    assert run("list", "heads", "gmpp") == 2


def test_train_evaluate_explain(tmp_path: Path, photograph: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("data.options.count=48", "data.options.size=32", "model.image_size=32", "epochs=1")
    assert run("train", "critters", *small, "--out", "run", "--seed", "3", "--device", "cpu") == 0
    assert "checkpoint local-dir:run/best" in capsys.readouterr().out
    assert "seed: 3" in (tmp_path / "run" / "recipe.yaml").read_text()
    data = ("--data", "critters", "--data-option", "count=10", "--data-option", "size=32")
    assert run("evaluate", "--model", "local-dir:run/best", *data, "--max-explained", "3", "--out", "judged") == 0
    printed = capsys.readouterr().out
    assert "10 images: top1" in printed and "completeness gap" in printed
    for row in ("built-in", "grad-cam", "random", "centre", "uniform", "chance"):
        assert f"\n{row} " in printed
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == [
        "per_image.csv", "report.html", "results.json",
    ]  # fmt: skip
    results = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert results["about"]["command"].startswith("glasszoo evaluate --model local-dir:run/best")
    assert run("explain", photograph, "--model", "local-dir:run/best", "--top", "2", "--out", "shown") == 0
    told = capsys.readouterr().out
    assert "→ shown/photo.png" in told and (tmp_path / "shown" / "photo.png").exists()
    assert sum(f"{name} " in told for name in create_dataset("critters", "test", count=1).classes) == 2, "not numbers"


def test_two_processes_judge_what_one_does(checkpoints: dict[str, str]) -> None:
    asked = ["evaluate", "--model", checkpoints["cam"], "--data", "critters", "--data-option", "count=10"]
    asked += ["--data-option", "size=64", "--max-explained", "6", "--batch-size", "3", "--methods", "built-in,random"]
    asked += ["--output", "logit", "--deletion-baseline", "image_mean"]
    assert run(*asked, "--out", "alone") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    package = Path(glasszoo.__file__).parents[1]
    done = subprocess.run(
        [*torchrun, "glasszoo", *asked, "--out", "shared"],
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 images: top1") == 1, "one process prints"
    assert not Path("shared/parts").exists()
    alone, shared = (json.loads(Path(folder, "results.json").read_text()) for folder in ("alone", "shared"))
    assert alone["accuracy"] == shared["accuracy"]
    assert (alone["conventions"]["output"], alone["conventions"]["deletion_baseline"]) == ("logit", "image_mean")
    for ours, theirs in zip(alone["methods"], shared["methods"], strict=True):
        for metric, score in ours["scores"].items():
            assert score == pytest.approx(theirs["scores"][metric], abs=1e-6, nan_ok=True)


def test_a_card_is_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("data.options.count=48", "data.options.size=32", "model.image_size=32", "epochs=1")
    licences = ("data.license=CC0-1.0", "model.license=MIT")
    assert run("train", "critters", *small, *licences, "--out", "run") == 0
    data = ("--data", "critters", "--data-option", "count=10", "--data-option", "size=32", "--max-explained", "3")
    asked = ("evaluate", "--model", "local-dir:run/best", *data, "--out", "judged", "--into-card")
    capsys.readouterr()
    assert run(*asked) == 0
    assert "the card is run/best/README.md\n" in capsys.readouterr().out
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    for told in (
        "Licence: CC0-1.0",
        "These weights: MIT",
        "glasszoo train critters",
        "glasszoo evaluate",
        "| insertion |",
    ):
        assert told in card
    assert (tmp_path / "run" / "best" / "explanation.png").exists()
    assert run(*asked, "--withhold-images") == 0
    assert not (tmp_path / "run" / "best" / "explanation.png").exists()
    assert run(*asked, "--metrics", "insertion", "--methods", "random") == 0
    facts = read_facts("run/last")
    save_pretrained(glasszoo.load_pretrained("local-dir:run/last"), "bare")
    assert run("evaluate", "--model", "local-dir:bare", *data, "--methods", "random", "--into-card") == 0
    assert "it still lacks: data, description of the data, licence" in capsys.readouterr().out
    assert facts.lacking() == ["accuracy on a test split", "scores of the map", "picture"]


def test_a_recipes_values_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """As the README writes it: before, between and after the options."""
    line = "train critters epochs=1 --data critters data.options.count=40 --out run model.image_size=32 --seed 3"
    line += " --patch-deletion 0.5"
    assert run(*line.split()) == 0
    recipe = Path("run/recipe.yaml").read_text()
    assert "epochs: 1" in recipe and "count: 40" in recipe and "image_size: 32" in recipe and "seed: 3" in recipe
    assert "patch_deletion: 0.5" in recipe
    for wrong in ("train critters epochs=1 --sed 3", "list heads --data critters", "demo now"):
        with pytest.raises(SystemExit) as exit:
            run(*wrong.split())
        assert exit.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("critters", "data.options.count=48", "data.options.size=32", "model.image_size=32", "epochs=1")
    assert run("train", *small, "--out", "run") == 0
    assert run("train", *small, "--out", "run") == 2
    assert run("train", *small, "--out", "run", "--resume") == 0


def test_timms_weights_explain_themselves(
    shared: Callable[[str], Path], photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    monarch = next(shared("data/leeds_butterfly/images").glob("001*/*.jpg"))
    assert run("explain", str(monarch), "--model", source) == 0
    assert "monarch" in capsys.readouterr().out
    own = ("--class", "cabbage butterfly", "--class", "0")
    assert run("explain", str(monarch), "--model", source, *own) == 0
    told = capsys.readouterr().out
    assert "cabbage butterfly" in told and "tench" in told and "milkweed" not in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train criters", "unknown recipe 'criters': did you mean 'critters'"),
        ("train critters optimiser.lr=1", "unknown key in critters 'optimiser': did you mean 'optimizer'"),
        ("train critters model.backbone=resnet5", "unknown backbone 'resnet5'"),
        ("train critters model.backbone=test_vit", "test_vit is no CNN"),
        ("train critters model.head=camm", "unknown head 'camm'"),
        ("train critters --data /no/such", "data set folder /no/such does not exist"),
        ("train critters model.image_size=4", "images of 4 × 4 are smaller than one cell of the map"),
        ("train critters --wandb on", "unknown wandb mode 'on'"),
        ("train critters --device tpu7", "device 'tpu7' cannot be used"),
        ("evaluate --model local-dir:/none --data critters", "no checkpoint: /none/config.json is missing"),
        ("evaluate --model cam --data critters", "unknown backbone 'cam'"),
        ("evaluate --model {two} --data critters", "the model knows 2 unnamed classes, but the data set has 8 classes"),
        ("evaluate --model {cam} --data /no/such", "data set folder /no/such does not exist"),
        ("evaluate --model {cam} --data empty", "no class folders and no index.csv: zero classes"),
        ("evaluate --model {cam} --data critters --split tset", "unknown critter split 'tset': did you mean 'test'"),
        ("evaluate --model {cam} --data critters --metrics insertoin", "unknown metric 'insertoin'"),
        ("evaluate --model {cam} --data critters --methods gradcam", "unknown explanation method 'gradcam'"),
        ("evaluate --model {cam} --data critters --data-option siz=3", "unknown option of data set critters 'siz'"),
        ("evaluate --model {cam} --data critters --batch-size 0", "batch_size must be at least 1"),
        ("evaluate --model resnet18 --data critters --into-card", "--into-card writes into a checkpoint's folder"),
        ("explain none.jpg --model {cam}", "image none.jpg does not exist"),
        ("explain text.jpg --model {cam}", "text.jpg is no image"),
        ("explain photo.jpg --model {cam} --class x", "unknown class 'x'"),
        ("explain photo.jpg --model {cam} --top -1", "explain=-1"),
        ("explain photo.jpg --model {black_box}", "a black box does not explain itself"),
        ("explain photo.jpg --model runs/x", "Use .*'local-dir:runs/x'"),
    ],
)
def test_wrong_input_gets_one_sentence_and_status_2(
    arguments: str,
    message: str,
    tmp_path: Path,
    checkpoints: dict[str, str],
    photograph: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    assert run(*(word.format(**checkpoints) for word in arguments.split())) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("glasszoo: "), errors
    assert re.search(message, errors[0]), errors


def test_a_truncated_checkpoint_is_named(
    tmp_path: Path, checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoints["cam"].removeprefix("local-dir:"), tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run("evaluate", "--model", "local-dir:broken", "--data", "critters") == 2
    assert "broken/model.safetensors is truncated" in capsys.readouterr().err


def test_the_unexpected_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("glasszoo.commands.listing.run", fail)
    assert run("list", "heads") == 1
    assert capsys.readouterr().err == "glasszoo: RuntimeError: two lines (--debug shows where)\n"
    with pytest.raises(RuntimeError):
        run("list", "heads", "--debug")


def test_it_runs_as_a_module_and_as_a_program() -> None:
    for command in ([sys.executable, "-m", "glasszoo"], [str(Path(sys.executable).with_name("glasszoo"))]):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: glasszoo")
    wrong = subprocess.run([*command, "train", "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr


def test_list_pretrained_says_what_each_checkpoint_was_judged_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "pretrained", "cam_*", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cam_test_byobnet.s64_critters"]["judged on"] == "critters"
    default = rows[glasszoo.models.DEFAULT]
    assert "3 species" in default["judged on"] and default["weights"] == "Apache-2.0" and 7 < default["MB"] < 8
    assert run("list", "--pretrained") == 0
    assert capsys.readouterr().out.count("Apache-2.0") >= len(glasszoo.list_pretrained())
    assert run("list") == 2 and "say what to list" in capsys.readouterr().err
    assert run("list", "pretrained", "cma_*") == 2 and "unknown checkpoint" in capsys.readouterr().err
