"""Sparse features: few features in all, a handful for each class, each with weight one.

    logit_c = Σ over f in S_c of (mean_hw(x_f) − m_f) / s_f        |S_c| = k, of n chosen features
    evidence_c(h, w) = Σ over f in S_c of x_f(h, w) / (s_f H W)    offset_c = −Σ over f in S_c of m_f / s_f

First a dense classifier is trained; then features and edges are chosen (`feature_selection.py`), mean m and deviation s
measured over the training images, and the backbone is tuned to the choice. Norrenbrock, Rudolph, Rosenhahn, "Q-SENN:
Quantized Self-Explaining Neural Networks", AAAI 2024; Norrenbrock, Kaiser, Rudolph, Rosenhahn, "QPM: Discrete
Optimization for Globally Interpretable Image Classification", ICLR 2025.
"""

from collections.abc import Iterable
from math import comb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.errors import InputError
from .base import Contract, Features, Phase, State, linear_evidence
from .feature_selection import select
from .feature_statistics import FeatureStatistics
from .linear import LinearHead
from .options import check_range
from .registry import register_head


@register_head("sparse_features")
class SparseFeatures(LinearHead[State]):
    """A class as a short list of features that all classes share: "these five, of fifty".

    Assumes that classes can be told apart by a few features each. The map is the sum of the class's feature maps; one
    feature map has the same meaning in every class, so that classes can be compared by what they list. `parts` are
    the chosen feature maps, standardised: their means are what the logit adds up. Until the selection, at the end of
    the first phase, the head is a dense classifier over all features (`cam`), its `parts` are zero, and a folded
    classifier gives timm's own logits. Use it where a person shall learn how the model tells classes apart. Costs a
    second phase of training, and some accuracy; forward costs what `cam` does.

    Args:
        num_selected: Features in all; fewer where the backbone has fewer, or where few classes have no use for so many.
        per_class: Features of each class.

    Raises:
        InputError: Too few features for as many different lists as there are classes.
    """

    contract = Contract.LINEAR

    is_selected: Tensor
    edges: Tensor
    selected: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int, num_classes: int, *, num_selected: int = 50, per_class: int = 5) -> None:
        super().__init__(num_features, num_classes)
        check_range("num_selected", num_selected, 1)
        check_range("per_class", per_class, 1)
        self.num_selected = min(num_selected, num_features, per_class * num_classes)
        self.per_class = per_class
        if (lists := comb(self.num_selected, per_class)) < num_classes:
            raise InputError(
                f"{self.num_selected} features make {lists} different lists of per_class={per_class}, too few for "
                f"{num_classes} classes: raise num_selected or change per_class"
            )
        # The selection lives in buffers, so that checkpoints and exported programs hold it, and one formula serves
        # before and after.
        self.register_buffer("is_selected", torch.tensor(False))
        self.register_buffer("edges", torch.zeros(num_classes, num_features, dtype=torch.bool))
        self.register_buffer("selected", torch.arange(self.num_selected))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight `c d` and bias `c` over standardised features: the dense classifier's, or ones at the edges and 0."""
        weight, bias = self.classifier.weight, self.classifier.bias
        is_dense = ~self.is_selected
        return weight.where(is_dense, self.edges.to(weight.dtype)), bias.where(is_dense, torch.zeros_like(bias))

    def score(self, features: Features) -> State:
        """Logits `b c` from features `b d h w`; parts `b n h w`."""
        assert isinstance(features, Tensor)
        pooled = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits = functional.linear((pooled - self.mean) / self.deviation, *self.linear())
        mean, deviation = self.mean[self.selected], self.deviation[self.selected]
        parts = (features[:, self.selected] - mean[:, None, None]) / deviation[:, None, None]
        return State(features, logits, parts * self.is_selected)

    def evidence(self, state: State, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (the bias, less what the features are on average)."""
        weight, bias = self.linear()
        weight = weight / self.deviation
        return linear_evidence(state.features, weight, classes), (bias - weight @ self.mean)[classes]

    def losses(self, state: State, targets: Tensor) -> dict[str, Tensor]:
        """`diversity`: features of the predicted class shall light up at different places (its values are negative).

        −Σ_hw of the largest over f of softmax_hw(x_f) · mean(x_f) / largest mean · |w_f| / ‖w‖, w those of the class.
        """
        weight = self.linear()[0][state.logits.argmax(1)].abs()  # b d
        weight = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
        # A mean below zero (backbones without a last ReLU) is a feature that is not there.
        strength = state.features.mean((-2, -1)).clamp(min=0)
        strength = strength / strength.amax(1, keepdim=True).clamp(min=1e-12)
        cells = state.features.flatten(2).softmax(-1) * (strength * weight)[..., None]
        return {"diversity": -cells.amax(1).sum(-1).mean()}

    def loss_weights(self) -> dict[str, float]:
        """The papers'."""
        return {"diversity": 0.196}

    def phases(self) -> list[Phase]:
        """Dense training, the selection at its end; then the backbone is tuned to it: ones have nothing to learn."""
        return [Phase("dense", project=True), Phase("sparse", lr_scale={"*": 0.1})]

    @torch.no_grad()
    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Choose features and edges on the images of `loader`; all processes choose alike.

        Returns: objective of the selection, the bound that no selection exceeds, and the gap between as a share.
        """
        model.eval()
        backbone: Any = model.backbone
        statistics = FeatureStatistics(self.num_features, self.num_classes)
        for batch in loader:
            features = backbone(batch.images.to(self.mean.device))
            statistics.add(features.cpu(), batch.labels)
        statistics.join(self.mean.device)
        selection = select(statistics.problem(self.num_selected, self.per_class))
        self.edges.copy_(selection.edges)
        self.selected.copy_(selection.selected)
        mean, deviation = statistics.moments()
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.is_selected.fill_(True)
        numbers = {"objective": selection.objective, "bound": selection.bound, "gap": selection.gap}
        return {f"selection_{name}": number for name, number in numbers.items()}
