"""The trainer: it learns, it continues to the bit, it freezes what it should, and it loses nothing."""

import csv
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.common.stopping import Stopped
from glasszoo.heads import CAM, registry
from glasszoo.models import BLACK_BOX, read_facts
from glasszoo.training import Recipe, Trainer, load_recipe
from glasszoo.training.state import load_state

RECIPE = """
data:
  {name: critters, options: {size: 32, count: 120, rule: mark}, validation: 0.2, batch_size: 16, keep_in_memory: true}
model: {backbone: test_byobnet, output_stride: 16, image_size: 32, crop_pct: 1.0}
optimizer: {lr: 2e-3, clip_grad: 5.0}
augmentation: {scale: [0.6, 1.0]}
epochs: 2
"""
# Everything that has a state of its own: phases, accumulation, an average, a warm-up.
FULL = (
    'phases=[{name: warm, epochs: 1, trains: ["head.*"]}, {name: joint, lr_scale: {"backbone.*": 0.5}}]',
    "epochs=4",
    "ema_decay=0.9",
    "optimizer.accumulate=2",
    "optimizer.warmup_epochs=0.5",
    "model.backbone_kwargs.drop_path_rate=0.1",
    "label_smoothing=0.1",
)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), overrides)


def fit(recipe: Recipe, folder: Path, **options: Any) -> Path:
    Trainer(recipe, folder, device="cpu", shows_progress=False, **options).fit()
    return folder


def weights(folder: Path, which: str = "last") -> dict[str, Tensor]:
    return load_file(folder / which / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what a clock measured."""
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "waiting_for_data")} for row in table]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Two classes that a few steps can tell apart: red noise and green noise."""
    for number in range(40):
        path = tmp_path / "data" / ("green", "red")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise, none = Image.effect_noise((40, 40), 60), Image.new("L", (40, 40))
        Image.merge("RGB", (noise, none, none) if number % 2 else (none, noise, none)).save(path)
    return tmp_path / "data"


def of_folder(data: Path) -> tuple[str, ...]:
    return f"data.name={data}", "data.options={}", "data.batch_size=4"


def test_it_learns_and_leaves_what_it_promises(tmp_path: Path, colours: Path) -> None:
    (colours / "LICENSE").write_text("\n  A licence \n\nDo what you like.\n")
    own = recipe(tmp_path, *of_folder(colours), "epochs=4", "optimizer.lr=1e-3")
    folder = fit(own, tmp_path / "run", command="glasszoo train x")
    table = rows(folder)
    assert [row["epoch"] for row in table] == list("1234")
    assert float(table[-1]["train_loss"]) < 0.5 * float(table[0]["train_loss"])
    assert float(table[-1]["val_top1"]) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "best", "last", "metrics.csv", "recipe.yaml", "training_state.pt",
    ]  # fmt: skip
    assert load_recipe(str(folder / "recipe.yaml")) == own
    facts = read_facts(folder / "best")
    best = max(table, key=lambda row: (float(row["val_top1"]), -float(row["val_loss"])))
    assert facts.commands == ("glasszoo train x",) and facts.seed == 0 and facts.data is not None
    assert facts.data.name == "data" and facts.data.license == "A licence" and sum(facts.data.images.values()) == 40
    (metric,) = facts.metrics
    assert (metric.name, metric.split, metric.value) == ("top1", "validation", float(best["val_top1"]))
    assert f"after epoch {best['epoch']}," in metric.protocol and metric.images == facts.data.images["validation"]
    assert facts.lacking() == ["licence of the weights", "accuracy on a test split", "scores of the map", "picture"]
    assert glasszoo.load_pretrained(f"local-dir:{folder / 'best'}").class_names == ("green", "red")


def test_the_best_epoch_is_the_one_published(tmp_path: Path) -> None:
    folder = fit(recipe(tmp_path, "epochs=3"), tmp_path / "run")
    best = max(rows(folder), key=lambda row: (float(row["val_top1"]), -float(row["val_loss"])))
    model = glasszoo.load_pretrained(f"local-dir:{folder / 'best'}")
    validation = Trainer(recipe(tmp_path, "epochs=3"), tmp_path / "other", shows_progress=False).loaders.validation
    with torch.no_grad():
        correct = [model(batch.images).logits.argmax(1) == batch.labels for batch in validation]
    assert torch.cat(correct).double().mean().item() == pytest.approx(float(best["val_top1"]))


