"""The one seam to Weights & Biases: off unless asked, imported only then, and never a prompt."""

from pathlib import Path
from typing import Any

from ..common.errors import unknown_name

MODES = ("disabled", "offline", "online")


class WandbRun:
    """A W&B run, or nothing at all in mode "disabled".

    Raises:
        InputError: Unknown mode.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise unknown_name("wandb mode", mode, MODES)
        self._mode: Any = mode
        self._run: Any = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Open the run, named after the folder that holds its files."""
        if self._mode != "disabled":
            import wandb

            settings = wandb.Settings(silent=True, console="off")
            self._run = wandb.init(
                project="glasszoo", name=folder.name, dir=folder, mode=self._mode, config=config, settings=settings
            )

    def log(self, values: dict[str, Any]) -> None:
        """Log one epoch's numbers."""
        if self._run is not None:
            self._run.log(values)

    def finish(self) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish()
