"""Sums over a training epoch, kept on the device so that no step waits for them."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class EpochTotals:
    """Losses, accuracy and speed of the epoch so far, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._images = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time they take to arrive is noted."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor], correct: Tensor) -> None:
        """One batch: its mean losses (scalars, detached) and which of its images were right (b bool)."""
        count = len(correct)
        values = {name: loss * count for name, loss in losses.items()} | {"train_top1": correct.sum()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value
        self._images += count

    def means(self) -> dict[str, float]:
        """An entry for each loss and accuracy, images a second, and the waiting share (0..1)."""
        seconds = time.perf_counter() - self._began
        means = {name: total.item() / self._images for name, total in self._sums.items()}
        return means | {"images_per_second": self._images / seconds, "waiting_for_data": self._waited / seconds}

    def line(self) -> str:
        """For the progress bar."""
        means = self.means()
        return (
            f"loss {means['train_loss']:.3f}, top-1 {means['train_top1']:.1%}, "
            f"{means['images_per_second']:.0f} images/s, waiting {means['waiting_for_data']:.0%}"
        )
