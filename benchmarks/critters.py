"""How many critters are drawn a second on one core, masks and labels included: `python benchmarks/critters.py`."""

import time

import torch

from glasszoo.data.critters import Critters

BATCH = 64


def images_per_second(size: int, seconds: float = 3.0) -> float:
    """Throughput of batches of samples, as a loader with one worker asks for them, over at least `seconds`."""
    critters = Critters(size=size)
    critters.__getitems__(range(BATCH))
    drawn, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        critters.__getitems__([(drawn + place) % len(critters) for place in range(BATCH)])
        drawn += BATCH
    return drawn / (time.perf_counter() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in (64, 128, 224):
        print(f"{size:3d} px: {images_per_second(size):6.0f} images a second")
