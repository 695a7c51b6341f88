"""What a training run, or a pruning, tells the model card."""

from dataclasses import replace
from pathlib import Path

import torch

from ..common.environment import code_version, device_name
from ..data.augmentation import PATCH_GRID
from ..data.samples import ImageDataset
from ..evaluation.accuracy import MEASURES
from ..models import CardFacts, DataFacts, Metric
from ..models.card import VALIDATION
from .recipe import Recipe


def facts_of_run(
    recipe: Recipe, training: ImageDataset, validation: ImageDataset, device: torch.device, commands: tuple[str, ...]
) -> CardFacts:
    """All but the numbers, known before the first epoch; `commands`: what started the run, and what resumed it."""
    return CardFacts(
        data=DataFacts(
            # Of a path the last part: where a folder lies is nobody else's business.
            name=Path(recipe.data.name).name or recipe.data.name,
            description=getattr(training, "description", None) or f"images of {len(training.classes)} classes",
            license=recipe.data.license or getattr(training, "license", None),
            images={"train": len(training), VALIDATION: len(validation)},
            validation_split=recipe.data.validation_split,
        ),
        weights_license=recipe.model.license,
        commands=tuple(dict.fromkeys(filter(None, commands))),
        seed=recipe.seed,
        code=code_version(),
        hardware=_hardware(device),
        notes=_notes(recipe),
    )


def _notes(recipe: Recipe) -> dict[str, str]:
    """What of the recipe decides how later scores are to be read."""
    probability = recipe.augmentation.patch_deletion
    if not probability:
        return {}
    told = (
        f"In {probability:.0%} of the training images one cell of a {PATCH_GRID} × {PATCH_GRID} grid, drawn at random, "
        "was set to the mean colour (Hesse et al. 2024). So an image with a deleted patch is nothing new to this "
        "model, and scores that delete patches compare with those of other models trained so."
    )
    return {"Training": told}


def judged(facts: CardFacts, measure: str, score: float, epoch: int, left_out: dict[str, int]) -> CardFacts:
    """With the accuracy on validation after `epoch`; `measure` is "top1" or "map" (mean average precision).

    `left_out`: how many images of "train" and "validation" were unreadable so far.
    """
    data = facts.data
    assert data is not None
    split = data.validation_split
    whence = "images carved from the training split" if split is None else f"the images of the data's split {split!r}"
    protocol = (
        f"{MEASURES[measure]}, after epoch {epoch}, among {whence}, unreadable ones left out; the best epoch is "
        "chosen by it, so it looks better than it would on a test split"
    )
    seen = data.images[VALIDATION] - left_out.get(VALIDATION, 0)
    facts = facts.with_metrics((Metric(measure, score, protocol, data.name, VALIDATION, seen),))
    told = [f"{count} of {data.images[part]} images ({part})" for part, count in left_out.items() if count]
    if not told:
        return facts
    lost = f"Up to epoch {epoch}, {' and '.join(told)} could not be read and were left out."
    return replace(facts, notes=facts.notes | {"Unreadable images": lost})


def facts_of_pruning(before: CardFacts, command: str, device: torch.device, table: str, refitted: str) -> CardFacts:
    """Of a model that was pruned: another one, of which no earlier number holds."""
    return replace(
        before,
        commands=(*before.commands, command),
        code=code_version(),
        hardware=_hardware(device),
        metrics=(),
        picture=None,
        notes=before.notes | {"Pruning": f"```\n{table}\n```\n\n{refitted}"},
    )


def _hardware(device: torch.device) -> str:
    return f"{device_name(device)}, torch {torch.__version__}"
