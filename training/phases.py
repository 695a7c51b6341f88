"""Carries out what a `Phase` says: which parameters train, at which rate, under which schedule."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ..common.errors import InputError, unknown_name
from ..heads import Phase
from ..models import ImageClassifier
from .recipe import OptimizerRecipe


def planned(phases: Sequence[Phase], epochs: int) -> list[Phase]:
    """The phases with their epochs filled in, so that they add up to `epochs`.

    Raises:
        InputError: No phase, or phases that ask for more or fewer epochs than there are.
    """
    open_phases = [place for place, phase in enumerate(phases) if phase.epochs is None]
    left = epochs - sum(phase.epochs or 0 for phase in phases)
    if left < len(open_phases) or (left and not open_phases):
        named = ", ".join(f"{phase.name} {phase.epochs or 'open'}" for phase in phases) or "none"
        raise InputError(f"the phases ({named}) do not fill {epochs} epochs: change theirs or the recipe's")
    plan = list(phases)
    shares = sum(phases[place].share for place in open_phases)
    for number, place in enumerate(open_phases):
        # What is left of the epochs and of the shares; each of the phases to come needs one epoch.
        to_come = len(open_phases) - number - 1
        epochs_here = min(max(1, math.floor(left * phases[place].share / shares + 0.5)), left - to_come)
        plan[place] = replace(plan[place], epochs=epochs_here)
        left, shares = left - epochs_here, shares - phases[place].share
    return plan


def freeze(model: ImageClassifier, phase: Phase, head_only: bool = False) -> None:
    """Let the parameters that `phase.trains` matches train, and no others; with `head_only` none of the backbone's.

    Raises:
        InputError: A pattern that matches no parameter, or patterns that leave nothing to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in (*phase.trains, *phase.lr_scale):
        if not any(fnmatch(name, pattern) for name in names):
            tops = sorted({f"{name.partition('.')[0]}.*" for name in names})
            raise InputError(f"phase {phase.name!r}: no parameter matches {pattern!r}; there are {', '.join(tops)}")
    own = {id(parameter) for parameter in model.get_classifier().parameters()}
    for name, parameter in model.named_parameters():
        is_open = not head_only or id(parameter) in own
        parameter.requires_grad_(is_open and any(fnmatch(name, pattern) for pattern in phase.trains))
    if phase.trains and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"phase {phase.name!r} trains nothing")


def check_plan(model: ImageClassifier, plan: Sequence[Phase], head_only: bool) -> None:
    """Name what cannot work in a plan now, not after hours.

    Raises:
        InputError: A pattern that matches no parameter, a phase that trains nothing, or a last phase that changes the
            model, which no epoch would judge.
    """
    for phase in plan:
        freeze(model, phase, head_only)
    if plan[-1].project or plan[-1].prune:
        what = "projection" if plan[-1].project else "pruning"
        raise InputError(
            f"phase {plan[-1].name!r} ends in a {what}, and no epoch follows to judge and save it: add a phase after it"
        )


def train_mode(model: nn.Module) -> None:
    """Training mode, but for modules that are frozen whole: their batch norms keep their statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def optimizer_for(model: ImageClassifier, phase: Phase, recipe: OptimizerRecipe) -> Optimizer:
    """Timm's optimizer over what trains; biases, norms and what the model names do not decay.

    Raises:
        InputError: timm knows no such optimizer.
    """
    known = [str(name) for name in list_optimizers()]
    if recipe.name not in known:
        raise unknown_name("optimizer", recipe.name, known)
    exempt = model.no_weight_decay()
    groups: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in exempt else recipe.weight_decay
            scale = next((factor for pattern, factor in phase.lr_scale.items() if fnmatch(name, pattern)), 1.0)
            groups[decay, scale].append(parameter)
    grouped = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
    return create_optimizer_v2(
        grouped, opt=recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )


def scheduler_for(optimizer: Optimizer, epochs: int, updates_per_epoch: int, recipe: OptimizerRecipe) -> Scheduler:
    """A linear warm-up and a cosine over the phase, set to its first step."""
    # No phase is all warm-up: one of a single epoch would end before it began.
    warmup = round(min(recipe.warmup_epochs, 0.5 * epochs) * updates_per_epoch)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=max(1, epochs * updates_per_epoch - warmup),
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.01 * recipe.lr,
        # The cosine starts where the warm-up ends, at the full rate.
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scheduler.step_update(0)
    return scheduler
