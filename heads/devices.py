"""Sums and maxima over the images of all devices that work together, with the gradient of one that has them all."""

from torch import Tensor, distributed


def has_several_devices() -> bool:
    """Whether several processes, a device each, work together."""
    return distributed.is_available() and distributed.is_initialized()


def sum_over_devices(own: Tensor) -> Tensor:
    """The sum of each entry over devices, with the gradient that one device with the whole batch would have."""
    if not has_several_devices():
        return own
    total = own.detach().clone()
    distributed.all_reduce(total)
    # DDP takes the mean over devices, so each answers for all of them.
    return total + (own - own.detach()) * distributed.get_world_size()


def best_of_all_devices(best: Tensor) -> Tensor:
    """The largest of each entry over devices, with the gradient that one device with the whole batch would have."""
    if not has_several_devices():
        return best
    largest = best.detach().clone()
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    holds = (best.detach() == largest).to(best.dtype)
    holders = holds.clone()
    distributed.all_reduce(holders)
    # Whoever holds the largest answers for it; DDP then takes the mean over devices, so it answers for all of them.
    return largest + (best - best.detach()) * holds * (distributed.get_world_size() / holders)
