"""Sums over a training epoch, kept on the device so that no step waits for them; and over validation images."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..evaluation.accuracy import topk_correct

Item = TypeVar("Item")


class EpochTotals:
    """Losses, accuracy and speed of the epoch so far, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
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

    def add(self, losses: dict[str, Tensor], correct: Tensor, counts: dict[str, Tensor] | None = None) -> None:
        """One batch: its mean losses (scalars, detached) and which of its images were right (b bool).

        `counts`: over how many images a loss is a mean, where that is not all of them.
        """
        nothing = torch.zeros((), device=correct.device)
        whole = nothing + len(correct)
        self._sums["train_top1"] = self._sums.get("train_top1", nothing) + correct.sum()
        self._counts["train_top1"] = self._counts.get("train_top1", nothing) + whole
        for name, mean in losses.items():
            count = (counts or {}).get(name, whole)
            self._sums[name] = self._sums.get(name, nothing) + mean * count
            self._counts[name] = self._counts.get(name, nothing) + count

    def means(self) -> dict[str, float]:
        """An entry for each loss that some image had, and accuracy; images a second; the waiting share (0..1)."""
        seconds = time.perf_counter() - self._began
        counts = {name: count.item() for name, count in self._counts.items()}
        means = {name: total.item() / counts[name] for name, total in self._sums.items() if counts[name]}
        speed = counts["train_top1"] / seconds
        return means | {"images_per_second": speed, "waiting_for_data": self._waited / seconds}

    def line(self) -> str:
        """For the progress bar."""
        means = self.means()
        return (
            f"loss {means['train_loss']:.3f}, top-1 {means['train_top1']:.1%}, "
            f"{means['images_per_second']:.0f} images/s, waiting {means['waiting_for_data']:.0%}"
        )


@torch.no_grad()
def loss_and_top1(judged: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean cross entropy and accuracy over all images, from the logits `b c` and labels `b` of each batch."""
    loss, correct, count = 0.0, 0, 0
    for found, labels in judged:
        logits = found.float().cpu()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int(topk_correct(logits, labels, 1).sum())
        count += len(labels)
    return loss / count, correct / count
