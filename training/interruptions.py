"""What interrupts a training run between two batches."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from ..common.processes import is_shared, joint_max
from ..common.stopping import Stopped, StopRequest
from ..data.samples import Batch
from .probe import FeatureBatch

LOOK_EVERY = 10  # batches between looks at what other processes want, which wait for them

AnyBatch = TypeVar("AnyBatch", bound=Batch | FeatureBatch)


class Interruptions(StopRequest):
    """SIGTERM, taken while entered, and the time to save the state in the midst of an epoch.

    Several processes look together, so that all stop at the same batch.

    Args:
        save_minutes: How often it is time to save.
        where: Says how far the run has come: "epoch 3 of 10".
        device: Where several processes exchange numbers.
    """

    def __init__(self, save_minutes: float, where: Callable[[], str], device: torch.device) -> None:
        super().__init__()
        self._save_seconds, self._saved_at = 60 * save_minutes, time.monotonic()
        self._where, self._device = where, device

    def wanted(self, number: int) -> tuple[bool, bool]:
        """After so many batches: whether any process was asked to stop, and whether it is time to save."""
        if number % LOOK_EVERY and is_shared():
            return False, False
        is_due = time.monotonic() - self._saved_at > self._save_seconds
        if not is_shared():
            return self.is_asked, is_due
        own = torch.tensor([self.is_asked, is_due], dtype=torch.int32, device=self._device)
        any_asked, any_due = joint_max(own).bool().tolist()
        return any_asked, any_due

    def watched(self, batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
        """Those of `batches` that hold images.

        Raises:
            Stopped: The run was asked to stop.
        """
        for number, batch in enumerate(batches):
            if self.wanted(number)[0]:
                raise self.stopped()
            if len(batch.labels):
                yield batch

    def saved(self) -> None:
        """The state was saved just now."""
        self._saved_at = time.monotonic()

    def stopped(self) -> Stopped:
        """What is raised where the run was asked to stop."""
        return Stopped(f"stopped in {self._where()}, as SIGTERM asked; --resume continues from there")
