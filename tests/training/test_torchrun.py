"""Whole runs by several processes: the numbers of one process, each image judged once, one writer, and a new start."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_trainer import rows, same, weights
from torch import Tensor, distributed, multiprocessing
from wandb_files import Logged, offline_runs

from glasszoo.data import loading
from glasszoo.data.samples import Batch, collate
from glasszoo.training import Trainer, load_recipe
from glasszoo.training.engine import Engine

# test_convnext has no batch norm, whose statistics are each process's own.
RECIPE = """
data: {name: FOLDER, validation: 0.3, batch_size: 12, on_error: skip}
model: {backbone: test_convnext, image_size: 32, crop_pct: 1.0}
optimizer: {lr: 1e-3, clip_grad: 5.0, accumulate: 2}
augmentation: {scale: [0.8, 1.0]}
epochs: 2
"""
CASES = {
    "evidence": (  # batches so small that a process can be left without an image
        "data.batch_size=4",
        "optimizer.accumulate=1",
        "ema_decay=0.9",
        "loss_weights={evidence_energy: 0.5, class_contrast: 0.1}",
    ),
    "prototypes": (
        "model.head=protopnet",
        "model.head_kwargs={dim: 8}",
        "epochs=3",
        "phases=[{name: joint, epochs: 2, project: true}, {name: last, trains: ['head.connection*']}]",
    ),
    "small": ("data.batch_size=100",),  # one batch, and short
    "probe": ("probe=true", "model.head=protopnet", "epochs=3"),
    "several labels": (
        "multi_label=true",
        "data.options.labels=[bright, dark, rare]",
        "data.batch_size=4",
        "optimizer.accumulate=1",
        "ema_decay=0.9",
        "label_smoothing=0.1",
    ),
}
REPORTED = "prototypes"  # to W&B: it has phases, a projection, and tables of both


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images of three classes, two in three with a box, five unreadable; and labels of which each has 0 to 3."""
    folder = tmp_path_factory.mktemp("images")
    lines = ["split,class,image,x1,y1,x2,y2,bright,dark,rare"]
    for number in range(37):
        noise = [Image.effect_noise((40, 40), 60 + 40 * (channel == number % 3)) for channel in range(3)]
        Image.merge("RGB", noise).save(folder / f"{number}.png")
        box = f"{number % 20},3,30,{20 + number % 7}" if number % 3 else ",,,"
        labels = f"{int(number % 3 == 0)},{int(number % 4 < 2)},{int(number % 7 == 1)}"
        lines.append(f"train,class {number % 3},{number}.png,{box},{labels}")
    for number in (5, 13, 22, 30, 31):
        (folder / f"{number}.png").write_bytes(b"broken")
    (folder / "index.csv").write_text("\n".join(lines))
    return folder


def recipe_of(case: str, images: Path, folder: Path) -> Any:
    path = folder / f"recipe {os.getpid()}.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(images)))
    return load_recipe(str(path), CASES[case])


def run(case: str, images: Path, folder: Path) -> list[str]:
    """Train in fp64, where one process and several differ by rounding alone; returns what was judged by this one."""
    seen: list[str] = []
    logits = Engine._logits

    def collated(samples: Any) -> Batch:
        batch = collate(samples)
        return batch._replace(images=batch.images.double())

    def noted(self: Engine, model: Any, batch: Any) -> Tensor:
        seen.extend(batch.ids if isinstance(batch, Batch) else [])
        return logits(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "collate", collated)
        patch.setattr(Engine, "_logits", noted)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the features of a probe
        for which in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"WANDB_{which}_DIR", str(folder / f"wandb_{which}"))
        wandb = "offline" if case == REPORTED else "disabled"
        torch.set_default_dtype(torch.float64)
        try:
            recipe = recipe_of(case, images, folder)
            Trainer(recipe, folder / case, device="cpu", wandb=wandb, shows_progress=False).fit()
        finally:
            torch.set_default_dtype(torch.float32)
    return seen


