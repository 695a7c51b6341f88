"""TensorFlow's padding, whose amount follows the image's size, in a form whose shapes torch.export can follow.

timm pads by max((ceil(n / s) - 1) s + k - n, 0), half of it before. As a symbol that grows with every layer, until the
exporter gives up. The same windows can be had with the same amount for every size: pad k - 1 and the most that the
windows can start later, then cut away where they do. The result always has n + k - 1 pixels a side.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

# By their full names: `timm.layers.conv2d_same` is a function as well.
_USERS = [import_module(f"timm.layers.{name}") for name in ("conv2d_same", "pool2d_same", "std_conv")]


@contextmanager
def followable_padding() -> Iterator[None]:
    """While it lasts, timm's layers pad by `pad_same` below; not for several threads at once."""
    with ExitStack() as stack:
        for module in _USERS:
            stack.enter_context(patch.object(module, "pad_same", pad_same))
        yield


def pad_same(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), value: float = 0
) -> Tensor:
    """`x` (b c h w) padded for windows without padding of their own: timm's function of that name, at any stride.

    It gives the same windows; below and right there can be more than timm pads, which no window reaches.
    """
    for dim in (-2, -1):
        size, step = x.shape[dim], stride[dim]
        extent = (kernel_size[dim] - 1) * dilation[dim] + 1
        if extent == 1:
            continue
        total: int | torch.SymInt = extent - step + -size % step
        if extent < step:
            total = torch.sym_max(total, 0)
        before, most_before = total // 2, (extent - 1) // 2
        latest = most_before - max(extent - step, 0) // 2
        both = [most_before, extent - 1 - most_before + latest]
        x = functional.pad(x, both if dim == -1 else [0, 0, *both], value=value)
        if latest:
            x = torch.narrow(x, dim, most_before - before, size + extent - 1)
    return x
