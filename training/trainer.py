"""The trainer: plain torch with timm's pieces. It never asks which head it trains."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer
from tqdm import tqdm

from ..common.errors import InputError
from ..common.files import clear_temporaries, write_text
from ..common.processes import is_first, is_shared, own_place
from ..common.seeds import mixed_seed
from ..common.stopping import Stopped
from ..data.loading import dead_readers_told
from ..data.samples import Batch, targets_of
from ..heads import Phase
from ..models import ImageClassifier, read_facts, save_pretrained
from .building import build_data, build_loaders, build_model, chosen_device
from .card import facts_of_run, judged
from .engine import Engine
from .interruptions import LOOK_EVERY, Interruptions
from .phases import check_plan, optimizer_for, planned, scheduler_for, train_mode
from .probe import FeatureBatch, probe_loaders
from .recipe import Recipe
from .rows import as_csv, as_line
from .state import BEST, LAST, STATE, Progress, load_state, save_state
from .totals import EpochTotals
from .wandb_report import TrainingReport


class Trained(NamedTuple):
    """Where a run left its results."""

    folder: Path
    best: Path  # checkpoint folder
    score: float  # of the best epoch on validation, 0..1: top-1, or mean average precision with several labels
    unreadable: list[str]  # of the images that were left out, a sentence each


class Trainer:
    """One training run: leaves recipe.yaml, metrics.csv, and the checkpoints best/ and last/ in `folder`.

    The model is chosen by top-1 (by mean average precision, where images have several labels) on the validation images
    (`build_data`); the test split is not read.
    Under torch.distributed (`common.processes`) all processes train one model, on shares of each batch; the first
    writes.

    Args:
        recipe: What to do.
        folder: The run's folder; with several processes one that all of them see.
        resume: Continue the run in `folder`, to the bit on a CPU.
        device: torch's name; default: the GPU if there is one.
        wandb: "disabled", "offline" or "online".
        wandb_images_every: W&B gets explanations after so many epochs, and after the last; 0: never.
        wandb_checkpoints_every: W&B gets the checkpoint of so many epochs beside the best; 0: the best alone.
        command: What started the run, for the model card.
        save_minutes: How often the state is saved in the midst of an epoch.
        shows_progress: Show a bar.

    Raises:
        InputError: A recipe that cannot work (the reason is named), or a folder that holds a run already.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool = False,
        device: str | None = None,
        wandb: str = "disabled",
        wandb_images_every: int = 5,
        wandb_checkpoints_every: int = 0,
        command: str = "",
        save_minutes: float = 15.0,
        shows_progress: bool = True,
    ) -> None:
        if not resume and (folder / STATE).exists():
            raise InputError(f"{folder} holds a run already: --resume continues it, another --out starts anew")
        self.recipe, self.folder, self.shows_progress = recipe, folder, shows_progress and is_first()
        self.device = chosen_device(device)
        self.progress, states = load_state(folder, recipe.to_yaml()) if resume else (Progress(), {})

        training_set, validation_set = build_data(recipe.data, recipe.seed)
        if recipe.multi_label != (targets_of(training_set) is not None):
            raise InputError(
                "multi_label goes with a data set that says which classes are in each image, and only with one: of a "
                "folder, data.options.labels names these columns of index.csv"
            )
        commands = (*(read_facts(folder / LAST).commands if resume and (folder / LAST).is_dir() else ()), command)
        self.facts = facts_of_run(recipe, training_set, validation_set, self.device, commands)
        torch.manual_seed(mixed_seed(recipe.seed))
        model = build_model(recipe.model, training_set.classes)
        model.config = replace(model.config, multi_label=recipe.multi_label)
        self.engine = Engine(model, recipe, self.device)
        self.plan = planned(model.phases() if recipe.phases is None else recipe.phases, recipe.epochs)
        check_plan(model, self.plan, recipe.probe)
        self.report = TrainingReport(
            wandb,
            recipe,
            [phase.name for phase in self.plan],
            training_set,
            validation_set,
            pictures_every=wandb_images_every,
            checkpoints_every=wandb_checkpoints_every,
        )
        self._interruptions = Interruptions(save_minutes, self._where, self.device)
        needs_region = self.engine.objective.needs_region
        self._images = build_loaders(recipe, model, training_set, validation_set, needs_region)
        self.loaders = probe_loaders(model, recipe, self._images, self.device) if recipe.probe else self._images
        if resume:
            self.engine.load_state(states)
        # What the first phase takes up; the weights are in the model by now, and not kept a second time.
        self._resumed = {name: states[name] for name in ("optimizer", "totals") if name in states}

    @property
    def model(self) -> ImageClassifier:
        """The model that learns."""
        return self.engine.model

    def fit(self) -> Trained:
        """Train to the end.

        Raises:
            InputError: The loss is no number any more (the last good checkpoint stays), an unreadable image, or a dead
                process that read images.
            Stopped: SIGTERM came; the state is saved.
        """
        if is_first():
            clear_temporaries(self.folder)
            write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        with dead_readers_told(), self._interruptions, self.report.begin(self.folder, self.progress) as report:
            while self.progress.phase < len(self.plan):
                self._run_phase(self.plan[self.progress.phase])
            report.end(self.engine.judged_model)
        unreadable = [reason for lost in self.progress.unreadable.values() for reason in lost.values()]
        return Trained(self.folder, self.folder / BEST, self.progress.best, sorted(unreadable))

    def _run_phase(self, phase: Phase) -> None:
        assert phase.epochs is not None
        self.engine.begin(phase)
        optimizer = optimizer_for(self.model, phase, self.recipe.optimizer) if phase.trains else None
        updates = math.ceil(len(self.loaders.training) / self.recipe.optimizer.accumulate)
        scheduler = scheduler_for(optimizer, phase.epochs, updates, self.recipe.optimizer) if optimizer else None
        if optimizer and (self.progress.epoch or self.progress.step):
            optimizer.load_state_dict(self._resumed.pop("optimizer"))
        while self.progress.epoch < phase.epochs:
            row: dict[str, Any] = {"epoch": self.progress.done + 1, "phase": phase.name}
            accuracy = "train_label_accuracy" if self.recipe.multi_label else "train_top1"
            totals = EpochTotals(self.device, self._resumed.pop("totals", None), accuracy)
            if optimizer and scheduler:
                row |= self._train_epoch(optimizer, scheduler, totals, self.progress.epoch * updates)
                self.engine.join_statistics()
            try:
                row |= self._validate() | self.progress.changes
            except Stopped:
                self._save(optimizer, totals)
                raise
            self._stop_if_lost(row["val_loss"])
            self.progress.changes = {}
            self._record(row, optimizer)
        if phase.project:
            self._change("projection", self.model.project)
        if phase.prune:
            self._change("pruning", self.model.prune)
        self.progress.phase, self.progress.epoch = self.progress.phase + 1, 0

    def _change(self, name: str, change: Callable[[Iterable[Batch]], dict[str, float]]) -> None:
        """Let the model project or prune, and judge it at once.

        It is another model from then on: its average and `best` begin anew.
        """
        measure = self.recipe.measure
        short = measure.removeprefix("val_")
        before = self.progress.changes.get(f"{short}_after_projection", self.progress.history[-1][measure])
        self._seed()
        numbers = change(self._interruptions.watched(self.loaders.projection.batches()))
        self.engine.restart_average()
        self.progress.best, self.progress.best_loss = Progress.best, Progress.best_loss
        self.report.changed(self.model)
        after = self._validate()[measure]
        self.progress.changes |= {**numbers, f"{short}_before_{name}": before, f"{short}_after_{name}": after}

    def _train_epoch(
        self, optimizer: Optimizer, scheduler: Scheduler, totals: EpochTotals, update: int
    ) -> dict[str, float]:
        """What is left of a pass over the training images, whose first step is `update`; the means of the whole."""
        progress, training = self.progress, self.loaders.training
        accumulate, num_batches = self.recipe.optimizer.accumulate, len(training)
        training.set_epoch(progress.done, progress.step)
        train_mode(self.model)
        batches: Iterable[Batch | FeatureBatch] = training.batches()
        has_gradients, is_hidden = False, not self.shows_progress
        with tqdm(total=num_batches, initial=progress.step, unit="batch", leave=False, disable=is_hidden) as bar:
            bar.set_description(f"epoch {progress.done + 1}/{self.recipe.epochs}")
            for step, batch in enumerate(totals.timed(batches), progress.step):
                # The last group of batches can be short; each of its batches then counts for more.
                group = min(accumulate, num_batches - step // accumulate * accumulate)
                is_last = step % accumulate == group - 1
                # A batch can have lost all its images; with several processes all must take part all the same.
                if len(batch.labels) or is_shared():
                    self._seed(step)
                    losses = self.engine.learn(batch, group, is_last)
                    correct = self.engine.right(losses.logits, batch)
                    totals.add(
                        {"train_loss": losses.total.detach(), **losses.terms}, correct, losses.counts, losses.images
                    )
                    has_gradients = True
                    if step % LOOK_EVERY == 0:  # a look waits for the device
                        self._stop_if_lost(totals.means()["train_loss"])
                        bar.set_postfix_str(totals.line())
                if is_last and has_gradients:
                    self.engine.step(optimizer, scheduler, update + step // accumulate + 1)
                    has_gradients = False
                progress.step = step + 1
                bar.update()
                if is_last:
                    self._pause(optimizer, totals, step // accumulate)
        means = totals.joint_means()
        self._stop_if_lost(means["train_loss"])
        self._stop_if_untaught(means)
        return means | {"lr": optimizer.param_groups[0]["lr"]}

    def _pause(self, optimizer: Optimizer, totals: EpochTotals, number: int) -> None:
        """Between two steps: save the state where it is time to, and stop where that is asked for."""
        is_asked, is_due = self._interruptions.wanted(number)
        if is_asked or is_due:
            self._save(optimizer, totals)
        if is_asked:
            raise self._interruptions.stopped()

    def _where(self) -> str:
        return f"epoch {self.progress.done + 1} of {self.recipe.epochs}"

    def _seed(self, *numbers: int) -> None:
        """Set torch's random state by what is done next, so that a resumed run draws what an unbroken one draws."""
        rank = own_place().rank
        own = (rank,) if rank else ()
        torch.manual_seed(mixed_seed(self.recipe.seed, self.progress.done, *numbers, *own))

    def _validate(self) -> dict[str, float]:
        batches: Iterable[Batch | FeatureBatch] = self.loaders.validation.batches()
        return self.engine.judge(self._interruptions.watched(batches))

    def _record(self, row: dict[str, Any], optimizer: Optimizer | None) -> None:
        """Write down an epoch: checkpoints and metrics first, the state that vouches for them last."""
        progress = self.progress
        self._note_unreadable()
        progress.epoch, progress.done, progress.step = progress.epoch + 1, progress.done + 1, 0
        progress.history.append(row)
        # Of equally accurate epochs the one with the lower loss: small validation splits give many ties.
        score = row[self.recipe.measure]
        is_best = (score, -row["val_loss"]) > (progress.best, -progress.best_loss)
        if is_best:
            progress.best, progress.best_loss = score, row["val_loss"]
        if is_first():
            left_out = {part: len(lost) for part, lost in progress.unreadable.items()}
            facts = judged(self.facts, self.recipe.measure.removeprefix("val_"), score, row["epoch"], left_out)
            for name in (LAST, BEST) if is_best else (LAST,):
                save_pretrained(self.engine.judged_model, self.folder / name, facts)
            write_text(self.folder / "metrics.csv", as_csv(progress.history))
        self.report.record(row, self.engine.judged_model)  # before the state, which a killed run goes on from
        self._save(optimizer)
        if self.shows_progress:
            tqdm.write(as_line(row))

    def _save(self, optimizer: Optimizer | None, totals: EpochTotals | None = None) -> None:
        """Write the state, of an epoch's end or, with `totals`, from its midst."""
        if totals and not self.engine.is_finite():
            raise self._lost()
        states = self.engine.state() | {"optimizer": optimizer.state_dict() if optimizer else {}}
        if totals:
            self._note_unreadable()
            states["totals"] = totals.state()
        if is_first():
            save_state(self.folder, self.progress, self.recipe.to_yaml(), states)
        self._interruptions.saved()

    def _note_unreadable(self) -> None:
        """Add what any process has left out; also what is readable by now, but was not when the run began."""
        if self.recipe.data.on_error == "skip":
            for part, lost in self._images.unreadable().items():
                self.progress.unreadable.setdefault(part, {}).update(lost)

    def _lost(self) -> InputError:
        kept = f"the last good checkpoint is {self.folder / LAST}" if self.progress.done else "nothing was saved yet"
        return InputError(
            f"the loss is no number any more in epoch {self.progress.done + 1}: lower optimizer.lr, raise "
            f"optimizer.warmup_epochs or set optimizer.clip_grad; {kept}"
        )

    def _stop_if_lost(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self._lost()

    def _stop_if_untaught(self, means: dict[str, float]) -> None:
        """A term that no image has would stand in the recipe and do nothing; the first epoch tells."""
        lacking = [name for name in self.engine.objective.evidence_names if name not in means]
        if lacking and not self.progress.done:
            raise InputError(
                f"loss_weights.{lacking[0]}: no training image has a mask or a box that could teach it; "
                "leave the term out or give some (data/folder.py says how)"
            )
