"""Looks at a timm architecture without weights or arithmetic: is it a CNN, and what does its feature map look like?

The criterion, held against all of timm by benchmarks/census.py: `forward_features` gives a map whose
grid follows the image, and nothing on the way multiplies two activations as matrices (attention) or recurs; see
catalogue.py.
The architecture is built and run on torch's meta device, which knows shapes only: tenths of a second, no memory.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
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
    sees_whole_image: bool = False  # such a mean (squeeze-and-excitation, group norm) reaches every cell all the same
    reach: tuple[float, float] | None = None  # y, x: of the field above and left of the centre; None: half of it

    def box(self, row: int, column: int, scale: float = 1.0) -> tuple[float, float, float, float]:
        """The receptive field of the cell at (row, column): x1, y1, x2, y2 in pixels, which may lie outside the image.

        `scale`: cells of this grid for each cell of the one that row and
        column count, below 1 where a head made that finer.
        """
        (height, width), (y, x) = self.receptive_field, self.centre
        y, x = (at + self.stride * ((cell + 0.5) * scale - 0.5) for at, cell in ((y, row), (x, column)))
        above, left = self.reach or (height / 2, width / 2)
        return x - left, y - above, x - left + width, y - above + height


class Stage(NamedTuple):
    """One of the feature maps that an architecture can give."""

    num_features: int
    reduction: int  # input pixels per cell of its grid, in either direction
    grid: Grid | None  # None where it could not be followed


class Anatomy(NamedTuple):
    """What is known of an architecture's features before any weight exists."""

    stages: tuple[Stage, ...]  # those asked for, shallow to deep
    taps: tuple[int | None, ...]  # where they are taken: see `features_at`
    is_channels_last: bool  # forward_features gives b h w d instead of b d h w
    unused: tuple[str, ...]  # modules whose parameters these stages do not need: timm's head, later stages

    @property
    def num_features(self) -> int:
        """Channels of the deepest stage."""
        return self.stages[-1].num_features

    @property
    def reduction(self) -> int:
        """Input pixels per cell of the finest grid."""
        return min(stage.reduction for stage in self.stages)

    @property
    def grid(self) -> Grid | None:
        """The finest grid, where maps are given, with the largest receptive field among the stages.

        What lies there of a coarse cell, spread over the fine cells that it covers, came from the coarse cell's field,
        which is not centred on the fine cell.
        """
        grids = [stage.grid for stage in self.stages]
        if None in grids:
            return None
        known = [grid for grid in grids if grid is not None]
        if len(known) == 1:
            return known[0]
        heights, widths = zip(*(grid.receptive_field for grid in known), strict=True)
        return min(known, key=lambda grid: grid.stride)._replace(
            receptive_field=(max(heights), max(widths)),
            sees_whole_image=any(grid.sees_whole_image for grid in known),
            reach=None,
        )


class NotConvolutional(ValueError):
    """The architecture is no CNN; the message completes the sentence "NAME is no CNN: its features …"."""


class NoSuchStage(ValueError):
    """The architecture has no such stage, or cannot end there; the message completes the sentence "NAME …"."""


def features_at(network: Any, images: Tensor, taps: Sequence[int | None]) -> list[Tensor]:
    """The feature maps of `taps` from one pass: timm's intermediates by number, the final features as None (last).

    The final features come from where `forward_features` takes them: timm's last intermediate lacks the last
    convolution of many. Nothing is run beyond the deepest tap.
    """
    indices = [tap for tap in taps if tap is not None]
    if not indices:
        return [network.forward_features(images)]
    if None not in taps:
        return network.forward_intermediates(images, indices, stop_early=True, intermediates_only=True)
    final, stages = network.forward_intermediates(images, indices)
    return [*stages, final]


def examine(architecture: str, stages: Sequence[int] = (-1,), **model_args: Any) -> Anatomy:
    """Run `architecture` (a timm name without tag, built with `model_args`) on the meta device and describe it.

    `stages`: those wanted, shallow to deep, counted from the end: -1 is the final features, -2 timm's intermediate
    before its last, and so on.

    Raises:
        NotConvolutional: Its features are not a map that follows the image, or attention or recurrence makes them.
        NoSuchStage: It has fewer stages, or goes on beyond the last of them.
        TypeError, AssertionError, NotImplementedError: timm cannot build it with these arguments.
    """
    return _examine(architecture, tuple(stages), json.dumps(model_args, sort_keys=True))


