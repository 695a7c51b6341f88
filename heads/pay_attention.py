"""Learn to pay attention: each of several stages is pooled by an attention map of its own; the logits add up.

    a^s = softmax_hw(c^s)      logit_c = b_c + Σ_s W^s_c · Σ_hw a^s x^s
    evidence_c = Σ_s spread(a^s ⊙ (W^s_c · x^s))      offset_c = b_c

c^s says how well a cell fits: u^s · x^s ("parametrised") or t^s x^s · (Q^s g) / √d_s ("dot"), g the mean final feature.
Jetley et al., "Learn to Pay Attention", ICLR 2018; `spread` puts coarse stages on the finest grid.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from .base import Contract, Features, linear_evidence
from .options import check_choice
from .registry import register_head
from .stages import StagesHead, StagesState, finest, spread


@dataclass
class AttendedState(StagesState):
    """`StagesState`, and the attention of each stage."""

    attention: list[Tensor]  # b h w each, summing to 1


@register_head("pay_attention")
class PayAttention(StagesHead[AttendedState]):
    """Attention pooling at several stages (LTPA): where each stage looks, and what it finds there.

    Assumes that few places decide, and that a fixed pattern ("parametrised") or likeness to the image as a whole
    ("dot") tells which. The map is attention times the classifier's answer at each cell, signed; `parts` holds the
    attention of each stage, shallow to deep, which has no sign and is no evidence. Exact once the image's attention is
    fixed. Costs one product per cell and stage beside `multiscale_cam`.

    It starts as the classifier of the final features: attention is uniform (u and t are zero), shallow classifiers are
    zero. In the paper the logit has no such start, c^s is u · (x + g), and t = √d. Here g is left out of
    "parametrised", since what it adds is the same at every cell and softmax does not see it; features need no
    projection to a common length, since W^s is a stage's own, and Q^s does that for "dot".

    Options: `stages`, how many of the last stages are used; `compatibility`, "parametrised" or "dot".
    """

    contract = Contract.DYNAMIC

    def __init__(
        self,
        num_features: list[int],
        num_classes: int,
        *,
        stages: int = 3,
        compatibility: Literal["parametrised", "dot"] = "parametrised",
    ) -> None:
        check_choice("compatibility", compatibility, ("parametrised", "dot"))
        super().__init__(num_features, num_classes, stages)
        self.queries: nn.ParameterList | None = None
        if compatibility == "parametrised":
            self.queries = nn.ParameterList(torch.zeros(channels) for channels in num_features)
        else:
            self.temperatures = nn.Parameter(torch.zeros(stages))
            # Not zero as well: each would then be all that the other's gradient is made of.
            self.projections = nn.ModuleList(
                nn.Linear(num_features[-1], channels, bias=False) for channels in num_features[:-1]
            )

    def score(self, features: Features) -> AttendedState:
        """Logits `b c` and attention (parts, `b p h w`, p stages) from the features `b d h w` of each stage."""
        assert isinstance(features, list)
        logits: Tensor = self.classifier.bias
        attention = []
        for stage, compatibility, classifier in zip(
            features, self._compatibilities(features), self.classifiers, strict=True
        ):
            height, width = stage.shape[-2:]
            weights = compatibility.flatten(1).softmax(1)
            attention.append(rearrange(weights, "b (h w) -> b h w", h=height, w=width))
            attended = einsum(weights, stage.flatten(2), "b n, b d n -> b d")
            logits = logits + attended @ classifier.weight.T
        grid = finest(features)
        parts = torch.stack([spread(weights, grid) for weights in attention], dim=1)
        return AttendedState(features[-1], logits, parts, features, attention)

    def evidence(self, state: AttendedState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w` on the finest grid, offset `b k` (the bias)."""
        grid = finest(state.stages)
        maps = []
        for stage, attention, classifier in zip(state.stages, state.attention, self.classifiers, strict=True):
            # Attention in units of the uniform one, since evidence for a mean is divided by the number of cells.
            gain = attention[:, None] * (stage.shape[-2] * stage.shape[-1])
            maps.append(spread(gain * linear_evidence(stage, classifier.weight, classes), grid))
        return sum(maps[1:], maps[0]), self.classifier.bias[classes]

    def _compatibilities(self, stages: list[Tensor]) -> list[Tensor]:
        """How well each cell fits, `b h w`, of each stage."""
        if self.queries is not None:
            return [
                einsum(query, stage, "d, b d h w -> b h w") for query, stage in zip(self.queries, stages, strict=True)
            ]
        mean = stages[-1].mean((2, 3))
        wanted = [*(projection(mean) for projection in self.projections), mean]
        return [
            temperature * einsum(query, stage, "b d, b d h w -> b h w") / stage.shape[1] ** 0.5
            for temperature, query, stage in zip(self.temperatures, wanted, stages, strict=True)
        ]
