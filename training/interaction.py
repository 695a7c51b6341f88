"""Interaction with prototypes: some go, by a person's choice, the paper's or a budget's; the last layer learns again.

Both are judged on the validation images of the run that trained the model. The test split is not read.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from typing import NamedTuple

import torch

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..data.loading import Loader, OnError
from ..data.samples import Batch, ImageDataset
from ..evaluation.benchmark import check_classes
from ..heads import Phase
from ..heads.options import check_range
from ..models import ImageClassifier
from ..models.classifier import prototype_head
from .objective import Objective
from .phases import freeze, optimizer_for, scheduler_for, train_mode
from .probe import FeatureLoader, computed_features
from .recipe import OptimizerRecipe
from .totals import loss_and_top1


@dataclass(frozen=True)
class Pruning:
    """Which prototypes are to go; what is asked for is done in this order.

    Raises:
        InputError: Nothing is asked for, or a budget below 1.
    """

    remove: Sequence[int] = ()  # forbidden by number, as the gallery and prototypes.json give it
    as_in_paper: bool = False  # by the head's own `prune`
    budget: int | None = None  # how many are left: `BestCellHead.prune_to`

    def __post_init__(self) -> None:
        if not self.remove and not self.as_in_paper and self.budget is None:
            raise InputError("no prototype is to go: say which (--remove), --as-in-paper, or how many stay (--budget)")
        if self.budget is not None:
            check_range("budget", self.budget, 1)


@dataclass(frozen=True)
class Refit:
    """How the last layer learns again: by timm's AdamW, at a rate that falls to 0 along a cosine, without augmentation.

    Raises:
        InputError: Fewer than 0 epochs, or a rate below 0.
    """

    epochs: int = 10  # 0: not at all
    lr: float = 1e-3
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 0)
        check_range("lr", self.lr, 0)
        check_range("batch_size", self.batch_size, 1)


class Judged(NamedTuple):
    """How good the model was at a stage."""

    stage: str  # "before", "after removal", "after re-fit"
    prototypes: int
    top1: float  # on validation, 0..1


class Interaction(NamedTuple):
    """What was done to a model, and to what effect."""

    stages: list[Judged]
    refitted: str  # a sentence about the last layer
    unreadable: list[str]  # reasons, one an image

    def rows(self) -> list[list[str]]:
        """The table of stages, first row the header."""
        body = [[judged.stage, str(judged.prototypes), f"{judged.top1:.2%}"] for judged in self.stages]
        return [["", "prototypes", "validation top-1"], *body]


def prune_and_refit(
    model: ImageClassifier,
    training: ImageDataset,
    validation: ImageDataset,
    pruning: Pruning,
    refit_by: Refit | None = None,
    *,
    seed: int = 0,
    on_error: OnError = "raise",
) -> Interaction:
    """Prune `model`, in place, and re-fit its last layer; the same seed gives the same numbers.

    Args:
        model: A model whose head is a `BestCellHead`; left in eval mode.
        training: The images it was trained on.
        validation: Those that it was chosen on (`build_data` gives both). On images that the model has learned from
            accuracy looks better than it is.
        pruning: What goes.
        refit_by: How the last layer learns again; by default as `Refit` has it.
        seed: Of the order of the images.
        on_error: At an unreadable image.

    Raises:
        InputError: A head without such prototypes, other classes than the model's, a prototype that cannot be removed,
            an unreadable image, or a loss that is no number any more.
    """
    head, refit_by = prototype_head(model), refit_by or Refit()
    check_classes(model, training)
    head.without(pruning.remove, training.classes)  # a wrong number is named now, not after all features are computed
    size = refit_by.batch_size
    images, held_out = (
        Loader(part, model.preprocess, size, with_truth=False, on_error=on_error) for part in (training, validation)
    )
    device = next(model.parameters()).device
    judging = FeatureLoader(computed_features(model, held_out, device, "features of validation images"), size)
    learning = FeatureLoader(
        computed_features(model, images, device, "features of training images"), size, shuffle=True, seed=seed
    )

    def judged(stage: str) -> Judged:
        return Judged(stage, int(head.is_kept.sum()), judge(model, judging)[1])

    stages = [judged("before")]
    prune(model, pruning, images)
    stages.append(judged("after removal"))
    best = refit(model, learning, judging, refit_by, seed)
    if best:
        stages.append(judged("after re-fit"))
    unreadable = [image.reason for loader in (images, held_out) for image in loader.unreadable.values()]
    return Interaction(stages, _told(model, refit_by, best), unreadable)


def prune(model: ImageClassifier, pruning: Pruning, images: Iterable[Batch]) -> None:
    """Let prototypes of `model` go; `images` are the training images, preprocessed as for evaluation.

    Raises:
        InputError: A head without such prototypes, or a prototype that cannot be removed.
    """
    head = prototype_head(model)
    if pruning.remove:
        head.remove(pruning.remove)
    if pruning.as_in_paper:
        model.prune(images)
    if pruning.budget is not None:
        head.prune_to(pruning.budget, images, model)


def judge(model: ImageClassifier, loader: FeatureLoader) -> tuple[float, float]:
    """Mean cross entropy and accuracy (0..1) of `model`, which is put into eval mode, on features."""
    model.eval()
    device = next(model.parameters()).device
    found = ((model.forward_head(batch.inputs(device), None)[0].logits, batch.labels) for batch in loader)
    return loss_and_top1(found, device)


def refit(
    model: ImageClassifier, training: FeatureLoader, validation: FeatureLoader, refit_by: Refit, seed: int = 0
) -> int:
    """Let what weighs the prototypes learn again, and keep the epoch that is best on validation, as the trainer does.

    Nothing else of the model changes; it is left frozen but for the last layer, and in eval mode. Returns the epoch
    that is kept, counted from 1; 0 if nothing was to learn.

    Raises:
        InputError: A head without such prototypes, or a loss that is no number any more.
    """
    phase = last_layer_phase(model, refit_by.epochs)
    if phase is None or not refit_by.epochs:
        return 0
    head, device, recipe = prototype_head(model), next(model.parameters()).device, OptimizerRecipe(lr=refit_by.lr)
    freeze(model, phase)
    objective = Objective(model, label_smoothing=0.0, loss_weights={}, on_features=True)
    objective.phase_weights = phase.loss_weights
    optimizer = optimizer_for(model, phase, recipe)
    scheduler = scheduler_for(optimizer, refit_by.epochs, len(training), recipe)
    best, best_epoch, best_state = (-1.0, -math.inf), 0, copy.deepcopy(head.state_dict())
    for number in range(refit_by.epochs):
        torch.manual_seed(mixed_seed(seed, number))
        training.set_epoch(number)
        train_mode(model)
        for step, batch in enumerate(training, number * len(training) + 1):
            objective(batch.inputs(device), batch.labels.to(device)).total.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.after_step()
            scheduler.step_update(step)
        loss, top1 = judge(model, validation)
        if not math.isfinite(loss):
            raise InputError(f"the loss is no number any more in epoch {number + 1} of the re-fit: lower its lr")
        # Of equally accurate epochs the one with the lower loss: small validation splits give many ties.
        if (top1, -loss) > best:
            best, best_epoch, best_state = (top1, -loss), number + 1, copy.deepcopy(head.state_dict())
    head.load_state_dict(best_state)
    return best_epoch


def last_layer_phase(model: ImageClassifier, epochs: int) -> Phase | None:
    """The head's own phase that trains what weighs its prototypes, and that alone; None where nothing of it is learned.

    Raises:
        InputError: A head without such prototypes.
    """
    head = prototype_head(model)
    names = [name for name, _ in model.named_parameters()]
    if not any(matching(names, pattern) for pattern in head.last_layer):
        return None
    own = [phase for phase in head.phases() if tuple(phase.trains) == head.last_layer]
    return replace(own[0] if own else Phase(trains=head.last_layer), epochs=epochs, project=False, prune=False)


def _told(model: ImageClassifier, refit_by: Refit, best: int) -> str:
    if best:
        return f"last layer re-fitted for {refit_by.epochs} epochs; the best on validation, epoch {best}, is kept"
    if last_layer_phase(model, refit_by.epochs) is None:
        return "nothing is re-fitted: this head's prototypes count by fixed weights"
    return "last layer not re-fitted"
