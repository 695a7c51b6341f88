"""Local CAM: CAM on features whose receptive field is bounded, so that a cell of the map is a claim about its pixels.

    logit_c = W_c · mean_hw(x) + b_c        evidence_c(h, w) = W_c · x(h, w) / (H W)        offset_c = b_c

x is the output of an earlier stage (the network ends there), or the final feature map of a network made for it:
Brendel & Bethge, "Approximating CNNs with Bag-of-local-Features models works surprisingly well on ImageNet", ICLR 2019.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Contract
from .cam import CAM
from .registry import register_head


@register_head("local_cam")
class LocalCAM(CAM):
    """Class activation maps of patches: evidence of a cell comes from the patch around it and from no other pixel.

    Assumes that small patches, looked at one by one, tell the class. The map is what each patch adds to the logit, and
    `model.grid.receptive_field` is the size of a patch, exactly. The bound holds only where
    `model.grid.sees_whole_image` is false: squeeze-and-excitation and group norms, as in EfficientNet, bring a mean of
    the whole image to every cell. Use it where the place of the evidence must be certain: with `bagnet9`, `bagnet17` or
    `bagnet33` and `stage=-1`, or with any network cut where its field is small enough (resnet50: 267 pixels at stage
    -2, 91 at -3, 35 at -4). It costs accuracy, the more the smaller the patch, and saves time: what comes after the
    stage is neither run nor kept. It starts as timm's classifier only with `stage=-1`.

    Options: `stage`, counted from the end, -1 being the final features.
    """

    contract = Contract.LINEAR

    def __init__(self, num_features: int, num_classes: int, *, stage: int = -3) -> None:
        super().__init__(num_features, num_classes)
        self.stage = stage

    @classmethod
    def wanted_stages(cls, options: Mapping[str, Any]) -> tuple[int, ...]:
        """`stage` alone."""
        return (options["stage"],)

    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take over a classifier of the pooled final features, if this head looks at them."""
        return self.stage == -1 and super().fold(weight, bias)
