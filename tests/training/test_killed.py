"""A run killed, or asked to stop, at any moment goes on to the weights of one left alone, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import rows, same, weights

from glasszoo.common.stopping import Stopped
from glasszoo.training import Trainer, load_recipe
from glasszoo.training.engine import Engine
from glasszoo.training.interruptions import Interruptions

# Everything that has a state of its own: phases, a projection, accumulation, an average, random depth, two workers.
RECIPE = """
data:
  {name: critters, options: {size: 32, count: 160, rule: mark}, validation: 0.2, batch_size: 8, keep_in_memory: true}
model:
  {backbone: test_byobnet, head: protopnet, head_kwargs: {dim: 8}, output_stride: 16, image_size: 32, crop_pct: 1.0,
   backbone_kwargs: {drop_path_rate: 0.1}}
optimizer: {lr: 2e-3, clip_grad: 5.0, accumulate: 2, warmup_epochs: 0.5}
augmentation: {scale: [0.6, 1.0]}
ema_decay: 0.9
epochs: 5
phases:
  - {name: warm, epochs: 1, trains: ["head.*"]}
  - {name: joint, epochs: 2, project: true, lr_scale: {"backbone.*": 0.5}}
  - {name: last, epochs: 2, trains: ["head.connection*"]}
"""
KILLS = 20
# Starts runs in processes forked from one that has imported everything, and kills each after the time it is told: from
# where the trainer sets to work or, if it is negative, from the start.
KILLER = """
import os, select, signal, sys, time
from glasszoo.__main__ import main
import glasszoo.training.engine
from glasszoo.training import Trainer

def attempt(seconds):
    begun, begins = os.pipe()
    process = os.fork()
    if not process:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        fit = Trainer.fit

        def told(self):
            os.write(begins, b"!")
            return fit(self)

        Trainer.fit = told
        os._exit(main(["train", *sys.argv[1:], "--auto-resume", "--save-minutes", "0.001", "--device", "cpu"]))
    if seconds >= 0:
        select.select([begun], [], [], 100)
    os.close(begun), os.close(begins)
    deadline = time.monotonic() + abs(seconds)
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None

for line in sys.stdin:
    print(attempt(float(line)), flush=True)
