"""What a map costs: passes and milliseconds an image, beside those of a plain forward, and memory."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..models import ImageClassifier

Result = TypeVar("Result")


@dataclass
class Meter:
    """Adds up the cost of calls; one meter for each method."""

    images: int = 0
    forwards: int = 0  # images that went through the network
    backwards: int = 0  # images whose gradient was taken at the logits
    seconds: list[float] = field(default_factory=list)  # an image, one entry a call
    peak: float = 0.0  # MiB that one image's map needs at once, beside the model; 0: not measured

    def measure(self, model: ImageClassifier, num_images: int, call: Callable[[], Result]) -> Result:
        """Run `call`, which explains `num_images` images by `model`, and note what it cost."""
        device = next(model.parameters()).device
        with self._counting(model):
            _wait(device)
            begin = time.perf_counter()
            result = call()
            _wait(device)
            self.seconds.append((time.perf_counter() - begin) / num_images)
        self.images += num_images
        return result

    @staticmethod
    def merged(meters: Iterable[dict[str, Any]]) -> "Meter":
        """One meter for what several measured, each given by its fields."""
        total = Meter()
        for fields in meters:
            total.images += fields["images"]
            total.forwards += fields["forwards"]
            total.backwards += fields["backwards"]
            total.seconds += fields["seconds"]
            total.peak = max(total.peak, fields["peak"])
        return total

    def summary(self, plain: "Meter") -> dict[str, float]:
        """Passes and milliseconds an image, and the ratio of its time to that of the `plain` forward."""
        own = self.milliseconds()
        return {
            "forwards": self.forwards / self.images,
            "backwards": self.backwards / self.images,
            "milliseconds": own,
            "times_plain_forward": own / plain.milliseconds(),
            "peak_mib": self.peak,
        }

    def milliseconds(self) -> float:
        """An image's time, the median over the calls."""
        return 1000 * median(self.seconds)

    @contextmanager
    def _counting(self, model: ImageClassifier) -> Iterator[None]:
        def count(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.forwards += len(output.logits)
            if output.logits.requires_grad:
                output.logits.register_hook(count_backward)

        def count_backward(gradient: Tensor) -> None:
            self.backwards += len(gradient)

        handle = model.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """MiB of tensors that `call` has at once at most, beyond those that were there, by torch's own count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        largest = max(largest, held)
    return largest / 2**20


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the profiler's library writes to the terminal past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
