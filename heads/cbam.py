"""CBAM's spatial gate as the last step before pooling: each cell is let through by what stands around it.

    S = sigmoid(BN(conv7×7([mean_d x; max_d x])))        g = S / sigmoid(0) = 2 S
    logit_c = mean_hw(g(h, w) W_c · x(h, w)) + b_c        evidence_c(h, w) = g(h, w) W_c · x(h, w) / (H W)

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 3. Inside the network, where the paper
has it, convolutions follow and no identity holds; here nothing but the mean and the classifier follows.
"""

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from .base import Features
from .gating import GatedHead, GatedState, GateNorm
from .options import check_range
from .registry import register_head


@register_head("cbam")
class CBAM(GatedHead[GatedState]):
    """A spatial gate before average pooling, made from how strongly the channels respond at and around each cell.

    Assumes that strong responses, and where they stand together, tell objects from background. The map is what each
    cell adds to the logit; `parts` is the gate S between 0 (shut) and 1 (open), the same for all classes. Use it to
    silence background at next to no cost: the gate has two input channels and about a hundred weights.

    The gate is divided by its start value: that is CBAM with the factor moved from the classifier's weights, and the
    head starts as average pooling to the bit, at the sigmoid's steepest point, where a bias that holds the gate open
    (sigmoid(3) = 0.95) would leave it a tenth of that slope.

    Args:
        kernel_size: Cells that the gate looks at, across; odd.
    """

    def __init__(self, num_features: int, num_classes: int, *, kernel_size: int = 7) -> None:
        super().__init__(num_features, num_classes)
        check_kernel_size(kernel_size)
        # No bias: batch norm would cancel it.
        self.convolution = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = GateNorm()

    def score(self, features: Features) -> GatedState:
        """Logits `b c` from features `b d h w`; `parts` is the gate `b 1 h w`."""
        assert isinstance(features, Tensor)
        responses = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)
        openness = self.norm(self.convolution(responses)).sigmoid()
        gate = 2 * openness
        return GatedState(features, self.gated_logits(features, gate), openness, gate)


def check_kernel_size(kernel_size: int) -> None:
    """Refuse a kernel that has no middle cell.

    Raises:
        InputError: It is even or less than 1.
    """
    check_range("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise InputError(f"kernel_size={kernel_size}: must be odd, so that the gate stands on its cell")
