"""Follows an image through a network on the meta device: where each tensor's cells look, and what meets what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Pair: TypeAlias = tuple[float, float]  # y, x


@dataclass(frozen=True)
class View:
    """How the cells of a tensor look at the image; all lengths in image pixels, pixel i reaching from i to i + 1.

    `centre`, `low` and `high` belong to the first cell; the cell at (r, c) looks `stride` times that farther. Where
    paths of different reach meet (residual branches, concatenations) `low` and `high` span them all, and `centre` is
    the mean, each path counted alike. Means over the whole image are left out, but for `sees_whole_image`.
    """

    grid: tuple[int, int]  # h, w
    stride: Pair = (1.0, 1.0)
    centre: Pair = (0.5, 0.5)
    low: Pair = (0.0, 0.0)
    high: Pair = (1.0, 1.0)
    sees_whole_image: bool = False  # a mean over the whole image was mixed in

    def windowed(self, size: Pair, step: Pair, padding: Pair, grid: tuple[int, int]) -> "View":
        """After a convolution or pooling whose window covers `size` cells (dilation included)."""
        return View(
            grid=grid,
            stride=_each(lambda stride, by: stride * by, self.stride, step),
            centre=_each(
                lambda at, stride, k, p: at + stride * ((k - 1) / 2 - p), self.centre, self.stride, size, padding
            ),
            low=_each(lambda at, stride, p: at - stride * p, self.low, self.stride, padding),
            high=_each(lambda at, stride, k, p: at + stride * (k - 1 - p), self.high, self.stride, size, padding),
        )

    def resampled(self, grid: tuple[int, int]) -> "View":
        """After the grid was made finer by interpolation, the image's edges staying where they are."""
        stride = _each(lambda stride, before, after: stride * before / after, self.stride, self.grid, grid)
        centre = _each(lambda at, before, after: at - before / 2 + after / 2, self.centre, self.stride, stride)
        return replace(self, grid=grid, stride=stride, centre=centre)

    def settled(self, tensor: Tensor) -> "View":
        """After space was moved into channels (`b c h w`, by views alone): each cell now spans several."""
        grid = (tensor.shape[2], tensor.shape[3])
        if grid == self.grid or tensor.shape[1:3] == torch.Size(self.grid):
            return self
        size = _each(lambda before, after: before / after, self.grid, grid)
        return self.windowed(size, step=size, padding=(0, 0), grid=grid)


def merged(views: Sequence[View], grid: tuple[int, int]) -> View:
    """The view of a tensor that several make together."""
    fitting = [view for view in views if view.grid == grid] or list(views)
    return View(
        grid=fitting[0].grid,
        stride=fitting[0].stride,
        centre=_each(lambda *at: sum(at) / len(at), *(view.centre for view in fitting)),
        low=_each(lambda *at: min(at), *(view.low for view in fitting)),
        high=_each(lambda *at: max(at), *(view.high for view in fitting)),
    )


