"""The training state: what continues a run to the bit, and is never published."""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ..common.errors import InputError
from ..common.files import replacing
from ..common.typed import from_plain
from .recipe import Recipe

STATE = "training_state.pt"
BEST, LAST = "best", "last"  # checkpoint folders of a run


@dataclass
class Progress:
    """How far a run has come.

    No random state is among it: every step seeds itself from the recipe's seed, its epoch and its own number.
    """

    phase: int = 0  # the phase that comes next or goes on
    epoch: int = 0  # epochs done in that phase
    step: int = 0  # batches done in the epoch that goes on
    done: int = 0  # epochs done in all
    best: float = -1.0  # the highest validation score (`Recipe.measure`) so far, and the loss of that epoch
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.csv
    changes: dict[str, float] = field(default_factory=dict)  # what projection and pruning told; goes into the next row
    # Images that were left out as unreadable: reasons by id, of "train" and of "validation".
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    wandb_id: str | None = None  # of the W&B run


def save_state(folder: Path, progress: Progress, recipe: str, states: dict[str, Any]) -> None:
    """Write the state in one step; `states` are state dicts by name, `recipe` is the run's as YAML."""
    with replacing(folder / STATE) as temporary:
        torch.save({"progress": asdict(progress), "recipe": recipe, "states": states}, temporary)


def load_state(folder: Path, recipe: str) -> tuple[Progress, dict[str, Any]]:
    """Progress and state dicts (on the CPU) of the run in `folder`.

    Raises:
        InputError: No state there, a broken file, or one of another recipe (the first line that differs is named).
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"nothing to resume: {path} does not exist")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is truncated or no training state") from error
    was, now = _deciding(_completed(saved["recipe"])), _deciding(recipe)
    if was != now:
        old, new = next(pair for pair in zip([*was, "(end)"], [*now, "(end)"], strict=False) if pair[0] != pair[1])
        raise InputError(f"{path} belongs to another recipe: {old.strip()!r} there, {new.strip()!r} now")
    return Progress(**saved["progress"]), saved["states"]


def _completed(recipe: str) -> str:
    """A recipe with the defaults of keys that did not exist when it was written; as it is where it has unknown ones."""
    try:
        return from_plain(Recipe, yaml.safe_load(recipe)).to_yaml()
    except InputError:
        return recipe


def _deciding(recipe: str) -> list[str]:
    """The lines of a recipe but those that only the model card repeats: these may be stated later."""
    return [line for line in recipe.splitlines() if not line.startswith("  license:")]
