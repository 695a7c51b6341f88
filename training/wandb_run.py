"""The one seam to Weights & Biases: off unless asked, imported only then, and never a prompt."""

from pathlib import Path
from typing import Any, Literal

from ..common.errors import unknown_name

Mode = Literal["disabled", "offline", "online"]
MODES = ("disabled", "offline", "online")


class WandbRun:
    """A W&B run, or nothing at all in mode "disabled"."""

    def __init__(self, mode: str, folder: Path, config: dict[str, Any]) -> None:
        if mode not in MODES:
            raise unknown_name("wandb mode", mode, MODES)
        self._run: Any = None
        if mode != "disabled":
            import wandb

            settings = wandb.Settings(silent=True, console="off")
            self._run = wandb.init(
                project="glasszoo", name=folder.name, dir=folder, mode=mode, config=config, settings=settings
            )

    def log(self, values: dict[str, Any]) -> None:
        """Log one epoch's numbers."""
        if self._run is not None:
            self._run.log(values)

    def finish(self) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish()