@pytest.mark.parametrize("head", ["cam", "pipnet"])  # one view, and two
def test_patches_are_deleted_while_training_alone_and_the_card_says_so(tmp_path: Path, head: str) -> None:
    options = (f"model.head={head}", "augmentation.patch_deletion=1", "epochs=1", "phases=[{name: only}]")
    trainer = Trainer(recipe(tmp_path, *options), tmp_path / "run", device="cpu", shows_progress=False)
    loaders = trainer.loaders
    for loader, is_deleted in ((loaders.training, True), (loaders.validation, False), (loaders.projection, False)):
        holes = [(batch.images == 0).flatten(1).sum(1) for batch in loader]
        views = trainer.model.views if is_deleted else 1
        assert (torch.cat(holes) >= views * 3 * 8 * 8 * is_deleted).all() and bool(torch.cat(holes).any()) == is_deleted
    facts = read_facts(trainer.fit().folder / "last")
    assert facts.notes["Training"].startswith("In 100% of the training images one cell of a 4 × 4 grid")
    assert not read_facts(fit(recipe(tmp_path, "epochs=1"), tmp_path / "other") / "last").notes


def test_the_same_seed_gives_the_same_bits_whatever_the_workers(tmp_path: Path) -> None:
    one = fit(recipe(tmp_path), tmp_path / "one")
    two = fit(recipe(tmp_path, "data.num_workers=1", "data.keep_in_memory=false"), tmp_path / "two")
    other = fit(recipe(tmp_path, "seed=1"), tmp_path / "other")
    assert same(weights(one), weights(two)) and rows(one) == rows(two)
    assert not same(weights(one), weights(other))


