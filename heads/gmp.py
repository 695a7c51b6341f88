"""GMP: a linear classifier at each cell, and the logit is its largest value.

    M_c(h, w) = W_c · x(h, w)        logit_c = max_hw M_c + b_c
    evidence_c = M_c where M_c reaches that maximum (shared evenly among ties), else 0        offset_c = b_c

Features `b d h w`, class maps `b c h w`. Oquab et al., "Is object localization for free? Weakly-supervised learning
with convolutional neural networks", CVPR 2015.
"""

from torch import Tensor

from .base import Contract, Features, no_parts
from .linear import ClassMaps, LinearHead, class_maps, of_classes
from .registry import register_head


@register_head("gmp")
class GMP(LinearHead[ClassMaps]):
    """Global max pooling of the class maps: one cell decides each class.

    Assumes that one cell shows enough of the class, wherever it lies. The map is that cell alone, so it points but
    does not outline. For small causes in large images, where an average would drown them. Only the winning cell of
    each class gets a gradient, so it learns slowly from a fresh start and overfits single cells; `lse` is the way
    between. Scores every class at every cell: d c h w multiplications an image, and c h w numbers kept.
    """

    contract = Contract.SELECT

    def score(self, features: Features) -> ClassMaps:
        """Logits `b c` from features `b d h w`."""
        assert isinstance(features, Tensor)
        maps = class_maps(features, self.classifier.weight)
        # amax, as evidence does, gives each of several tied cells its share of the gradient.
        return ClassMaps(features, maps.amax((-2, -1)) + self.classifier.bias, no_parts(features), maps)

    def evidence(self, state: ClassMaps, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero but at the maximum; offset `b k` (the bias)."""
        maps = of_classes(state.maps, classes)
        is_peak = maps == maps.amax((-2, -1), keepdim=True)
        return maps * is_peak / is_peak.sum((-2, -1), keepdim=True), self.classifier.bias[classes]

    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Start from a classifier of pooled features, without its logits: a maximum is no mean, so this says False.

        A folded MobileNetV2 kept 78 % of its predictions on 449 photographs, and 94 % of the 227 that it had made with
        more than even probability: too few to stand in for the classifier, a good start for fine-tuning.
        """
        super().fold(weight, bias)
        return False
