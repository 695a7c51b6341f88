"""A linear classifier laid over each cell: what the heads share that differ only in how they pool its class maps."""

from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor, nn

from .base import Head, State, StateT


@dataclass
class ClassMaps(State):
    """For heads whose logits are pooled from the class maps: all of them are there, asked for or not."""

    maps: Tensor  # b c h w


class LinearHead(Head[StateT]):
    """A head that scores each cell by one linear classifier, `self.classifier`; subclasses say how cells make a logit.

    Where they pool by the mean at the start of training, a folded classifier gives timm's own logits.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        self.classifier = nn.Linear(num_features, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    @torch.no_grad()
    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take over a classifier of pooled features (`weight` c d, `bias` c)."""
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(torch.zeros_like(self.classifier.bias) if bias is None else bias)
        return True


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """A linear classifier `weight` (c d), without a bias, at every cell of `b d h w`: `b c h w`, in fp32 at least."""
    maps = einsum(weight, features, "c d, b d h w -> b c h w")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def of_classes(values: Tensor, classes: Tensor) -> Tensor:
    """What belongs to `classes` (b k) in `values` (b c ...): `b k ...`."""
    index = classes.reshape(*classes.shape, *(1,) * (values.ndim - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def log_num_cells(features: Tensor) -> Tensor:
    """Logarithm of the number of cells of `… h w`, a scalar: with `math.log`, exported programs knew one size only."""
    kind = torch.promote_types(features.dtype, torch.float32)
    return torch.full((), features.shape[-2] * features.shape[-1], dtype=kind, device=features.device).log()
