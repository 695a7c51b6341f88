"""Class attention: each class asks the image its own questions, and is scored on the cells that answer.

    A_cs = softmax_hw(q_cs · K x / √d)        a_c = mean_s A_cs        logit_c = Σ_hw a_c(h, w) W_c · x(h, w) + b_c
    evidence_c(h, w) = a_c(h, w) W_c · x(h, w)        offset_c = b_c

One cross-attention with no norm, residual or feed-forward layer after it: what decoders such as INTR (Paul et al.,
"A Simple Interpretable Transformer for Fine-Grained Image Classification and Analysis", ICLR 2024) put there is what
unties their attention from their logits.
"""

import math

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from .base import Features
from .gating import GatedHead, GatedState, log_attention
from .options import check_range
from .registry import register_head


@register_head("class_attention")
class ClassAttention(GatedHead[GatedState]):
    """Cross-attention with one query for each class, or several, read out cell by cell.

    Assumes that classes look for different things in different places, as fine-grained ones do. The map is what each
    cell adds to the class's logit; `parts` holds the attention of every query, class by class (each adds up to 1).
    Several queries let a class look at several places; their attention is averaged. Costs a 1×1 convolution to `dim`
    channels, one attention map for each query and all class maps: with very many classes prefer `gated_attention`.
    Starts at uniform attention, which is average pooling.

    Args:
        queries: Queries for each class.
        dim: Channels in which queries and cells meet.
    """

    def __init__(self, num_features: int, num_classes: int, *, queries: int = 1, dim: int = 64) -> None:
        super().__init__(num_features, num_classes)
        check_range("queries", queries, 1)
        check_range("dim", dim, 1)
        self.queries = nn.Parameter(torch.empty(num_classes, queries, dim))
        nn.init.trunc_normal_(self.queries, std=0.02)
        # Keys start at zero rather than the queries, for a class's queries must differ if they are to part ways.
        # No bias: softmax would cancel it.
        self.key = nn.Conv2d(num_features, dim, 1, bias=False)
        nn.init.zeros_(self.key.weight)

    def score(self, features: Features) -> GatedState:
        """Logits `b c` from features `b d h w`; `parts` is the attention `b (c queries) h w`."""
        assert isinstance(features, Tensor)
        num_queries, dim = self.queries.shape[1:]
        keys = self.key(features) / math.sqrt(dim)
        scores = einsum(rearrange(self.queries, "c q d -> (c q) d"), keys, "p d, b d h w -> b p h w")
        attention = log_attention(scores).exp()
        num_cells = features.shape[-2] * features.shape[-1]
        gate = num_cells * reduce(attention, "b (c q) h w -> b c h w", "mean", q=num_queries)
        return GatedState(features, self.gated_logits(features, gate), attention, gate)

    def no_weight_decay(self) -> set[str]:
        """The queries, as other learned tokens."""
        return {"queries"}
