"""Steps of a classifier: each knows its forward pass, and what weight it gives to what went in.

A classifier behind a feature map is a chain of steps, z_0 = x (b d h w), z_i = step_i(z_{i-1}), logits last. Backwards
along it, `pull` turns weights over what a step made into weights over what it was given:

    Σ w' · z_i  =  Σ w · z_{i-1} + constant        exactly, for this image

so weights of a class over the logits become weights over the feature map, one matrix product a step: no gradient is
taken, and nothing is run again. Pooled tensors keep a grid of 1 × 1. Weights are `b k d h w`, or `b k d 1 1` where they
are the same at every cell. Rules:

    mean over the grid       w = w' / (h w) at every cell
    maximum over the grid    w = w' at the highest cell, else 0
    affine y = A x + a       w = Aᵀ w', constant w' · a
    norm y = g (x - m) / s + b  with m the mean over channels (or 0), linear in x, and the deviation s held:
                             w = g w' / s - mean over channels of that (or 0), constant w' · b
    activation a             w = r w', with the gain r = a(x) / x held; a(0) = 0

Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019, treats activations so; Ali et al., "XAI for
Transformers", ICML 2022, norms. Holding m as well would be as exact, but a shift of all channels alike, which the norm
removes, would count as evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional

from .options import check_choice


class Step(nn.Module):
    """One step: `forward` from `b d h w`, `pull` back. Options are plain JSON values, kept in `description`."""

    kind: ClassVar[str]
    out_features: int

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.description: dict[str, Any] = {"kind": self.kind, **options}

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Weights over `given` (b d h w) and a constant `b k`, from weights over what the step makes of it."""
        raise NotImplementedError


class Pool(Step):
    """Global pooling; `pool_type` as timm's: "avg", "max", "avgmax" (their mean), "catavgmax" (both, average first)."""

    kind = "pool"

    def __init__(self, num_features: int, *, pool_type: str = "avg") -> None:
        check_choice("pool_type", pool_type, ("avg", "max", "avgmax", "catavgmax"))
        super().__init__(pool_type=pool_type)
        self.pool_type = pool_type
        self.out_features = num_features * (2 if pool_type == "catavgmax" else 1)

    def forward(self, given: Tensor) -> Tensor:
        """`b d 1 1` of `b d h w`."""
        match self.pool_type:
            case "avg":
                return functional.adaptive_avg_pool2d(given, 1)
            case "max":
                return functional.adaptive_max_pool2d(given, 1)
        both = functional.adaptive_avg_pool2d(given, 1), functional.adaptive_max_pool2d(given, 1)
        return torch.cat(both, 1) if self.pool_type == "catavgmax" else (both[0] + both[1]) / 2

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The mean's share at every cell, the maximum's at the highest (the first of several)."""
        no_constant = weight.new_zeros(weight.shape[:2])
        cells = given.shape[-2] * given.shape[-1]
        match self.pool_type:
            case "avg":
                return weight / cells, no_constant
            case "max":
                return weight * _at_highest(given)[:, None], no_constant
            case "avgmax":
                return weight * (1 / cells + _at_highest(given)[:, None]) / 2, no_constant
        of_mean, of_maximum = weight.chunk(2, dim=2)
        return of_mean / cells + of_maximum * _at_highest(given)[:, None], no_constant


class Linear(Step):
    """A linear layer over channels, at each cell by itself."""

    kind = "linear"

    def __init__(self, num_features: int, *, out_features: int) -> None:
        super().__init__(out_features=out_features)
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, num_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, given: Tensor) -> Tensor:
        """`b e h w` of `b d h w`."""
        return functional.linear(given.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The transposed product; the bias becomes constant."""
        return einsum(weight, self.weight, "b k e h w, e d -> b k d h w"), _constant(
            weight, self.bias, given.shape[-2:]
        )


