"""Products laid out in memory row by row while a model is exported.

Where the features are channels-last (ConvNeXt), `einsum` returns a permuted view, and the exporter settles what its
strides are by a condition on the sizes, which a batch of one image would break.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class PlainLayouts(TorchFunctionMode):
    """While it lasts, what `torch.einsum` returns is copied into the plain layout."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See the class."""
        result = func(*args, **(kwargs or {}))
        return result.clone(memory_format=torch.contiguous_format) if func is torch.einsum else result