"""


def written(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def same_runs(one: Path, two: Path) -> bool:
    """Whether checkpoints and metrics are the same, to the bit."""
    return all(same(weights(one, which), weights(two, which)) for which in ("best", "last")) and rows(one) == rows(two)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that nobody disturbs, and how long it took. One thread: sums over more can be rounded otherwise."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        recipe = load_recipe(str(written(folder)))
        Trainer(recipe, folder / "run", device="cpu", shows_progress=False).fit()
    finally:
        torch.set_num_threads(threads)
    return folder / "run", time.monotonic() - began


def test_twenty_kills_cost_nothing(tmp_path: Path, whole: tuple[Path, float]) -> None:
    """Killed at random moments, wherever they fall: in a step, in a file half written, in validation or projection."""
    for seed in range(4):  # a run can come to its end too soon, or through a phase between two kills
        run = tmp_path / f"run {seed}"
        kills, phases = killed(written(tmp_path), run, seed, whole[1])
        assert same_runs(run, whole[0])
        assert not list(run.rglob("*.tmp")), "what was half written is cleared away"
        if kills == KILLS and phases == {0, 1, 2}:
            return
    raise AssertionError(f"no run was killed {KILLS} times and in each phase")


def killed(recipe: Path, run: Path, seed: int, seconds: float) -> tuple[int, set[int]]:
    """Kill a run that takes some `seconds`, and let it end: how often it was killed, and in which phases."""
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(recipe), "--out", str(run)]
    chance = random.Random(seed)
    kills, phases, done, spent = 0, set(), 0.0, 0.05 * seconds
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own) as killer:
        assert killer.stdin and killer.stdout

        def attempt(seconds: float) -> str:
            print(seconds, file=killer.stdin, flush=True)  # type: ignore[arg-type]
            return killer.stdout.readline().strip()  # type: ignore[union-attr]

        told = "None"
        while kills < KILLS:
            # Each kill comes a twentieth of the way after the one before, more or less. A quarter of what is left is
            # the most: the last phase is up to three times as fast as those before, by which the pace is told.
            way = min(0.9 * (kills + 1) / KILLS - done, (1 - done) / 4)
            ahead = max(0.0, way) * spent / max(done, 0.02)
            wait = -chance.uniform(0, 0.3) if kills % 7 == 3 else chance.uniform(0.3, 1.2) * ahead
            spent += max(0.0, wait)
            if (told := attempt(wait)) != "None":
                break
            kills += 1
            state = run / "training_state.pt"
            if state.exists():
                progress = torch.load(state, weights_only=True)["progress"]
                phases.add(progress["phase"])
                done = (progress["done"] + progress["step"] / 16) / 5
        if told == "None":
            told = attempt(600)
        assert told == "0", f"the run ended with {told}"
        killer.stdin.close()
    return kills, phases


@pytest.mark.parametrize("number", [1, 7, 16, 17, 24, 40, 61, 70, 100])
def test_sigterm_saves_where_it_comes(
    tmp_path: Path, whole: tuple[Path, float], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the step, or the look at validation images, of that number: in each phase, and in the midst of epochs."""
    calls: list[str] = []

    def counted(name: str) -> None:
        original = getattr(Engine, name)

        def call(self: Engine, *arguments: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                signal.raise_signal(signal.SIGTERM)
            return original(self, *arguments)

        monkeypatch.setattr(Engine, name, call)

    counted("learn")
    counted("_logits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = load_recipe(str(written(tmp_path)))
        with pytest.raises(Stopped, match=r"stopped in epoch \d of 5, as SIGTERM asked; --resume continues"):
            Trainer(recipe, tmp_path / "run", device="cpu", shows_progress=False).fit()
        seen = len(calls)
        assert seen <= number + 2, "it stops before the next step"
        Trainer(recipe, tmp_path / "run", resume=True, device="cpu", shows_progress=False).fit()
    finally:
        torch.set_num_threads(threads)
    assert same_runs(tmp_path / "run", whole[0])


def test_sigterm_in_a_projection(tmp_path: Path, whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Interruptions.watched

    def asked(self: Interruptions, batches: Any) -> Any:
        for number, batch in enumerate(watched(self, batches)):
            if number == 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = load_recipe(str(written(tmp_path)))
        with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"stopped in epoch \d of 5"):
            patch.setattr(Interruptions, "watched", asked)
            Trainer(recipe, tmp_path / "run", device="cpu", shows_progress=False).fit()
        Trainer(recipe, tmp_path / "run", resume=True, device="cpu", shows_progress=False).fit()
    finally:
        torch.set_num_threads(threads)
    assert same_runs(tmp_path / "run", whole[0])


def running(tmp_path: Path, *settings: str, starts: tuple[str, ...] = ("-m", "glasszoo")) -> subprocess.Popen[str]:
    """A long run that has ended its first epoch, in a process group of its own."""
    process = subprocess.Popen(
        [
            sys.executable,
            *starts,
            "train",
            str(written(tmp_path)),
            "epochs=400",
            "phases=null",
            *settings,
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("workers", [0, 2])
def test_the_command_exits_with_0_on_sigterm(tmp_path: Path, workers: int) -> None:
    """Asked of the whole group, as a scheduler asks."""
    process = running(tmp_path, f"data.num_workers={workers}", "data.keep_in_memory=false")
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume continues from there" in told, told


def test_a_reading_process_that_dies_is_named(tmp_path: Path) -> None:
    process = running(tmp_path, "data.num_workers=2", "data.keep_in_memory=false")
    readers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not readers.exists():
        pytest.skip(reason="only Linux tells the children of a process")
    os.kill(int(readers.read_text().split()[0]), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and "a process that reads images died" in told, told
    assert weights(tmp_path / "run", "best"), "what was good is still there"


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_sigterm_at_the_start(tmp_path: Path, seconds: float) -> None:
    """Wherever it comes, in an import or before: by exit status 0, or by the signal before Python can take it."""
    command = [sys.executable, "-m", "glasszoo", "train", str(written(tmp_path)), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert (process.returncode == 0 and "as SIGTERM asked" in told) or process.returncode == -signal.SIGTERM, told


SLOW = """
import sys, time, wandb
from glasszoo.__main__ import main
from glasszoo.training import wandb_report

wandb_report._GRACE = 1.0
finish = wandb.Run.finish

def slow(*arguments, **options):
    time.sleep(600)
    finish(*arguments, **options)

wandb.Run.finish = slow
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_does_not_wait_for_slow_uploads(tmp_path: Path) -> None:
    """The client is the real one, but for an end that takes ten minutes, as on a slow network."""
    process = running(tmp_path, "--wandb", "offline", "--wandb-images-every", "0", starts=("-c", SLOW))
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume continues from there" in told, told
    assert "not all has been uploaded to W&B yet" in told