@lru_cache(maxsize=2048)
@torch.inference_mode(False)  # whatever the caller is about: `_loose_end` needs gradients, and nothing else minds them
@torch.enable_grad()
def _examine(architecture: str, wanted: tuple[int, ...], model_args: str) -> Anatomy:
    arguments = json.loads(model_args)
    with warnings.catch_warnings(), torch.device("meta"), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        network: Any = timm.create_model(architecture, num_classes=0, **arguments).eval()
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        raise NotConvolutional("come from recurrent layers")
    images = [torch.empty(1, arguments.get("in_chans", 3), *size, device="meta") for size in _SIZES]
    taps = _taps(network, images[0], wanted)
    (small, tracer), (large, _) = (_run(network, image, taps) for image in images)
    if None not in taps and (loose := _loose_end(network, images[0], taps, tracer.seen)):
        raise NoSuchStage(f"goes on beyond stage {wanted[-1]} ({loose} would be run, and never train)")
    is_channels_last = taps[-1] is None and small[-1].shape[1] != network.num_features
    stages = []
    for number, (few, many) in enumerate(zip(small, large, strict=True), start=1):
        view = tracer.view(few)
        if is_channels_last and number == len(taps):
            few, many = few.permute(0, 3, 1, 2), many.permute(0, 3, 1, 2)
        if many.shape[2] <= few.shape[2] or many.shape[3] <= few.shape[3]:
            raise NotConvolutional("do not follow the size of the image")
        reduction = round((_SIZES[1][0] - _SIZES[0][0]) / (many.shape[2] - few.shape[2]))
        grid = None if view is None or view.stride != (reduction, reduction) else _grid(view)
        stages.append(Stage(few.shape[1], reduction, grid))
    return Anatomy(tuple(stages), taps, is_channels_last, tuple(_untouched(network, tracer.seen)))


def _taps(network: Any, image: Tensor, wanted: tuple[int, ...]) -> tuple[int | None, ...]:
    """Where `features_at` finds the stages `wanted`."""
    if wanted == (-1,):
        return (None,)
    with torch.no_grad():
        count = len(network.forward_intermediates(image, intermediates_only=True))
    if -min(wanted) > count:
        raise NoSuchStage(f"has {count} stages")
    return tuple(None if stage == -1 else count + stage for stage in wanted)


def _run(network: Any, image: Tensor, taps: tuple[int | None, ...]) -> tuple[list[Tensor], Tracer]:
    """The features of `image`, and who watched them being made."""
    try:
        with torch.no_grad(), Tracer(image) as tracer:
            features = features_at(network, image, taps)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise NotConvolutional("do not follow the size of the image") from error
    for stage in features:
        if not isinstance(stage, Tensor):
            raise NotConvolutional(f"are a {type(stage).__name__} of tensors")
        if stage.ndim != 4:
            raise NotConvolutional(f"are tokens ({stage.ndim}-D), not a map (4-D)")
    if tracer.found_attention:
        raise NotConvolutional("come from attention")
    return features, tracer


def _loose_end(network: Any, image: Tensor, taps: tuple[int | None, ...], seen: set[int]) -> str | None:
    """A parameter that is used on the way to the stages and makes none of them: a tap lies in the middle of a block."""
    used = {name: parameter for name, parameter in network.named_parameters() if id(parameter) in seen}
    total = torch.stack([stage.sum() for stage in features_at(network, image, taps)]).sum()
    gradients = torch.autograd.grad(total, list(used.values()), allow_unused=True)
    return next((name for name, gradient in zip(used, gradients, strict=True) if gradient is None), None)


def _grid(view: View) -> Grid:
    height, width = (round(high - low) for high, low in zip(view.high, view.low, strict=True))
    reach = (view.centre[0] - view.low[0], view.centre[1] - view.low[1])
    return Grid(view.stride[0], view.centre, (height, width), view.sees_whole_image, reach)


def _untouched(module: nn.Module, seen: set[int], prefix: str = "") -> Iterator[str]:
    """Names of the outermost submodules that have parameters and none of them in `seen`."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if any(id(parameter) in seen for parameter in parameters):
            yield from _untouched(child, seen, f"{prefix}{name}.")
        elif parameters:
            yield f"{prefix}{name}"