def test_a_killed_run_continues_to_the_bit(tmp_path: Path, recipe_file: Path) -> None:
    whole = fit(load_recipe(str(recipe_file), FULL), tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "glasszoo", "train", str(recipe_file), *FULL, "--out", str(killed)]
    # Sums over more threads round otherwise: the killed run must have as many as this process.
    own = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*command, "--device", "cpu"], cwd=tmp_path, start_new_session=True, env=own)
    deadline = time.monotonic() + 300
    while not ((killed / "metrics.csv").exists() and len(rows(killed)) >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(rows(killed)) < 4, "the run was over before it was killed"
    fit(load_recipe(str(recipe_file), FULL), killed, resume=True)
    assert same(weights(whole), weights(killed)) and same(weights(whole, "best"), weights(killed, "best"))
    assert rows(whole) == rows(killed)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_any_epoch_is_a_place_to_continue(tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each epoch in turn, phase ends included: by an error when the next epoch begins."""
    whole = fit(recipe(tmp_path, *FULL), tmp_path / "whole")
    stopped = Trainer(recipe(tmp_path, *FULL), tmp_path / "stopped", device="cpu", shows_progress=False)
    train_epoch = stopped._train_epoch

    def until(*arguments: Any) -> dict[str, float]:
        if stopped.progress.done == epochs:
            raise RuntimeError("stopped")
        return train_epoch(*arguments)

    monkeypatch.setattr(stopped, "_train_epoch", until)
    if epochs < 4:
        with pytest.raises(RuntimeError, match="stopped"):
            stopped.fit()
    else:
        stopped.fit()
    fit(recipe(tmp_path, *FULL), tmp_path / "stopped", resume=True)
    assert same(weights(whole), weights(tmp_path / "stopped")) and rows(whole) == rows(tmp_path / "stopped")


def test_a_resumed_run_keeps_no_second_copy_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = recipe(tmp_path, *FULL)
    stopped = Trainer(own, tmp_path / "run", device="cpu", shows_progress=False)
    monkeypatch.setattr(stopped.report, "record", lambda *arguments: setattr(stopped._interruptions, "is_asked", True))
    with pytest.raises(Stopped):
        stopped.fit()
    loaded: list[weakref.ref[Tensor]] = []

    def noted(*arguments: Any) -> Any:
        progress, states = load_state(*arguments)
        loaded.extend(weakref.ref(tensor) for name in ("model", "ema") for tensor in states[name].values())
        return progress, states

    monkeypatch.setattr("glasszoo.training.trainer.load_state", noted)
    resumed = Trainer(own, tmp_path / "run", resume=True, device="cpu", shows_progress=False)
    gc.collect()
    assert len(loaded) == 2 * len(resumed.model.state_dict()) and not any(tensor() is not None for tensor in loaded)


def test_cam_and_the_black_box_are_the_same_function(tmp_path: Path) -> None:
    """The explanation is free: with the same seed both train to the same weights."""
    cam = weights(fit(recipe(tmp_path), tmp_path / "cam"))
    black_box = weights(fit(recipe(tmp_path, f"model.head={BLACK_BOX}"), tmp_path / "black_box"))
    names = {name: name.replace("head.classifier", "backbone.network.head.fc") for name in cam}
    assert set(names.values()) == set(black_box)
    assert all(torch.equal(cam[name], black_box[other]) for name, other in names.items())


def test_a_phase_freezes_weights_and_statistics(tmp_path: Path) -> None:
    frozen = 'phases=[{name: warm, trains: ["head.*"]}]'
    trainer = Trainer(recipe(tmp_path, frozen), tmp_path / "run", device="cpu", shows_progress=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone."), name


def test_learning_rates_follow_schedule_and_phase(tmp_path: Path) -> None:
    scaled = 'phases=[{name: x, lr_scale: {"backbone.*": 0.1}}]'
    trainer = Trainer(recipe(tmp_path, scaled, "optimizer.warmup_epochs=1"), tmp_path / "run", shows_progress=False)
    seen: list[dict[float, float]] = []
    step = trainer.engine.step

    def watched(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        seen.append({group["lr_scale"]: group["lr"] for group in optimizer.param_groups})
        step(optimizer, *rest)

    trainer.engine.step = watched  # type: ignore[method-assign]
    trainer.fit()
    rates = [rate[1.0] for rate in seen]
    assert all(rate[0.1] == pytest.approx(0.1 * rate[1.0]) for rate in seen)
    peak = len(rates) // 2
    assert rates[0] == pytest.approx(0.01 * 2e-3) and max(rates) == rates[peak] == pytest.approx(2e-3)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1 * max(rates)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """A frozen batch norm makes the two the same function of the data."""
    common = ('phases=[{name: warm, trains: ["head.*"]}]', "data.options.count=80", "optimizer.name=sgd", "epochs=1")
    common += ("augmentation.hflip=0", "augmentation.crop=false")
    small = weights(fit(recipe(tmp_path, *common, "data.batch_size=8", "optimizer.accumulate=4"), tmp_path / "small"))
    large = weights(fit(recipe(tmp_path, *common, "data.batch_size=32"), tmp_path / "large"))
    torch.testing.assert_close(small["head.classifier.weight"], large["head.classifier.weight"], atol=1e-6, rtol=1e-4)


def test_a_lost_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    exploding = 'phases=[{name: good, epochs: 1}, {name: bad, lr_scale: {"*": 1e30}}]'
    lost = recipe(tmp_path, exploding, "optimizer.clip_grad=null")
    with pytest.raises(InputError, match=r"no number any more in epoch 2: lower optimizer\.lr.*run/last"):
        fit(lost, tmp_path / "run")
    good = weights(fit(recipe(tmp_path, "epochs=1"), tmp_path / "good"))
    assert len(rows(tmp_path / "run")) == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values()) and good


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    trainer = Trainer(recipe(tmp_path), run, device="cpu", shows_progress=False)
    save, calls = torch.save, []

    def full(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    monkeypatch.undo()
    assert not list(run.rglob("*.tmp"))
    fit(recipe(tmp_path), run, resume=True)
    assert same(weights(run), weights(fit(recipe(tmp_path), tmp_path / "whole")))


def test_unreadable_training_images_are_skipped_when_asked(tmp_path: Path, colours: Path) -> None:
    (colours / "red" / "39.png").write_bytes(b"broken")
    own = (*of_folder(colours), "data.keep_in_memory=false")
    with pytest.raises(InputError, match=r"39\.png is no image"):
        fit(recipe(tmp_path, *own), tmp_path / "stopped")
    trainer = Trainer(recipe(tmp_path, *own, "data.on_error=skip"), tmp_path / "run", shows_progress=False)
    trainer.fit()
    loaders = trainer.loaders
    assert list(loaders.training.unreadable | loaders.validation.unreadable) == ["red/39.png"]


def test_head_losses_are_weighted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Penalised(CAM):
        def losses(self, state: Any, targets: Tensor) -> dict[str, Tensor]:
            return {"size": self.classifier.weight.square().sum()}

    monkeypatch.setitem(registry._HEADS, "penalised", Penalised)
    free = fit(recipe(tmp_path, "model.head=penalised", "loss_weights.size=0"), tmp_path / "free")
    bound = fit(recipe(tmp_path, "model.head=penalised", "loss_weights.size=30"), tmp_path / "bound")
    assert same(weights(free), weights(fit(recipe(tmp_path), tmp_path / "plain")))
    size = [weights(folder)["head.classifier.weight"].square().sum() for folder in (free, bound)]
    assert size[1] < 0.5 * size[0] and "size" in rows(bound)[0]
    with pytest.raises(InputError, match="unknown loss term 'sise': did you mean 'size'"):
        fit(recipe(tmp_path, "model.head=penalised", "loss_weights.sise=1"), tmp_path / "x")


def test_a_phase_can_end_in_a_projection(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the training images once, and makes another model: its average and the best epoch begin anew."""
    seen: list[Any] = []

    class Projecting(CAM):
        def project(self, loader: Any, model: Any) -> dict[str, float]:
            seen.extend(identifier for batch in loader for identifier in batch.ids)
            torch.nn.init.zeros_(self.classifier.weight)
            return {"projected": float(len(seen))}

    monkeypatch.setitem(registry._HEADS, "projecting", Projecting)
    phases = 'phases=[{name: joint, epochs: 3, project: true}, {name: rest, lr_scale: {"*": 0}}]'
    own = (*of_folder(colours), "epochs=5", "optimizer.lr=1e-3", "ema_decay=0.9")
    trainer = Trainer(recipe(tmp_path, *own, "model.head=projecting", phases), tmp_path / "run", shows_progress=False)
    folder = trainer.fit().folder
    assert len(seen) == len(set(seen)) == 32, "every training image once, no validation image"
    table = rows(folder)
    assert [row["projected"] for row in table] == ["", "", "", "32.0", ""]
    assert float(table[2]["val_top1"]) > float(table[3]["val_top1"]) == trainer.progress.best == 0.5
    for which in ("best", "last"):
        assert not weights(folder, which)["head.classifier.weight"].any()
    with pytest.raises(InputError, match="head CAM has no prototypes to project"):
        fit(recipe(tmp_path, *own, phases), tmp_path / "cam")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=criters"], "unknown data set .* 'criters': did you mean 'critters'"),
        (["data.name=/no/folder"], "data set folder /no/folder does not exist"),
        (["data.options.rule=conjuction"], "unknown critter rule 'conjuction': did you mean 'conjunction'"),
        (["data.validation=1.5"], "validation fraction must lie between 0 and 1"),
        (["model.backbone=tset_resnet"], "unknown backbone 'tset_resnet': did you mean 'test_resnet'"),
        (["model.head=kam"], "unknown head 'kam': did you mean 'cam'"),
        (["model.output_stride=null", "model.image_size=24"], "images of 24 × 24 are smaller than one cell of the map"),
        (["model.weights=local-dir:/no/folder"], "Config file not found: /no/folder/config.json"),
        (["optimizer.name=adamv"], "unknown optimizer 'adamv': did you mean"),
        (['phases=[{trains: ["haed.*"]}]'], r"no parameter matches 'haed\.\*'; there are backbone\.\*, head\.\*"),
        (["phases=[{epochs: 5}]"], "do not fill 2 epochs"),
        (["phases=[{name: x, project: true}]"], "phase 'x' ends in a projection, and no epoch follows"),
        (["augmentation.scale=[0, 1]"], "augmentation.scale"),
    ],
)
def test_a_recipe_that_cannot_work_is_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(recipe(tmp_path, *overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()


def test_weights_of_another_architecture_are_named(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    source = f"model.weights=local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    with pytest.raises(InputError, match="holds weights of mobilenetv2_100, but the recipe wants test_byobnet"):
        fit(recipe(tmp_path, source, "model.output_stride=null"), tmp_path / "run")


def test_a_run_that_goes_on_tells_both_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may state a licence that was forgotten, which no number depends on."""
    run = tmp_path / "run"
    record = Trainer._record

    def stopped(self: Trainer, row: dict[str, Any], *arguments: Any) -> None:
        record(self, row, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_record", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(tmp_path), run, command="glasszoo train x")
    monkeypatch.setattr(Trainer, "_record", record)
    licences = ("data.license=CC0-1.0", "model.license=MIT")
    fit(recipe(tmp_path, *licences), run, command="glasszoo train x --resume", resume=True)
    facts = read_facts(run / "last")
    assert facts.commands == ("glasszoo train x", "glasszoo train x --resume")
    assert facts.weights_license == "MIT" and facts.data is not None and facts.data.license == "CC0-1.0"
    assert facts.metrics[0].protocol.startswith("share of images whose class is ranked first, after epoch 2,")


def test_a_run_from_before_a_key_existed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = fit(recipe(tmp_path), tmp_path / "whole"), tmp_path / "run"
    stopped = Trainer(recipe(tmp_path), run, device="cpu", shows_progress=False)
    monkeypatch.setattr(stopped.report, "record", lambda *arguments: setattr(stopped._interruptions, "is_asked", True))
    with pytest.raises(Stopped):
        stopped.fit()
    path = run / "training_state.pt"
    saved = torch.load(path)
    new = ("  validation_split: null\n", "multi_label: false\n", "  patch_deletion: 0.0\n")
    assert all(line in saved["recipe"] for line in new)
    for line in new:
        saved["recipe"] = saved["recipe"].replace(line, "")
    torch.save(saved, path)
    # What its default stood for is a difference where another value is asked for; so is a key that is gone.
    with pytest.raises(InputError, match="another recipe: 'validation_split: null' there, 'validation_split: val' now"):
        fit(recipe(tmp_path, "data.validation_split=val"), run, resume=True)
    torch.save(saved | {"recipe": saved["recipe"] + "momentum_of_old: 3\n"}, path)
    with pytest.raises(InputError, match="belongs to another recipe: .* there, .* now"):
        fit(recipe(tmp_path), run, resume=True)
    torch.save(saved, path)
    fit(recipe(tmp_path), run, resume=True)
    assert same(weights(run), weights(whole)) and rows(run) == rows(whole)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = fit(recipe(tmp_path, "epochs=1"), tmp_path / "run")
    before = weights(run)
    with pytest.raises(InputError, match="holds a run already: --resume continues it"):
        fit(recipe(tmp_path, "epochs=1"), run)
    with pytest.raises(InputError, match="belongs to another recipe: 'lr: 0.002' there, 'lr: 0.1' now"):
        fit(recipe(tmp_path, "epochs=1", "optimizer.lr=0.1"), run, resume=True)
    assert same(before, weights(run))
    with pytest.raises(InputError, match="nothing to resume"):
        fit(recipe(tmp_path), tmp_path / "empty", resume=True)
    (run / "training_state.pt").write_bytes((run / "training_state.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="truncated or no training state"):
        fit(recipe(tmp_path, "epochs=1"), run, resume=True)
    with pytest.raises(InputError, match="unknown wandb mode 'onlin': did you mean 'online'"):
        fit(recipe(tmp_path), tmp_path / "w", wandb="onlin")
    with pytest.raises(InputError, match="device 'gpu' cannot be used"):
        Trainer(recipe(tmp_path), tmp_path / "d", device="gpu")
    shutil.rmtree(run)
