"""The trainer: plain torch with timm's pieces. It never asks which head it trains."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from tqdm import tqdm

from ..common.errors import InputError
from ..common.files import write_text
from ..common.seeds import mixed_seed
from ..data.samples import Batch
from ..evaluation.accuracy import topk_correct
from ..heads import Features, Phase
from ..models import ImageClassifier, read_facts, save_pretrained
from .building import build_data, build_loaders, build_model, chosen_device
from .card import facts_of_run, judged
from .evidence_losses import evidence_region
from .objective import Losses, Objective
from .phases import freeze, optimizer_for, planned, scheduler_for, train_mode
from .probe import FeatureBatch, probe_loaders
from .recipe import Recipe
from .state import STATE, Progress, load_state, save_state
from .totals import EpochTotals, loss_and_top1
from .wandb_run import WandbRun

BEST, LAST = "best", "last"
_LOOK_EVERY = 10  # steps between looks at the loss; each waits for the device


class Trained(NamedTuple):
    """Where a run left its results."""

    folder: Path
    best: Path  # checkpoint folder
    top1: float  # validation top-1 of the best epoch, 0..1


class Trainer:
    """One training run: leaves recipe.yaml, metrics.csv, and the checkpoints best/ and last/ in `folder`.

    The model is chosen by top-1 on a validation split carved from the training images; the test split is not read.

    Args:
        recipe: What to do.
        folder: The run's folder.
        resume: Continue the run in `folder`, to the bit on a CPU.
        device: torch's name; default: the GPU if there is one.
        wandb: "disabled", "offline" or "online".
        command: What started the run, for the model card.
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
        command: str = "",
        shows_progress: bool = True,
    ) -> None:
        if not resume and (folder / STATE).exists():
            raise InputError(f"{folder} holds a run already: --resume continues it, another --out starts anew")
        self.recipe, self.folder, self.shows_progress = recipe, folder, shows_progress
        self.device = chosen_device(device)
        self.wandb = WandbRun(wandb)
        self.progress, self._states = load_state(folder, recipe.to_yaml()) if resume else (Progress(), {})

        training_set, validation_set = build_data(recipe.data, recipe.seed)
        commands = (*(read_facts(folder / LAST).commands if resume else ()), command)
        self.facts = facts_of_run(recipe, training_set, validation_set, self.device, commands)
        torch.manual_seed(mixed_seed(recipe.seed))
        self._memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        model = build_model(recipe.model, training_set.classes)
        self.model = model.to(self.device).to(memory_format=self._memory_format)
        self.plan = planned(model.phases() if recipe.phases is None else recipe.phases, recipe.epochs)
        for phase in self.plan:
            freeze(model, phase, recipe.probe)  # a wrong pattern is named now, not after hours
        if self.plan[-1].project or self.plan[-1].prune:
            what = "projection" if self.plan[-1].project else "pruning"
            raise InputError(
                f"phase {self.plan[-1].name!r} ends in a {what}, and no epoch follows to judge and save it: "
                "add a phase after it"
            )
        self.ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
        self._changes: dict[str, float] = {}  # what projection and pruning reported; written with the next epoch
        self.objective = Objective(model, recipe.label_smoothing, recipe.loss_weights, on_features=recipe.probe)
        loaders = build_loaders(recipe, model, training_set, validation_set, self.objective.needs_region)
        self.loaders = probe_loaders(model, recipe, loaders, self.device) if recipe.probe else loaders
        if resume:
            model.load_state_dict(self._states["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(self._states["ema"])
            for each in (model, *([] if self.ema is None else [self.ema.module])):
                each.load_training_state(self._states["training"])

    def fit(self) -> Trained:
        """Train to the end.

        Raises:
            InputError: The loss is no number any more (the last good checkpoint stays), or an unreadable image.
        """
        write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        self.wandb.start(self.folder, asdict(self.recipe))
        try:
            while self.progress.phase < len(self.plan):
                self._run_phase(self.plan[self.progress.phase])
        finally:
            self.wandb.finish()
        return Trained(self.folder, self.folder / BEST, self.progress.best)

    def _run_phase(self, phase: Phase) -> None:
        assert phase.epochs is not None
        recipe = self.recipe.optimizer
        freeze(self.model, phase, self.recipe.probe)
        self.objective.phase_weights = phase.loss_weights
        optimizer = optimizer_for(self.model, phase, recipe) if phase.trains else None
        updates = math.ceil(len(self.loaders.training) / recipe.accumulate)
        scheduler = scheduler_for(optimizer, phase.epochs, updates, recipe) if optimizer else None
        if self.progress.epoch and optimizer:
            optimizer.load_state_dict(self._states["optimizer"])
        while self.progress.epoch < phase.epochs:
            number = self.progress.done
            # Seeded by its number alone, an epoch is the same in a run that was resumed.
            torch.manual_seed(mixed_seed(self.recipe.seed, number))
            self.loaders.training.set_epoch(number)
            row: dict[str, Any] = {"epoch": number + 1, "phase": phase.name}
            if optimizer and scheduler:
                row |= self._train_epoch(optimizer, scheduler, self.progress.epoch * updates)
            row |= self._validate() | self._changes
            self._changes = {}
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
        before = self._changes.get("top1_after_projection", self.progress.history[-1]["val_top1"])
        numbers = change(self.loaders.projection)
        if self.ema is not None:
            self.ema.set(self.model)
            self.ema.module.load_training_state(self.model.training_state())
        self.progress.best, self.progress.best_loss = Progress.best, Progress.best_loss
        after = self._validate()["val_top1"]
        self._changes |= {**numbers, f"top1_before_{name}": before, f"top1_after_{name}": after}

    def _train_epoch(self, optimizer: Optimizer, scheduler: Scheduler, update: int) -> dict[str, float]:
        """One pass over the training images, from optimizer step `update` on; its means."""
        train_mode(self.model)
        accumulate, num_batches = self.recipe.optimizer.accumulate, len(self.loaders.training)
        totals = EpochTotals()
        training: Iterable[Batch | FeatureBatch] = self.loaders.training
        pending = 0  # batches whose gradients wait for a step
        with tqdm(total=num_batches, unit="batch", disable=not self.shows_progress, leave=False) as bar:
            bar.set_description(f"epoch {self.progress.done + 1}/{self.recipe.epochs}")
            for step, batch in enumerate(totals.timed(training)):
                # The last group of batches can be short; each of its batches then counts for more.
                group = min(accumulate, num_batches - step // accumulate * accumulate)
                losses = self._losses(batch)
                (losses.total / group).backward()
                pending += 1
                if pending == group:
                    pending, update = 0, update + 1
                    self._step(optimizer, scheduler, update)
                correct = topk_correct(losses.logits, batch.labels.to(self.device), 1)
                totals.add({"train_loss": losses.total.detach(), **losses.terms}, correct, losses.counts)
                bar.update()
                if step % _LOOK_EVERY == 0:
                    self._stop_if_lost(totals.means()["train_loss"])
                    bar.set_postfix_str(totals.line())
        if pending:  # a batch fell out of the last group, all its images being unreadable
            self._step(optimizer, scheduler, update + 1)
        means = totals.means()
        self._stop_if_lost(means["train_loss"])
        self._stop_if_untaught(means)
        return means | {"lr": optimizer.param_groups[0]["lr"]}

    def _losses(self, batch: Batch | FeatureBatch) -> Losses:
        labels = batch.labels.to(self.device, non_blocking=True)
        region = None
        if self.objective.needs_region:
            known = batch.region if isinstance(batch, FeatureBatch) else evidence_region(batch)
            region = known.to(self.device, non_blocking=True)
        is_mixed = self.recipe.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_mixed):
            return self.objective(self._inputs(batch), labels, region)

    def _inputs(self, batch: Batch | FeatureBatch) -> Features:
        """Images, or the features that stand for them."""
        return batch.inputs(self.device) if isinstance(batch, FeatureBatch) else self._images(batch)

    def _images(self, batch: Batch) -> Tensor:
        images = batch.images
        if images.ndim == 5:  # several views
            images = rearrange(images, "b v c h w -> (v b) c h w")
        return images.to(self.device, memory_format=self._memory_format, non_blocking=True)

    def _logits(self, model: ImageClassifier, batch: Batch | FeatureBatch) -> Tensor:
        if isinstance(batch, FeatureBatch):
            return model.forward_head(batch.inputs(self.device), None)[0].logits
        return model(self._images(batch), explain=0).logits

    def _step(self, optimizer: Optimizer, scheduler: Scheduler, update: int) -> None:
        if self.recipe.optimizer.clip_grad is not None:
            clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        self.model.after_step()
        if self.ema is not None:
            self.ema.update(self.model, step=update)
        scheduler.step_update(update)

    @property
    def evaluated_model(self) -> ImageClassifier:
        """The model that is validated and saved: the average, where the recipe keeps one."""
        return self.model if self.ema is None else self.ema.module

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        model = self.evaluated_model.eval()
        validation: Iterable[Batch | FeatureBatch] = self.loaders.validation
        loss, top1 = loss_and_top1((self._logits(model, batch), batch.labels) for batch in validation)
        return {"val_loss": loss, "val_top1": top1}

    def _record(self, row: dict[str, Any], optimizer: Optimizer | None) -> None:
        """Write down an epoch: checkpoints and metrics first, the state that vouches for them last."""
        progress = self.progress
        progress.epoch, progress.done = progress.epoch + 1, progress.done + 1
        progress.history.append(row)
        facts = judged(self.facts, row["val_top1"], row["epoch"])
        save_pretrained(self.evaluated_model, self.folder / LAST, facts)
        # Of equally accurate epochs the one with the lower loss: small validation splits give many ties.
        if (row["val_top1"], -row["val_loss"]) > (progress.best, -progress.best_loss):
            progress.best, progress.best_loss = row["val_top1"], row["val_loss"]
            save_pretrained(self.evaluated_model, self.folder / BEST, facts)
        write_text(self.folder / "metrics.csv", _as_csv(progress.history))
        states = {
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else {},
            "training": self.model.training_state(),
        }
        if self.ema is not None:
            states["ema"] = self.ema.module.state_dict()
        save_state(self.folder, progress, self.recipe.to_yaml(), states)
        self.wandb.log(row)
        if self.shows_progress:
            tqdm.write(_line(row))

    def _stop_if_lost(self, loss: float) -> None:
        if not math.isfinite(loss):
            kept = (
                f"the last good checkpoint is {self.folder / LAST}" if self.progress.done else "nothing was saved yet"
            )
            raise InputError(
                f"the loss is no number any more in epoch {self.progress.done + 1}: lower optimizer.lr, raise "
                f"optimizer.warmup_epochs or set optimizer.clip_grad; {kept}"
            )

    def _stop_if_untaught(self, means: dict[str, float]) -> None:
        """A term that no image has would stand in the recipe and do nothing; the first epoch tells."""
        lacking = [name for name in self.objective.evidence_names if name not in means]
        if lacking and not self.progress.done:
            raise InputError(
                f"loss_weights.{lacking[0]}: no training image has a mask or a box that could teach it; "
                "leave the term out or give some (data/folder.py says how)"
            )


def _line(row: dict[str, Any]) -> str:
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return f"epoch {row['epoch']} ({row['phase']})  {text}"


def _as_csv(history: list[dict[str, Any]]) -> str:
    """The rows under the union of their columns: phases can have different losses."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
