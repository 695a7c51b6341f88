"""Looks at a timm architecture without weights or arithmetic: is it a CNN, and what does its feature map look like?

The criterion, found over all of timm (benchmarks will publish the census): `forward_features` gives a map whose
grid follows the image, and nothing on the way multiplies two activations as matrices (attention) or recurs.
The architecture is built and run on torch's meta device, which knows shapes only: tenths of a second, no memory.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from .tracing import Tracer, View

# Unequal, and far enough apart that no stride rounds them to the same grid. Whole multiples of 32, as most need.
_SIZES = ((256, 320), (384, 512))


class Grid(NamedTuple):
    """Where the cells of a feature map look, in pixels of the image, pixel i reaching from i to i + 1.

    The cell at (r, c) looks at `centre` + `stride` × (r, c), which need not be the middle of its tile (stride / 2):
    ResNet's first cell has its centre at the image's corner. This is geometry: every tap of a convolution counts alike,
    while training can favour one side (CONTRIBUTING.md, "Decisions"). Padding that depends on the image's size
    (TensorFlow's SAME) is taken at multiples of the stride.
    """

    stride: float
    centre: tuple[float, float]  # y, x of the first cell, the mean over all paths through the network
    receptive_field: tuple[int, int]  # height, width in pixels; means over the whole image left out


class Anatomy(NamedTuple):
    """What is known of an architecture's features before any weight exists."""

    num_features: int
    reduction: int  # input pixels per cell of the feature grid, in either direction
    grid: Grid | None  # None where it could not be followed
    is_channels_last: bool  # forward_features gives b h w d instead of b d h w
    unused: tuple[str, ...]  # modules whose parameters forward_features never touches: they belong to timm's head


class NotConvolutional(ValueError):
    """The architecture is no CNN; the message completes the sentence "NAME is no CNN: its features …"."""


def examine(architecture: str, **model_args: Any) -> Anatomy:
    """Run `architecture` (a timm name without tag, built with `model_args`) on the meta device and describe it.

    Raises:
        NotConvolutional: Its features are not a map that follows the image, or attention or recurrence makes them.
        TypeError, AssertionError, NotImplementedError: timm cannot build it with these arguments.
    """
    return _examine(architecture, json.dumps(model_args, sort_keys=True))


@lru_cache(maxsize=2048)
def _examine(architecture: str, model_args: str) -> Anatomy:
    arguments = json.loads(model_args)
    with warnings.catch_warnings(), torch.device("meta"), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        network: Any = timm.create_model(architecture, num_classes=0, **arguments).eval()
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        raise NotConvolutional("come from recurrent layers")
    images = [torch.empty(1, arguments.get("in_chans", 3), *size, device="meta") for size in _SIZES]
    (small, view, seen), (large, _, _) = (_run(network, image) for image in images)
    is_channels_last = small[1] != network.num_features
    axes = slice(1, 3) if is_channels_last else slice(2, 4)
    if large[axes][0] <= small[axes][0] or large[axes][1] <= small[axes][1]:
        raise NotConvolutional("do not follow the size of the image")
    reduction = round((_SIZES[1][0] - _SIZES[0][0]) / (large[axes][0] - small[axes][0]))
    grid = None if view is None or view.stride != (reduction, reduction) else _grid(view)
    return Anatomy(network.num_features, reduction, grid, is_channels_last, tuple(_untouched(network, seen)))


def _run(network: Any, image: Tensor) -> tuple[torch.Size, View | None, set[int]]:
    """The shape of the features of `image`, where they look, and the ids of the tensors that made them."""
    try:
        with torch.no_grad(), Tracer(image) as tracer:
            features = network.forward_features(image)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise NotConvolutional("do not follow the size of the image") from error
    if not isinstance(features, Tensor):
        raise NotConvolutional(f"are a {type(features).__name__} of tensors")
    if features.ndim != 4:
        raise NotConvolutional(f"are tokens ({features.ndim}-D), not a map (4-D)")
    if tracer.found_attention:
        raise NotConvolutional("come from attention")
    return features.shape, tracer.view(features), tracer.seen


def _grid(view: View) -> Grid:
    height, width = (round(high - low) for high, low in zip(view.high, view.low, strict=True))
    return Grid(view.stride[0], view.centre, (height, width))


def _untouched(module: nn.Module, seen: set[int], prefix: str = "") -> Iterator[str]:
    """Names of the outermost submodules that have parameters and none of them in `seen`."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if any(id(parameter) in seen for parameter in parameters):
            yield from _untouched(child, seen, f"{prefix}{name}.")
        elif parameters:
            yield f"{prefix}{name}"
