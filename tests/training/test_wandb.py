"""What W&B is told of a run, read back from the files of the real client; and that it never stands in the way."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file
from test_trainer import FULL, fit, recipe, rows, same, weights
from wandb_files import Logged, offline_runs

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import artifacts
from glasszoo.training import Trainer
from glasszoo.training.state import load_state
from glasszoo.training.wandb_run import WandbRun, curve_name

PROTOTYPES = ("model.head=protopnet", "epochs=5")  # three phases, a projection after the second


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / f"wandb_{folder}"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of prototypes that was reported."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb_DATA"))
        own = recipe(folder, *PROTOTYPES)
        return fit(own, folder / "a run", wandb="offline", wandb_images_every=2, wandb_checkpoints_every=4)


@pytest.fixture
def logged(run: Path) -> Logged:
    (logged,) = offline_runs(run)
    return logged


def numbers(row: dict[str, Any], section: str) -> dict[str, Any]:
    return {name.partition("/")[2]: value for name, value in row.items() if name.startswith(f"{section}/")}


def test_every_number_of_metrics_csv_is_a_curve_over_epochs_and_one_of_its_phase(run: Path, logged: Logged) -> None:
    table, history = rows(run), logged.history
    epochs = [row for row in history if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [row["_step"] for row in epochs] == [1, 2, 3, 4, 5]
    assert [row["phase"] for row in epochs] == [1, 2, 2, 2, 3]
    for row, found in zip(table, epochs, strict=True):
        section = "phase_" + row["phase"].replace(" ", "_")
        assert {name for name in found if name.startswith("phase_")} == {
            f"{section}/{n}" for n in numbers(found, section)
        }
        clock = {"images_per_second", "waiting_for_data"}
        expected = {name: float(value) for name, value in row.items() if value and name not in ("epoch", "phase")}
        assert expected == {name: value for name, value in numbers(found, section).items() if name not in clock}
        for name, value in expected.items():
            assert found[curve_name(name)] == value
    assert curve_name("val_top1") == "val/top1" and curve_name("train_loss") == "train/loss"
    assert curve_name("lr") == "train/lr" and curve_name("prototypes") == "change/prototypes"
    assert "change/top1_after_projection" in epochs[4] and "change/top1_after_projection" not in epochs[3]
    logged_curves = {name for row in epochs for name in row if "/" in name}
    assert logged_curves <= logged.metrics.keys()
    assert {metric.step_metric for metric in logged.metrics.values()} == {"epoch"}
    best = {name for name, metric in logged.metrics.items() if metric.summary.max}
    least = {name for name, metric in logged.metrics.items() if metric.summary.min}
    assert {"val/top1", "train/top1", "phase_joint/val_top1"} <= best and not best & least
    assert {"val/loss", "train/loss", "phase_warm/val_loss"} <= least and "train/lr" not in best | least
    assert logged.summary["val/top1"] == {"max": max(float(row["val_top1"]) for row in table)}


def test_a_run_tells_what_it_is(run: Path, logged: Logged) -> None:
    (record,) = logged.of("run")
    assert (record.project, record.display_name, record.job_type) == ("glasszoo", "a run", "train")
    assert list(record.tags) == ["protopnet", "test_byobnet", "critters"]
    assert record.run_group == "protopnet test_byobnet critters"
    config = logged.config
    assert config["model"]["head"] == "protopnet" and config["epochs"] == 5 and config["optimizer"]["lr"] == 2e-3
    assert [record.exit_code for record in logged.of("exit")] == [0]
    progress, _ = load_state(run, (run / "recipe.yaml").read_text())
    assert progress.wandb_id == record.run_id
    assert logged.summary["best_top1"] == progress.best


def test_one_phase_is_not_told_apart(tmp_path: Path) -> None:
    (logged,) = offline_runs(fit(recipe(tmp_path, "epochs=1"), tmp_path / "run", wandb="offline"))
    assert not [name for row in logged.history for name in row if name.startswith("phase")]
    assert "val/top1" in logged.history[0]


def test_reporting_changes_no_weight_and_without_it_there_is_no_trace(run: Path, tmp_path: Path) -> None:
    silent = fit(recipe(tmp_path, *PROTOTYPES), tmp_path / "silent")
    assert not (silent / "wandb").exists()
    assert same(weights(silent), weights(run)) and rows(silent) == rows(run)


def test_disabled_never_imports_wandb(tmp_path: Path) -> None:
    """timm looks for wandb itself, in its summaries; the name is kept from it here."""
    recipe(tmp_path, "epochs=1")
    code = "import sys; sys.modules['wandb'] = None; from glasszoo.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", str(tmp_path / "recipe.yaml"), "epochs=1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    assert (tmp_path / "run" / "best").is_dir()


def test_the_best_checkpoint_is_an_artifact_that_loads(run: Path, logged: Logged, tmp_path: Path) -> None:
    every, best = logged.artifacts("model")
    assert best.name == every.name == "a-run" and sorted(every.aliases) == ["epoch-4", "latest"]
    assert artifacts._NAME.fullmatch(f"wandb:someone/{best.project}/{best.name}:best")
    metadata = json.loads(best.metadata)
    table = rows(run)
    row = table[metadata["epoch"] - 1]
    assert metadata["val_top1"] == float(row["val_top1"]) == logged.summary["best_top1"]
    assert sorted(best.aliases) == sorted(["best", "latest", f"epoch-{row['epoch']}"])
    assert logged.summary["best_epoch"] == metadata["epoch"]
    assert (metadata["head"], metadata["backbone"], metadata["data"]) == ("protopnet", "test_byobnet", "critters")
    assert metadata["seed"] == 0 and metadata["code"].startswith("glasszoo ")
    staged = {entry.path: Path(entry.local_path) for entry in best.manifest.contents}
    assert staged.keys() == {path.name for path in (run / "best").iterdir()} >= {"config.json", "model.safetensors"}
    # What would be uploaded is a checkpoint, and the same one.
    for name, path in staged.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    model, own = (glasszoo.load_pretrained(f"local-dir:{folder}") for folder in (tmp_path, run / "best"))
    assert same(model.state_dict(), own.state_dict()) and model.provenance == own.provenance
    staged_every = {entry.path: entry.local_path for entry in every.manifest.contents}
    assert not same(load_file(staged_every["model.safetensors"]), load_file(staged["model.safetensors"]))


@pytest.mark.parametrize(("name", "expected"), [("a run", "a-run"), ("é:ü", "model"), ("../x_1.y", "x_1.y")])
def test_any_folder_gives_a_name_that_an_artifact_can_have(name: str, expected: str) -> None:
    assert artifacts.artifact_name(name) == expected
    assert artifacts._NAME.fullmatch(f"wandb:a/b/{expected}:best")
    wandb.Artifact(expected, type="model")


class Killed(Exception):
    """As good as a signal."""


def test_a_run_keeps_its_id_while_it_goes_on_unreported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = recipe(tmp_path, "epochs=2")
    trainer = Trainer(own, tmp_path / "run", device="cpu", wandb="offline", shows_progress=False)
    save = trainer._save

    def killed(*arguments: Any) -> None:
        save(*arguments)
        raise Killed

    monkeypatch.setattr(trainer, "_save", killed)
    with pytest.raises(Killed):
        trainer.fit()
    fit(own, tmp_path / "run", resume=True)
    (logged,) = offline_runs(tmp_path / "run")
    progress, _ = load_state(tmp_path / "run", own.to_yaml())
    assert progress.done == 2 and progress.wandb_id == logged.of("run")[0].run_id


def test_what_two_parts_of_a_run_tell_is_one_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = recipe(tmp_path, *FULL)
    trainer = Trainer(own, tmp_path / "run", device="cpu", wandb="offline", shows_progress=False)
    validate = trainer._validate

    def killed() -> dict[str, float]:
        if trainer.progress.done == 2:
            raise Killed
        return validate()

    monkeypatch.setattr(trainer, "_validate", killed)
    with pytest.raises(Killed):
        trainer.fit()
    fit(own, tmp_path / "run", resume=True, wandb="offline")
    one, two = offline_runs(tmp_path / "run")
    (first,), (second,) = one.of("run"), two.of("run")
    assert first.run_id == second.run_id and not first.resume and second.resume
    steps = [[row["_step"] for row in part.history if "epoch" in row] for part in (one, two)]
    assert steps == [[1, 2], [3, 4]]
    assert [record.exit_code for part in (one, two) for record in part.of("exit")] == [1, 0]


UNREACHABLE = "W&B cannot be reached"


def command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """A run that is to be reported online, where nothing listens."""
    recipe(tmp_path)
    arguments = [str(tmp_path / "recipe.yaml"), "epochs=1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    return [sys.executable, "-m", "glasszoo", "train", *arguments, "--wandb", "online"], own


@pytest.mark.parametrize("key", ["0123456789" * 4, "short"])
def test_without_network_an_online_run_is_kept_offline(key: str, tmp_path: Path) -> None:
    arguments, own = command(tmp_path)
    done = subprocess.run(arguments, env=own | {"WANDB_API_KEY": key}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(UNREACHABLE) == 1 and "for `wandb sync`" in done.stderr
    (logged,) = offline_runs(tmp_path / "run")
    assert "val/top1" in logged.history[0] and logged.artifacts("model")
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("*run-*")}
    assert ids == {logged.of("run")[0].run_id}


def test_without_a_key_nobody_is_asked_for_one_even_at_a_terminal(tmp_path: Path) -> None:
    arguments, own = command(tmp_path)
    terminal, inside = pty.openpty()
    process = subprocess.Popen(arguments, env=own, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    os.close(inside)
    printed = b""
    try:
        while part := os.read(terminal, 4096):
            printed += part
    except OSError:
        pass  # how Linux says that the other end is closed
    os.close(terminal)
    text = printed.decode()
    assert process.wait() == 0, text
    assert f"{UNREACHABLE} (no API key is known" in text and "Enter your choice" not in text
    assert offline_runs(tmp_path / "run")


def test_an_error_of_the_client_ends_the_reporting_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = WandbRun("offline")
    assert run.start(tmp_path / "run", {}) is not None
    assert wandb.run is not None
    wandb.run.finish()  # as other code in the process could
    run.log({"epoch": 1, "phase": "all", "val_top1": 0.5})
    assert capfd.readouterr().err.count("nothing more is reported to W&B, all else goes on: ") == 1
    assert not run.is_reporting
    run.log({"epoch": 2, "phase": "all", "val_top1": 0.5})
    run.add(lambda: pytest.fail("what nobody sees is not made"))
    run.finish()
    assert not capfd.readouterr().err


def test_a_picture_that_fails_does_not_end_the_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(recipe(tmp_path, "epochs=1"), tmp_path / "run", device="cpu", wandb="offline")
    trainer.report._showcase.places = [10**6]
    assert trainer.fit().best.is_dir()
    assert "nothing more is reported to W&B" in capfd.readouterr().err


def test_only_the_first_process_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.training.wandb_run.is_first", lambda: False)
    run = WandbRun("offline")
    assert run.start(tmp_path / "run", {}, "abc") == "abc" and not run.is_reporting
    run.log({"epoch": 1, "phase": "all"})
    run.finish()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["wandb_images_every", "wandb_checkpoints_every"])
def test_a_number_below_zero_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every N epochs, where N must be 0 or more, not -1"):
        Trainer(recipe(tmp_path), tmp_path / "run", **{option: -1})


def test_the_random_state_is_left_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run = WandbRun("offline")
    run.start(tmp_path / "run", {})
    run.log({"epoch": 1, "phase": "all", "val_top1": 0.5})
    run.finish()
    assert torch.equal(state, torch.get_rng_state())
