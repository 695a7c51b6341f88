"""A model in training: the gradients of a batch, a step, a judgement; alone or as one of several processes."""

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..common.processes import is_shared, joint_sum, own_place
from ..data.samples import Batch, Sample, collate
from ..evaluation.accuracy import topk_correct
from ..heads import Features, Phase
from ..models import ImageClassifier
from .evidence_losses import evidence_region
from .objective import Losses, Objective
from .phases import freeze
from .probe import FeatureBatch
from .recipe import Recipe
from .totals import loss_and_map, loss_and_top1


class Engine:
    """`model` with its objective and, where the recipe keeps one, the average of its weights.

    With several processes DDP takes the mean of their gradients. Each process's loss is weighted by its share of the
    images, so that this is the gradient of the joint batch. Batch norms see their own process's images, as in timm.
    """

    def __init__(self, model: ImageClassifier, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self._memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self._memory_format)
        self.ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
        self.objective = Objective(
            model,
            recipe.label_smoothing,
            recipe.loss_weights,
            on_features=recipe.probe,
            multi_label=recipe.multi_label,
        )
        self._forward: Any = self.objective

    @property
    def judged_model(self) -> ImageClassifier:
        """The model that is validated and saved: the average, where the recipe keeps one."""
        return self.model if self.ema is None else self.ema.module

    def begin(self, phase: Phase) -> None:
        """Let what `phase` trains learn, and nothing else."""
        freeze(self.model, phase, self.recipe.probe)
        self.objective.phase_weights = phase.loss_weights
        self._forward = torch.compile(self.objective) if self.recipe.compile else self.objective
        if is_shared() and phase.trains:
            # What heads count while training they sum over processes themselves; batch norms: see `join_statistics`.
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch renames the option
                self._forward = DistributedDataParallel(self._forward, broadcast_buffers=False)

    def learn(self, batch: Batch | FeatureBatch, group: int, is_last: bool) -> Losses:
        """Add the gradients of one of `group` batches; the last of them brings those of all processes together."""
        waits = is_shared() and not is_last
        with self._forward.no_sync() if waits else nullcontext():
            losses = self._losses(batch)
            (losses.total / group).backward()
        return losses

    def step(self, optimizer: Optimizer, scheduler: Scheduler, update: int) -> None:
        """The optimizer's step number `update`."""
        if self.recipe.optimizer.clip_grad is not None:
            clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        self.model.after_step()
        if self.ema is not None:
            self.ema.update(self.model, step=update)
        scheduler.step_update(update)

    def join_statistics(self) -> None:
        """Give all processes the mean of their batch norms' statistics, as timm does after an epoch."""
        if is_shared():
            for model in (self.model, *([] if self.ema is None else [self.ema.module])):
                distribute_bn(model, own_place().size, reduce=True)

    @torch.no_grad()
    def judge(self, validation: Iterable[Batch | FeatureBatch]) -> dict[str, float]:
        """Mean loss and accuracy (`Recipe.measure`) of the judged model over the images of all processes."""
        model = self.judged_model.eval()
        if self.recipe.multi_label:
            loss, precision = loss_and_map((self._logits(model, batch), batch.targets) for batch in validation)
            return {"val_loss": loss, self.recipe.measure: precision}
        loss, top1 = loss_and_top1(((self._logits(model, batch), batch.labels) for batch in validation), self.device)
        return {"val_loss": loss, self.recipe.measure: top1}

    def right(self, logits: Tensor, batch: Batch | FeatureBatch) -> Tensor:
        """How right logits `b c` are on each image, `b`: the top class, or the share of classes told there or not."""
        logits = logits[: len(batch.labels)]  # none of a stand-in
        if self.recipe.multi_label:
            targets = batch.targets.reshape(logits.shape)  # a batch without images knows of no classes
            return ((logits > 0) == (targets.to(self.device) > 0)).float().mean(1)
        return topk_correct(logits, batch.labels.to(self.device), 1)

    def is_finite(self) -> bool:
        """Whether all weights are numbers still."""
        return bool(torch.stack([parameter.detach().sum() for parameter in self.model.parameters()]).isfinite().all())

    def state(self) -> dict[str, Any]:
        """State dicts by name."""
        states = {"model": self.model.state_dict(), "training": self.model.training_state()}
        return states if self.ema is None else states | {"ema": self.ema.module.state_dict()}

    def load_state(self, states: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.model.load_state_dict(states["model"])
        self.model.load_training_state(states["training"])
        if self.ema is not None:
            self.ema.module.load_state_dict(states["ema"])
            self.ema.module.load_training_state(states["training"])

    def restart_average(self) -> None:
        """The model has become another one: the average begins anew."""
        if self.ema is not None:
            self.ema.set(self.model)
            self.ema.module.load_training_state(self.model.training_state())

    def _losses(self, batch: Batch | FeatureBatch) -> Losses:
        share: Tensor | float = 1.0
        images: Tensor | float = float(len(batch.labels))
        if is_shared():
            images = joint_sum(torch.tensor(images, device=self.device)) / own_place().size
            share = len(batch.labels) / images
            if not len(batch.labels):
                batch, share = self._stand_in(), 0.0
        labels = batch.targets if self.recipe.multi_label else batch.labels
        labels = labels.to(self.device, non_blocking=True)
        region = None
        if self.objective.needs_region:
            known = batch.region if isinstance(batch, FeatureBatch) else evidence_region(batch)
            region = known.to(self.device, non_blocking=True)
        is_mixed = self.recipe.mixed_precision and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_mixed):
            losses: Losses = self._forward(self._inputs(batch), labels, region, share)
        return losses._replace(images=images)

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

    def _stand_in(self) -> Batch:
        """Two black images whose share is 0, for a process that got none: DDP waits for all processes."""
        views = (self.model.views,) if self.model.views > 1 else ()
        image = torch.zeros(*views, *self.model.config.preprocessing.input_size)
        nothing = torch.zeros(self.model.num_classes)
        return collate([Sample(image=image, label=0, id="", targets=nothing)] * 2)
