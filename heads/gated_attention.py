"""Gated attention: a small network says how much each cell counts, and the classifier reads the weighted mean.

    a = softmax_hw(wᵀ (tanh(V x) ⊙ sigmoid(U x)))        logit_c = W_c · Σ_hw a(h, w) x(h, w) + b_c
    evidence_c(h, w) = a(h, w) W_c · x(h, w)        offset_c = b_c

Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, equations 8 and 9 (ABMIL).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .base import Features
from .gating import GatedHead, GatedState, log_attention
from .options import check_range
from .registry import register_head


@dataclass
class AttentionState(GatedState):
    """What the entropy of the attention is computed from."""

    log_attention: Tensor  # b p h w


@register_head("gated_attention")
class GatedAttention(GatedHead[AttentionState]):
    """Attention pooling: the image is a bag of cells, and a gated network weighs them.

    Assumes that few cells matter and that a cell shows on its own whether it does. The map is what each cell adds to
    the logit; `parts` is the attention (adds up to 1), which says where the head looked and not for what: cells that
    speak against a class are attended to as well. Use it for small objects in large images. Costs two 1×1
    convolutions to `hidden` channels; with `per_class`, all class maps as well (attention may differ by class, and
    the score then needs each class at each cell). Starts at uniform attention, which is average pooling.

    Args:
        hidden: Channels of the attention network.
        per_class: One attention map for each class instead of one for all.
    """

    def __init__(self, num_features: int, num_classes: int, *, hidden: int = 128, per_class: bool = False) -> None:
        super().__init__(num_features, num_classes)
        check_range("hidden", hidden, 1)
        self.content = nn.Conv2d(num_features, hidden, 1)
        self.gate = nn.Conv2d(num_features, hidden, 1)
        # No bias: softmax would cancel it.
        self.attention = nn.Conv2d(hidden, num_classes if per_class else 1, 1, bias=False)
        for layer in (self.content, self.gate):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.attention.weight)

    def score(self, features: Features) -> AttentionState:
        """Logits `b c` from features `b d h w`; `parts` is the attention, `b 1 h w` or `b c h w`."""
        assert isinstance(features, Tensor)
        scores = self.attention(self.content(features).tanh() * self.gate(features).sigmoid())
        logarithm = log_attention(scores)
        attention = logarithm.exp()
        gate = attention * (features.shape[-2] * features.shape[-1])
        return AttentionState(features, self.gated_logits(features, gate), attention, gate, logarithm)

    def losses(self, state: AttentionState, targets: Tensor) -> dict[str, Tensor]:
        """`attention_entropy`: mean entropy of the attention in nats; the lower, the fewer cells decide."""
        entropy = -(state.parts * state.log_attention).sum((-2, -1))
        return {"attention_entropy": entropy.mean()}

    def loss_weights(self) -> dict[str, float]:
        """A nudge only: attention that is sharp too early leaves most cells without a gradient."""
        return {"attention_entropy": 1e-3}