class Tracer(TorchDispatchMode):
    """Watches what is computed from `image`; afterwards says where any tensor looks, and what was multiplied.

    `found_attention`: two tensors made from the image were multiplied as matrices, and not to a single vector: that
    would be a weighted mean over the image, which gates channels as squeeze-and-excitation does and mixes no two cells.
    `seen`: ids of all tensors that took part, parameters among them.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.found_attention = False
        self.seen: set[int] = set()
        # By identity, held so that no id is used twice; tensors on the meta device weigh nothing.
        # None: made from the image, but by way of a mean over all of it.
        self._views: dict[int, View | None] = {id(image): View((image.shape[2], image.shape[3]))}
        self._held = [image]

    def view(self, tensor: Tensor) -> View | None:
        """How the cells of a 4-D `tensor` look at the image; None where that is unknown."""
        return self._views.get(id(tensor))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        self.seen.update(map(id, leaves))
        given = [leaf for leaf in leaves if id(leaf) in self._views]
        name = str(func).removeprefix("aten.").partition(".")[0]
        is_product = len(given) >= 2 and (name.endswith("mm") or "attention" in name)
        # Before the call, since an operation in place replaces what it is given.
        views = [view for view in (self._views[id(leaf)] for leaf in given) if view is not None]
        is_global = name in _NORMS or len(views) < len(given) or any(view.sees_whole_image for view in views)
        result = func(*args, **kwargs)
        if is_product and 1 in result.shape[-2:]:
            views = []  # one weighted mean over all cells, as global context pools
        elif is_product:
            self.found_attention = True
        if given:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    view = _view_after(name, args, leaf, views) if views else None
                    self._views[id(leaf)] = view and replace(view, sees_whole_image=is_global)
                    self._held.append(leaf)
        return result


def _view_after(name: str, args: tuple[Any, ...], result: Tensor, views: list[View]) -> View | None:
    """The view of `result`, which the operation `name` made of tensors with `views`."""
    rule = _RULES.get(name)
    first = args[0]
    if rule is not None and isinstance(first, Tensor) and first.ndim == 4:
        return rule(views[0].settled(first), args, result)
    grid = views[0].grid
    # Where the grid is still there, channels were reduced.
    has_grid = torch.Size(grid) in (result.shape[-2:], result.shape[1:3])
    if name in _REDUCTIONS and not has_grid and result.numel() * grid[0] * grid[1] <= first.numel():
        return None
    return merged(views, _grid_of(result, views))


def _grid_of(tensor: Tensor, views: list[View]) -> tuple[int, int]:
    """The grid that `tensor` has, channels first or last; that of the first view where its shape tells nothing."""
    for view in views:
        if tensor.ndim == 4 and torch.Size(view.grid) in (tensor.shape[2:], tensor.shape[1:3]):
            return view.grid
    return views[0].grid


def _after_convolution(view: View, args: tuple[Any, ...], result: Tensor) -> View | None:
    _, weight, _, stride, padding, dilation, is_transposed, *_ = args
    if is_transposed:
        return None
    size = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
    return view.windowed(_pair(size), _pair(stride), _pair(padding), (result.shape[2], result.shape[3]))


def _after_pooling(view: View, args: tuple[Any, ...], result: Tensor) -> View:
    _, kernel, *rest = args
    stride = rest[0] if rest and rest[0] else kernel
    padding = rest[1] if len(rest) > 1 else (0, 0)
    return view.windowed(_pair(kernel), _pair(stride), _pair(padding), (result.shape[2], result.shape[3]))


def _after_padding(view: View, args: tuple[Any, ...], result: Tensor) -> View:
    left, _, top, _ = (*args[1], 0, 0)[:4]
    return view.windowed((1, 1), (1, 1), (top, left), (result.shape[2], result.shape[3]))


def _after_slicing(view: View, args: tuple[Any, ...], result: Tensor) -> View:
    # Arguments that have their default are not handed on.
    defaults: tuple[Any, ...] = (None, 0, None, None, 1)
    tensor, dim, start, _, step = args + defaults[len(args) :]
    if result.shape[2:] == tensor.shape[2:] or tensor.shape[2:] != torch.Size(view.grid):
        return view  # channels were sliced
    first = range(tensor.shape[dim])[slice(start, None)][0]
    skipped, steps = ((-first, 0), (step, 1)) if dim % 4 == 2 else ((0, -first), (1, step))
    return view.windowed((1, 1), steps, skipped, (result.shape[2], result.shape[3]))


def _after_upsampling(view: View, args: tuple[Any, ...], result: Tensor) -> View:
    return view.resampled((result.shape[2], result.shape[3]))


_RULES: dict[str, Callable[[View, tuple[Any, ...], Tensor], View | None]] = {
    "convolution": _after_convolution,
    "max_pool2d_with_indices": _after_pooling,
    "avg_pool2d": _after_pooling,
    "constant_pad_nd": _after_padding,
    "reflection_pad2d": _after_padding,
    "slice": _after_slicing,
    "upsample_nearest2d": _after_upsampling,
    "upsample_bilinear2d": _after_upsampling,
    "upsample_bicubic2d": _after_upsampling,
}

_REDUCTIONS = ("mean", "sum", "amax", "max", "linalg_vector_norm", "_adaptive_avg_pool2d", "adaptive_max_pool2d")

_NORMS = ("native_group_norm",)  # with statistics of the whole image, also when the network is in eval mode


def _pair(values: Sequence[float]) -> Pair:
    return (values[0], values[-1])


def _each(function: Callable[..., float], *pairs: Sequence[float]) -> Pair:
    """`function` of the y values, and of the x values."""
    return function(*(pair[0] for pair in pairs)), function(*(pair[1] for pair in pairs))
