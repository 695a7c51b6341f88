"""Several processes that work together, as torchrun or SLURM start them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.utils.distributed import init_distributed_device_so
from torch import distributed


@contextmanager
def started_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun or SLURM started, if any, and leave them at the end; hands out the own device.

    Without these it does nothing and hands out `device`.
    """
    found = init_distributed_device_so(str(device))
    try:
        yield torch.device(found["device"])
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def is_shared() -> bool:
    """Whether several processes work together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the process that writes and prints: the first, or the only one."""
    return not is_shared() or distributed.get_rank() == 0
