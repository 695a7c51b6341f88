"""CAM: a linear classifier over global average pooling, whose class map is the classifier laid over each cell.

    logit_c = W_c · mean_hw(x) + b_c        evidence_c(h, w) = W_c · x(h, w) / (H W)        offset_c = b_c

The pooled sum and the class map are the same sum taken in another order, so the map is exact and costs nothing.
Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, equations 1 and 2.
"""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from .base import Contract, Features, State, linear_evidence, no_parts
from .linear import LinearHead
from .registry import register_head


@register_head("cam")
class CAM(LinearHead[State]):
    """Class activation maps as the classifier itself.

    Assumes that what speaks for a class adds up over the image. The map is what each cell adds to the logit (or
    takes from it); a cell sees its whole receptive field. Accuracy is the black box's own: it is the same function
    wherever timm ends in average pooling and a linear layer; where it ends in more, `dynamic_cam` takes its place.
    """

    contract = Contract.LINEAR
    stand_in: ClassVar[str | None] = "dynamic_cam"

    def score(self, features: Features) -> State:
        """Logits `b c` from features `b d h w`."""
        assert isinstance(features, Tensor)
        # The same pooling call as timm's, so that a folded classifier gives timm's logits to the bit.
        pooled = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        return State(features, self.classifier(pooled), no_parts(features))

    def evidence(self, state: State, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (the bias)."""
        return linear_evidence(state.features, self.classifier.weight, classes), self.classifier.bias[classes]
