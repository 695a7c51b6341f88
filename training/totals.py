"""Sums over a training epoch, kept on the device so that no step waits for them; and over validation images."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..common.processes import is_shared, joint_list, joint_max, joint_sum
from ..evaluation.accuracy import average_precision, topk_correct

Item = TypeVar("Item")


class EpochTotals:
    """Losses, accuracy and speed of the epoch so far, and the share of time spent waiting for data.

    They lie on `device`. `state`: what `state` gave when the epoch was left; the sums go on from there. `accuracy`:
    what the share of right answers is called.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None, accuracy: str = "train_top1") -> None:
        self._accuracy = accuracy
        state = state or {"sums": {}, "counts": {}, "waited": 0.0, "seconds": 0.0}
        # The sums of millions of images need more digits than fp32 has; MPS has no more.
        self._zero = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._sums: dict[str, Tensor] = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts: dict[str, Tensor] = {name: count.to(device) for name, count in state["counts"].items()}
        self._waited: float = state["waited"]
        self._began = time.perf_counter() - state["seconds"]

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, to be saved."""
        seconds = time.perf_counter() - self._began
        return {"sums": self._sums, "counts": self._counts, "waited": self._waited, "seconds": seconds}

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

    def add(
        self,
        losses: dict[str, Tensor],
        correct: Tensor,
        counts: dict[str, Tensor] | None = None,
        images: Tensor | float | None = None,
    ) -> None:
        """One batch: its mean losses (scalars, detached) and how right it was on each image (b, 0 to 1).

        `images`: over how many images losses are a mean, by default all; `counts`: the same of those that differ.
        """
        for name, mean in losses.items():
            count = (counts or {}).get(name, len(correct) if images is None else images)
            self._add(name, mean * count, count)
        self._add(self._accuracy, correct.sum(), len(correct))

    def _add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        self._sums[name] = self._sums.get(name, self._zero) + total
        self._counts[name] = self._counts.get(name, self._zero) + count

    def means(self) -> dict[str, float]:
        """Of this process alone, so far: an entry for each loss that some image had, accuracy, and the speed."""
        return self._means(torch.stack([*self._sums.values(), *self._counts.values()]), self._waited)

    def joint_means(self) -> dict[str, float]:
        """As `means`, but of all processes; the waiting share (0..1) is that of the one that waited longest."""
        sums = joint_sum(torch.stack([*self._sums.values(), *self._counts.values()]))
        waited = joint_max(torch.tensor(self._waited, device=sums.device))
        return self._means(sums, waited.item())

    def _means(self, numbers: Tensor, waited: float) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        sums, counts = (dict(zip(self._sums, half, strict=True)) for half in numbers.view(2, -1).tolist())
        means = {name: total / counts[name] for name, total in sums.items() if counts[name]}
        speed = counts[self._accuracy] / seconds
        return means | {"images_per_second": speed, "waiting_for_data": waited / seconds}

    def line(self) -> str:
        """For the progress bar."""
        means = self.means()
        right = means.get(self._accuracy, math.nan)  # of several processes this one may have had no image yet
        return (
            f"loss {means['train_loss']:.3f}, {self._accuracy.removeprefix('train_')} {right:.1%}, "
            f"{means['images_per_second']:.0f} images/s, waiting {means['waiting_for_data']:.0%}"
        )


@torch.no_grad()
def loss_and_top1(judged: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> tuple[float, float]:
    """Mean cross entropy and accuracy over all images, from the logits `b c` and labels `b` of each batch.

    With several processes over the images of all of them; `device` is where these can add up.
    """
    loss, correct, count = 0.0, 0, 0
    for found, labels in judged:
        logits = found.float().cpu()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int(topk_correct(logits, labels, 1).sum())
        count += len(labels)
    own = torch.tensor([loss, correct, count], dtype=torch.float64, device=device if is_shared() else "cpu")
    loss, correct, count = joint_sum(own).tolist()
    return loss / count, correct / count


@torch.no_grad()
def loss_and_map(judged: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean binary cross entropy and mean average precision, from the logits and targets (0 or 1) `b c` of each batch.

    The mean is over the classes that some image shows. With several processes over the images of all of them.
    """
    own = [(found.float().cpu(), targets.cpu()) for found, targets in judged]
    pairs = [pair for some in joint_list(own) for pair in some]
    logits, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    loss = functional.binary_cross_entropy_with_logits(logits, targets)
    return loss.item(), average_precision(logits, targets).nanmean().item()
