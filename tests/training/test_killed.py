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
# Starts runs in processes forked from one that has imported everything, and kills each after the time it is told.
KILLER = """
import os, signal, sys, time
from glasszoo.__main__ import main
import glasszoo.training.trainer, glasszoo.training.engine

def attempt(seconds):
    process = os.fork()
    if not process:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main(["train", *sys.argv[1:], "--auto-resume", "--save-minutes", "0.001", "--device", "cpu"]))
    deadline = time.monotonic() + seconds
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
    run = tmp_path / "run"
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(written(tmp_path)), "--out", str(run)]
    chance = random.Random(0)
    kills, phases = 0, set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own) as killer:
        assert killer.stdin and killer.stdout

        def attempt(seconds: float) -> str:
            print(seconds, file=killer.stdin, flush=True)  # type: ignore[arg-type]
            return killer.stdout.readline().strip()  # type: ignore[union-attr]

        while kills < KILLS:
            # Long enough to begin, and short enough that twenty do not reach the end.
            told = attempt(chance.uniform(0.3, 0.3 + 0.25 * whole[1]))
            if told != "None":
                assert told == "0", told
                break
            kills += 1
            state = run / "training_state.pt"
            if state.exists():
                phases.add(torch.load(state, weights_only=True)["progress"]["phase"])
        while (told := attempt(600)) != "0":
            raise AssertionError(f"the run ended with {told}")
        killer.stdin.close()
    assert kills >= 5 and len(phases) > 1, "it was over before it was killed often enough"
    assert same_runs(run, whole[0])
    assert not list(run.rglob("*.tmp")), "what was half written is cleared away"


@pytest.mark.parametrize("number", [1, 7, 16, 17, 24, 40, 61])
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


def test_the_command_exits_with_0_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glasszoo", "train", str(written(tmp_path)), "epochs=400", "phases=null"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run"), "--device", "cpu"], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume continues from there" in told, told
