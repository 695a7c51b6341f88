"""GeM: a linear classifier over features pooled by a generalised mean, its share handed back to each cell.

    g_d = (mean_hw x_d^p)^(1/p)        logit_c = W_c · g + b_c
    s_d(h, w) = x_d^p / Σ_hw x_d^p     evidence_c(h, w) = Σ_d W_cd g_d s_d(h, w)        offset_c = b_c

g grows in proportion to x, so by Euler's theorem it is the sum of x ∂g/∂x over the cells: g_d s_d, the share of each.
Features `b d h w` (what is below 1e-6 counts as 1e-6), pooled `b d`. Radenović et al., "Fine-tuning CNN Image
Retrieval with No Human Annotation", TPAMI 2019, equation 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Contract, Features, State, linear_evidence, no_parts
from .linear import LinearHead, log_num_cells
from .options import check_range
from .registry import register_head

_LEAST_FEATURE = 1e-6
_POWERS = (1.0, 20.0)


@dataclass
class _Pooled(State):
    exponents: Tensor  # b d h w: p log x
    pooled: Tensor  # b d


@register_head("gem")
class GeM(LinearHead[_Pooled]):
    """Generalised-mean pooling of the features: the average at p = 1, the maximum as p grows, p learned.

    Assumes non-negative features, as after a ReLU: what is negative counts as nothing. A strong cell speaks for more
    than its area, in each channel apart, before the classes are looked at. The map hands each channel's pooled value
    back to the cells by their share of it, weighted by the classifier. The usual choice for fine-grained classes and
    retrieval. Costs a logarithm and an exponential a feature; class maps are made only for what is explained.

    Args:
        num_features: Channels d of the features.
        num_classes: Classes c.
        power: p, or where it starts if it is learned, from 1 to 20.
        learned: Learn p, one for all channels.
    """

    contract = Contract.DYNAMIC

    def __init__(self, num_features: int, num_classes: int, *, power: float = 3.0, learned: bool = True) -> None:
        check_range("power", power, *_POWERS)
        super().__init__(num_features, num_classes)
        self.fixed_power = power
        self.raw_power = nn.Parameter(torch.tensor(float(power))) if learned else None

    def power(self) -> Tensor | float:
        """The power p, kept from 1 to 20."""
        if self.raw_power is None:
            return self.fixed_power
        # Only the value is clamped: with the gradient clamped too, a p that once left the range could not come back.
        return self.raw_power + (self.raw_power.clamp(*_POWERS) - self.raw_power).detach()

    def score(self, features: Features) -> _Pooled:
        """Logits `b c` from features `b d h w`."""
        assert isinstance(features, Tensor)
        power = self.power()
        # Powers of 20 leave what floats can hold; their logarithms do not.
        widened = features.to(torch.promote_types(features.dtype, torch.float32))
        exponents = power * widened.clamp_min(_LEAST_FEATURE).log()
        pooled = ((exponents.logsumexp((-2, -1)) - log_num_cells(widened)) / power).exp().to(features.dtype)
        return _Pooled(features, self.classifier(pooled), no_parts(features), exponents, pooled)

    def evidence(self, state: _Pooled, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (the bias)."""
        shares = state.exponents.flatten(2).softmax(-1).view_as(state.exponents).to(state.pooled.dtype)
        # Features whose plain mean is the pooled value: the linear classifier's evidence of them is that of the logit.
        evened = state.pooled[..., None, None] * shares * (shares.shape[-2] * shares.shape[-1])
        return linear_evidence(evened, self.classifier.weight, classes), self.classifier.bias[classes]

    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take over a classifier of average-pooled features: exact (to 1e-6 a feature) at p = 1 on x >= 0.

        With larger p the pooled features, and so the logits, are larger (about twice at p = 3, where a folded
        MobileNetV2 kept 90 % of its predictions on 449 photographs, and 226 of the 227 that it had made with more than
        even probability). Negative features (after SiLU, GELU or none) are lost: there it is a start and no more.
        """
        return super().fold(weight, bias)

    def no_weight_decay(self) -> set[str]:
        """The power: decay would pull it to 0."""
        return set() if self.raw_power is None else {"raw_power"}
