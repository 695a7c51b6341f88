"""Several processes that work together, as torchrun or SLURM start them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous


class Place(NamedTuple):
    """Which of how many processes."""

    rank: int
    size: int


ALONE = Place(0, 1)


def _meeting_of_this_start(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """As env://, but with a part of the store for each start: torchrun keeps one store over restarts.

    Otherwise processes started anew would look for each other where the dead ones were.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, count in rendezvous(url.replace(_SCHEME, "env", 1), **options):
        yield PrefixStore(f"start {start}", store), rank, count


_SCHEME = "glasszoo"
register_rendezvous_handler(_SCHEME, _meeting_of_this_start)


@contextmanager
def started_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun or SLURM started, if any, and leave them at the end; hands out the own device.

    Without these it does nothing and hands out `device`.
    """
    found = init_distributed_device_so(str(device), dist_url=f"{_SCHEME}://")
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


def own_place() -> Place:
    """Which of the processes that work together this one is."""
    return Place(distributed.get_rank(), distributed.get_world_size()) if is_shared() else ALONE


def joint_sum(own: Tensor) -> Tensor:
    """The sum over all processes, on each of them; without a gradient."""
    total = own.detach().clone()
    if is_shared():
        distributed.all_reduce(total)
    return total


def joint_max(own: Tensor) -> Tensor:
    """The largest over all processes, on each of them; without a gradient."""
    largest = own.detach().clone()
    if is_shared():
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest


def joint_list(own: Any) -> list[Any]:
    """What each process has, in their order, on each of them; anything that can be pickled."""
    if not is_shared():
        return [own]
    everyones: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyones, own)
    return everyones
