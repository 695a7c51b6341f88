"""What a training run tells W&B, and when."""

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.errors import InputError
from ..common.stopping import Stopped
from ..data.samples import ImageDataset
from ..models import ImageClassifier
from .recipe import Recipe
from .state import BEST, LAST, Progress
from .wandb_media import Showcase
from .wandb_run import WandbRun
from .wandb_tables import prototype_table

_GRACE = 20.0  # seconds for what is still to be uploaded where SIGTERM stops a run: its end may be forced in thirty


class TrainingReport:
    """Curves after each epoch, pictures every few, prototypes once they were projected, the checkpoint at the end.

    As a context it is the open run; left by an exception, the run is marked as failed. It does nothing where W&B is
    disabled, and in every process but the first.

    Args:
        mode: "disabled", "offline" or "online".
        recipe: The run's.
        phases: Names of its phases, in order.
        training: The images that prototypes come from.
        validation: The images of which some are shown.
        pictures_every: Show them after so many epochs, and after the last; 0: never, and no prototype's source either.
        checkpoints_every: Log the checkpoint of so many epochs as well; 0: only the best, at the end.

    Raises:
        InputError: Unknown mode, or a number below 0.
    """

    def __init__(
        self,
        mode: str,
        recipe: Recipe,
        phases: list[str],
        training: ImageDataset,
        validation: ImageDataset,
        *,
        pictures_every: int = 5,
        checkpoints_every: int = 0,
    ) -> None:
        for name, number in (("images", pictures_every), ("checkpoints", checkpoints_every)):
            if number < 0:
                raise InputError(f"W&B gets {name} every N epochs, where N must be 0 or more, not {number}")
        self.run = WandbRun(mode)
        self._recipe, self._phases, self._training = recipe, phases, training
        self._showcase = Showcase(validation, recipe.seed)
        self._pictures_every, self._checkpoints_every = pictures_every, checkpoints_every
        self._folder, self._progress = Path(), Progress()
        self.is_closed = True  # whether nothing of a run that has ended is still being uploaded

    def begin(self, folder: Path, progress: Progress) -> "TrainingReport":
        """Open the run whose id `progress` holds, or a new one whose id it gets."""
        self._folder, self._progress = folder, progress
        data = self._recipe.data.name
        progress.wandb_id = self.run.start(
            folder,
            asdict(self._recipe),
            progress.wandb_id,
            labels=(self._recipe.model.head, self._recipe.model.backbone, Path(data).name or data),
            phases=self._phases,
        )
        return self

    def record(self, row: dict[str, Any], model: ImageClassifier) -> None:
        """An epoch is done: its row of metrics.csv, and the judged model, whose checkpoint is saved."""
        epoch = row["epoch"]
        if _is_due(epoch, self._pictures_every) or (self._pictures_every and epoch == self._recipe.epochs):
            self.run.add(lambda: self._showcase.explanations(model))
        self.run.log(row)
        if _is_due(epoch, self._checkpoints_every):
            self.run.log_checkpoint(self._folder / LAST, self._folder.name, epoch)

    def changed(self, model: ImageClassifier) -> None:
        """Prototypes were projected or pruned."""
        self.run.add(lambda: prototype_table(model, self._training if self._pictures_every else None))

    def end(self, model: ImageClassifier) -> None:
        """The run is over: the prototypes of the last model with their last weights, and the best checkpoint."""
        progress = self._progress
        self.changed(model)
        best = (progress.best, progress.best_loss)
        measure = self._recipe.measure
        epochs = [row["epoch"] for row in progress.history if (row[measure], row["val_loss"]) == best]
        self.run.summarise({f"best_{measure.removeprefix('val_')}": progress.best, "best_epoch": epochs[-1]})
        self.run.log_checkpoint(self._folder / BEST, self._folder.name, epochs[-1], aliases=(BEST,))

    def __enter__(self) -> "TrainingReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_stopped = kind is not None and issubclass(kind, Stopped)
        self.is_closed = self.run.finish(failed=kind is not None, within=_GRACE if is_stopped else None)


def _is_due(epoch: int, every: int) -> bool:
    return every > 0 and epoch % every == 0
