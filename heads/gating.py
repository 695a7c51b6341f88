"""What the heads share that weigh cells by a gate, or by attention, before they are averaged.

    logit_c = mean_hw(g(h, w) · W_c · x(h, w)) + b_c        evidence_c(h, w) = g(h, w) · W_c · x(h, w) / (H W)

The gate may be one for all classes or one a class. Attention a, which adds up to 1 over the grid, is the gate H W a.
Once the image's gate is fixed the evidence is linear in each cell, so the map is exact however the gate came about.
"""

from dataclasses import dataclass
from typing import TypeVar

from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from .base import Contract, State, linear_evidence
from .linear import LinearHead, of_classes


@dataclass
class GatedState(State):
    """A state with the gate that its cells went through."""

    gate: Tensor  # b g h w, g = 1 or c: 1 everywhere is average pooling


GatedStateT = TypeVar("GatedStateT", bound=GatedState)


class GatedHead(LinearHead[GatedStateT]):
    """A linear classifier over the mean of gated cells; subclasses make the gate, and start it at 1."""

    contract = Contract.DYNAMIC

    def gated_logits(self, features: Tensor, gate: Tensor) -> Tensor:
        """Logits `b c` of features `b d h w` under a gate `b g h w`, g = 1 or c."""
        if gate.shape[1] == 1:
            pooled = functional.adaptive_avg_pool2d(features * gate, 1).flatten(1)
            return self.classifier(pooled)
        class_maps = einsum(self.classifier.weight, features, "c d, b d h w -> b c h w")
        return (class_maps * gate).mean((-2, -1)) + self.classifier.bias

    def evidence(self, state: GatedStateT, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (the bias)."""
        gate = of_classes(state.gate, classes) if state.gate.shape[1] > 1 else state.gate
        maps = linear_evidence(state.features, self.classifier.weight, classes) * gate
        return maps, self.classifier.bias[classes]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a single image of one cell in training too: by its running statistics, having no others."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `b c h w`."""
        if self.training and input.numel() == self.num_features:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class GateNorm(BatchNorm):
    """A gate's batch norm, whose factor starts at 0: the gate is then the same everywhere, whatever comes before.

    Zeroing the convolution before it would not do: batch norm brings whatever the first step makes of it, however
    small, to unit variance, and the gate jumps.
    """

    def __init__(self) -> None:
        super().__init__(1)
        nn.init.zeros_(self.weight)


def log_attention(scores: Tensor) -> Tensor:
    """Logarithm of the softmax over the grid of `b p h w`."""
    height, width = scores.shape[-2:]
    flat = rearrange(scores, "b p h w -> b p (h w)").log_softmax(-1)
    return rearrange(flat, "b p (h w) -> b p h w", h=height, w=width)
