"""Images that a run leaves out as unreadable: counted once, told at its end and in the card."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glasszoo.__main__ import main
from glasszoo.common.stopping import Stopped
from glasszoo.models import read_facts
from glasszoo.training import Trainer, load_recipe

RECIPE = """
data: {name: FOLDER, validation_split: validation, batch_size: 8, on_error: skip}
model: {backbone: test_resnet, image_size: 32, crop_pct: 1.0}
epochs: 3
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes; of 24 training images four are broken, of 10 validation images one."""
    root = tmp_path / "images"
    root.mkdir()
    lines = ["split,class,image"]
    for number in range(34):
        Image.effect_noise((32, 32), 50).convert("RGB").save(root / f"{number}.png")
        lines.append(f"{'train' if number < 24 else 'validation'},{'ab'[number % 2]},{number}.png")
    for number in (2, 7, 11, 20, 30):
        (root / f"{number}.png").write_text("no image")
    (root / "index.csv").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(root)))
    return root


def told(run: Path) -> str | None:
    return read_facts(run / "last").notes.get("Unreadable images")


CARD = "4 of 24 images (train) and 1 of 10 images (validation) could not be read and were left out."


@pytest.mark.parametrize("overrides", [[], ["probe=true", "optimizer.lr=1e-2"]], ids=["images", "probe"])
def test_the_command_counts_each_once(data: Path, capsys: pytest.CaptureFixture[str], overrides: list[str]) -> None:
    run = data.parent / "run"
    assert main(["train", str(data.parent / "recipe.yaml"), *overrides, "--device", "cpu", "--out", str(run)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    reasons = "; ".join(f"{data}/{number}.png is no image" for number in (11, 2, 20))
    assert line == f"left out as unreadable: 5 images ({reasons}; and 2 more)"
    assert told(run) == f"Up to epoch 3, {CARD}"
    facts = read_facts(run / "last")
    assert facts.data is not None and facts.data.images == {"train": 24, "validation": 10}
    assert facts.metrics[0].images == 9
    assert CARD in (run / "last/README.md").read_text(encoding="utf-8")


def test_nothing_is_said_where_all_are_readable(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in data.glob("*.png"):
        Image.effect_noise((32, 32), 50).convert("RGB").save(path)
    run = data.parent / "run"
    asked = ["train", str(data.parent / "recipe.yaml"), "epochs=1", "--device", "cpu", "--out", str(run)]
    assert main(asked) == 0
    assert "left out" not in capsys.readouterr().out and told(run) is None
    assert read_facts(run / "last").metrics[0].images == 10


@pytest.mark.parametrize("epochs", [0, 1])  # stopped in the midst of the first epoch, and after it
def test_a_resumed_run_knows_what_was_left_out_before(data: Path, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own, run = load_recipe(str(data.parent / "recipe.yaml")), data.parent / "run"
    stopped = Trainer(own, run, device="cpu", shows_progress=False)
    seen = stopped.loaders.training.unreadable  # type: ignore[union-attr]
    monkeypatch.setattr(
        stopped._interruptions, "wanted", lambda number: (bool(seen) and stopped.progress.done == epochs,) * 2
    )
    with pytest.raises(Stopped):
        stopped.fit()
    before = dict(seen)
    assert len(before) == 4 if epochs else 0 < len(before) < 4
    for path in data.glob("*.png"):
        Image.effect_noise((32, 32), 50).convert("RGB").save(path)
    trained: Any = Trainer(own, run, resume=True, device="cpu", shows_progress=False).fit()
    assert {missing.reason for missing in before.values()} <= {*trained.unreadable}
    assert len(trained.unreadable) == len(before) + (1 if epochs else 0)
