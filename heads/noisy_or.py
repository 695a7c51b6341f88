"""Noisy-or: each cell may show a class, the image shows it if any cell does; cells err independently.

    q_c(h, w) = sigmoid(W_c · x(h, w) + b_c - log(H W))     p_c = 1 - Π_hw (1 - q_c)     logit_c = log(p_c / (1 - p_c))
    evidence_c = softplus(W_c · x + b_c - log(H W)) = -log(1 - q_c)        offset_c = log p_c

The evidence adds up to S_c = -log(1 - p_c), and logit_c = S_c + log(1 - exp(-S_c)). Features `b d h w`, evidence
`b c h w`. Maron and Lozano-Pérez, "A Framework for Multiple-Instance Learning", NIPS 1997 (noisy-or); Zhang, Platt
and Viola, "Multiple Instance Boosting for Object Detection", NIPS 2005.

With b_c alone, the more cells a grid has, the surer any image is of any class: 1 - (1 - q)^N. So each cell's odds are
divided by the number of cells; then p_c is about the mean odds exp(W_c · x + b_c) while it is small, on a grid of any
size, and b_c = -log(c) starts every class at p = 1 / c.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Contract, Features, no_parts
from .linear import ClassMaps, LinearHead, class_maps, log_num_cells, of_classes
from .registry import register_head


@dataclass
class _NoisyOr(ClassMaps):
    offsets: Tensor  # b c: log p


@register_head("noisy_or")
class NoisyOr(LinearHead[_NoisyOr]):
    """Noisy-or pooling (multiple-instance learning): for several labels an image, each present or absent by itself.

    Assumes that one cell is enough to show a class and that cells err independently (neighbours do not, so p is
    surer than it should be). The map is never negative: how much each cell says that the class is there, nothing
    counts against it. The logit is that of p for the class by itself, not beside the others: besides the trainer's
    cross entropy, which only compares classes, the head asks for the loss `binary_cross_entropy`. For several labels
    train with that alone (`loss_weights: {classification: 0}`). Scores every class at every cell: d c h w
    multiplications and a softplus, and c h w numbers kept.
    """

    contract = Contract.DYNAMIC

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        nn.init.constant_(self.classifier.bias, -math.log(num_classes))

    def score(self, features: Features) -> _NoisyOr:
        """Logits `b c` from features `b d h w`."""
        assert isinstance(features, Tensor)
        log_odds = class_maps(features, self.classifier.weight) + self.classifier.bias[:, None, None]
        log_odds = log_odds - log_num_cells(features)
        # softplus, but exact for large arguments too, where torch's own softplus goes over to the identity.
        evidence = -functional.logsigmoid(-log_odds)
        total = evidence.sum((-2, -1))
        # Where every cell is surer than floats can hold that the class is absent, the logit stays finite.
        offsets = (-torch.expm1(-total.clamp_min(torch.finfo(total.dtype).tiny))).log()
        return _NoisyOr(features, total + offsets, no_parts(features), evidence, offsets)

    def evidence(self, state: _NoisyOr, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, not negative; offset `b k`, not positive."""
        return of_classes(state.maps, classes), of_classes(state.offsets, classes)

    def losses(self, state: _NoisyOr, targets: Tensor) -> dict[str, Tensor]:
        """`binary_cross_entropy`: summed over classes, as the log-likelihood of the image's labels, mean over images.

        `targets`: class ids `b`, or a 0 or 1 for every class, `b c`. Beside cross entropy it sets the level of the
        logits, which that leaves free, and both start near log(c).
        """
        wanted = functional.one_hot(targets, self.num_classes) if targets.ndim == 1 else targets
        terms = functional.binary_cross_entropy_with_logits(
            state.logits, wanted.to(state.logits.dtype), reduction="none"
        )
        return {"binary_cross_entropy": terms.sum(1).mean()}

    @torch.no_grad()
    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take over a classifier of pooled features, with log(c) off its bias: the same ranking, nearly.

        Strong cells are added, not averaged, so the logits of a trained classifier come out many times larger; the
        loss draws them back. A folded MobileNetV2 kept 88 % of its predictions on 449 photographs, and all 227 that
        it had made with more than even probability.
        """
        super().fold(weight, bias)
        self.classifier.bias.sub_(math.log(self.num_classes))
        return True