def work(rank: int, count: int, images: Path, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="localhost", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    (folder / f"process {rank}").write_text(str(os.getpid()))
    if rank:  # every file of ours is written by way of a temporary one

        def refused(*arguments: Any, **options: Any) -> Any:
            raise AssertionError("a process that is not the first writes")

        tempfile.mkstemp = refused
    for case in CASES:
        torch.save(run(case, images, folder), folder / f"{case} {rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, {case: run(case, images, folder) for case in CASES}


@pytest.fixture(scope="module", params=[2, 4])
def together(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[list[str]]]]:
    count, folder = request.param, tmp_path_factory.mktemp("together")
    multiprocessing.spawn(work, args=(count, images, folder), nprocs=count)
    return folder, {case: [torch.load(folder / f"{case} {rank}.pt") for rank in range(count)] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_several_processes_has_the_numbers_of_one(
    case: str, alone: tuple[Path, Any], together: tuple[Path, Any]
) -> None:
    ours, theirs = (rows(folder / case) for folder, _ in (alone, together))
    assert len(ours) == len(theirs) and "train_loss" in ours[0]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, text in one.items():
            if name == "phase":
                assert text == other[name]
            else:
                assert float(other[name] or 0) == pytest.approx(float(text or 0), rel=1e-6, abs=1e-9), name
    for which in ("last", "best"):
        expected = weights(alone[0] / case, which)
        found = weights(together[0] / case, which)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9, msg=name)


def curves(logged: Logged) -> list[dict[str, float]]:
    """What W&B was told of each epoch, but for pictures (with "." in their names) and clocks."""
    clocks = ("images_per_second", "waiting_for_data")
    return [
        {
            name: value
            for name, value in row.items()
            if "." not in name and name[0] != "_" and name.rpartition("/")[2] not in clocks
        }
        for row in logged.history
        if "epoch" in row
    ]


def test_several_processes_report_one_run_with_the_curves_of_one(
    alone: tuple[Path, Any], together: tuple[Path, Any]
) -> None:
    """The real client, offline: its files are read back."""
    (ours,), (theirs,) = (offline_runs(folder / REPORTED) for folder, _ in (alone, together))
    # The client's log has the number of the process that opened the run.
    (folder,) = (together[0] / REPORTED / "wandb").glob("*run-*")
    first, *others = (int((together[0] / f"process {rank}").read_text()) for rank in range(2))
    log = (folder / "logs" / "debug.log").read_text()
    assert f"MainThread:{first} " in log and not any(f":{other} " in log for other in others)
    assert len(curves(ours)) == 3 and len(curves(theirs)) == 3
    for one, other in zip(curves(ours), curves(theirs), strict=True):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-9) and "val/top1" in one and len(one) > 8
    for one, other in zip(ours.history, theirs.history, strict=True):
        assert one.keys() == other.keys()  # pictures and tables as well


@pytest.mark.parametrize("case", ["evidence", "several labels", "small"])
def test_every_image_is_judged_once_by_one_of_them(
    case: str, alone: tuple[Path, Any], together: tuple[Path, Any]
) -> None:
    everyones = [identifier for own in together[1][case] for identifier in own]
    assert sorted(everyones) == sorted(alone[1][case]) and len(everyones) > 10
    assert case == "small" or sum(map(bool, together[1][case])) > 1, "more than one process has something to judge"


STARTED = """
import os, signal, sys
from glasszoo.__main__ import main
from glasszoo.training.engine import Engine

learn, calls = Engine.learn, []

def dying(self, *arguments):
    calls.append(1)
    if len(calls) == 7 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, *arguments)

Engine.learn = dying
sys.exit(main(sys.argv[1:]))
"""


QUIET = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def training(images: Path, folder: Path, out: Path) -> list[str]:
    """The command of a run whose batches are so small that a process can be left without an image."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(images)))
    settings = ["data.batch_size=4", "optimizer.accumulate=1"]
    return ["train", str(recipe), "--out", str(out), "--device", "cpu", *settings]


def started(images: Path, folder: Path, dies: bool) -> Path:
    """What torchrun makes of a run of two processes, of which one may die in the second epoch."""
    script, out = folder / "started.py", folder / f"run {dies}"
    script.write_text(STARTED.replace("DIES", str(dies)))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--standalone"]
    command = [sys.executable, *torchrun, str(script), *training(images, folder, out)]
    done = subprocess.run(command, env=os.environ | QUIET, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ("exitcode: -9" in done.stderr) == dies, done.stderr
    assert done.stdout.count("best validation top-1") == 1, "the first process alone speaks"
    assert done.stdout.count("left out as unreadable: 5 images (") == 1, done.stdout  # of both processes together
    return out


def test_torchrun_starts_a_run_anew_whose_process_died(images: Path, tmp_path: Path) -> None:
    unbroken, broken = (started(images, tmp_path, dies) for dies in (False, True))
    assert rows(unbroken) == rows(broken)
    assert same(weights(unbroken, "best"), weights(broken, "best"))


def test_slurm_starts_what_torchrun_starts(images: Path, tmp_path: Path) -> None:
    """As srun tells each task who it is; SLURM itself is not here."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    out = tmp_path / "run slurm"
    command = [sys.executable, "-m", "glasszoo", *training(images, tmp_path, out)]
    tasks = []
    for task in range(2):
        told = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        own = os.environ | QUIET | meeting | told
        tasks.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    printed = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    assert ["best validation top-1" in said for said, _ in printed] == [True, False]
    torchrun = started(images, tmp_path, dies=False)
    assert rows(out) == rows(torchrun) and same(weights(out, "best"), weights(torchrun, "best"))


def test_sigterm_to_torchrun_saves_the_state_of_a_step(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "glasszoo"]
    command = [*torchrun, *training(images, tmp_path, out), "epochs=400"]
    process = subprocess.Popen(command, env=os.environ | QUIET, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not (out / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=200)
    assert "as SIGTERM asked; --resume continues" in told, told
    state = torch.load(out / "training_state.pt", weights_only=True)["progress"]
    assert state["step"] or state["done"], "of this step, or of the epoch that ended just before"