class Norm(Step):
    """A norm over channels, at each cell by itself.

    `norm_type`: "layer" subtracts the mean and divides by the deviation, "rms" divides by the root mean square,
    "simple" by the (unbiased) deviation, without subtracting anything.
    """

    kind = "norm"

    def __init__(self, num_features: int, *, norm_type: str = "layer", eps: float = 1e-6) -> None:
        check_choice("norm_type", norm_type, ("layer", "rms", "simple"))
        super().__init__(norm_type=norm_type, eps=eps)
        self.norm_type = norm_type
        self.eps = eps
        self.out_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, given: Tensor) -> Tensor:
        """`b d h w` of `b d h w`."""
        centred = given - given.mean(1, keepdim=True) if self.norm_type == "layer" else given
        return centred / self._deviation(given) * self.weight[:, None, None] + self.bias[:, None, None]

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The deviation is held; subtracting the mean is undone by subtracting the mean weight."""
        scaled = weight * self.weight[:, None, None] / self._deviation(given)[:, None]
        if self.norm_type == "layer":
            scaled = scaled - scaled.mean(2, keepdim=True)
        return scaled, _constant(weight, self.bias, given.shape[-2:])

    def _deviation(self, given: Tensor) -> Tensor:
        """What `b d h w` is divided by, `b 1 h w`."""
        if self.norm_type == "rms":
            square = given.square().mean(1, keepdim=True)
        else:
            square = given.var(1, keepdim=True, correction=int(self.norm_type == "simple"))
        return (square + self.eps).sqrt()


def _tanh_gelu(given: Tensor) -> Tensor:
    return functional.gelu(given, approximate="tanh")


class Activation(Step):
    """An activation, at each channel and cell by itself."""

    kind = "activation"
    # The function, and its slope at 0: the gain there, where a(x) / x is 0 / 0.
    FUNCTIONS: ClassVar[dict[str, tuple[Callable[[Tensor], Tensor], float]]] = {
        "relu": (functional.relu, 0.0),
        "square": (torch.square, 0.0),
        "hardswish": (functional.hardswish, 0.5),
        "silu": (functional.silu, 0.5),
        "gelu": (functional.gelu, 0.5),
        "tanh_gelu": (_tanh_gelu, 0.5),
    }

    def __init__(self, num_features: int, *, function: str) -> None:
        check_choice("function", function, tuple(self.FUNCTIONS))
        super().__init__(function=function)
        self.function, self.slope = self.FUNCTIONS[function]
        self.out_features = num_features

    def forward(self, given: Tensor) -> Tensor:
        """`b d h w` of `b d h w`."""
        return self.function(given)

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The gain is held. Each of these functions is 0 at 0, so nothing is left over."""
        is_zero = given == 0
        gain = torch.where(is_zero, self.slope, self.function(given) / torch.where(is_zero, 1.0, given))
        return weight * gain[:, None], weight.new_zeros(weight.shape[:2])


class Window(Step):
    """A convolution without padding, as VGG's first full connection; a smaller grid is stretched to its window."""

    kind = "window"

    def __init__(self, num_features: int, *, out_features: int, kernel_size: int) -> None:
        super().__init__(out_features=out_features, kernel_size=kernel_size)
        self.out_features = out_features
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(out_features, num_features, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, given: Tensor) -> Tensor:
        """`b e h' w'` of `b d h w`, h' = max(1, h - kernel_size + 1)."""
        return functional.conv2d(self._stretched(given), self.weight, self.bias)

    def pull(self, weight: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The transposed convolution, then the transposed stretching."""
        stretched = self._stretched(given)
        made = [side - self.kernel_size + 1 for side in stretched.shape[-2:]]
        weight = weight.expand(*weight.shape[:3], *made)
        pulled = functional.conv_transpose2d(weight.flatten(0, 1), self.weight).unflatten(0, weight.shape[:2])
        if stretched is not given:
            sides = zip(given.shape[-2:], stretched.shape[-2:], strict=True)
            rows, columns = (_stretching(side, to, given) for side, to in sides)
            pulled = einsum(rows, pulled, columns, "i h, b k d i j, j w -> b k d h w")
        return pulled, _constant(weight, self.bias, made)

    def _stretched(self, given: Tensor) -> Tensor:
        height, width = (max(side, self.kernel_size) for side in given.shape[-2:])
        return given if (height, width) == given.shape[-2:] else functional.adaptive_avg_pool2d(given, (height, width))


def is_plain(steps: Sequence[Step]) -> bool:
    """Whether `steps` are average pooling and a linear layer: CAM's."""
    match list(steps):
        case [Pool(pool_type="avg"), Linear()]:
            return True
    return False


STEPS: dict[str, Callable[..., Step]] = {step.kind: step for step in (Pool, Linear, Norm, Activation, Window)}


def _at_highest(given: Tensor) -> Tensor:
    """1 at the highest cell of each channel (the first of several), else 0: `b d h w`."""
    flat = given.flatten(2)
    return torch.zeros_like(flat).scatter(2, flat.argmax(2, keepdim=True), 1.0).view_as(given)


def _constant(weight: Tensor, shift: Tensor, grid: Sequence[int]) -> Tensor:
    """What `shift` (d), added at every cell of `grid`, adds to the sum: `b k`."""
    return einsum(weight.expand(*weight.shape[:3], *grid), shift, "b k d h w, d -> b k")


def _stretching(side: int, to: int, like: Tensor) -> Tensor:
    """The matrix, `to` × `side`, that adaptive average pooling multiplies a row of cells by."""
    unit = torch.eye(side, dtype=like.dtype, device=like.device)
    return functional.adaptive_avg_pool1d(unit[None], to)[0].T
