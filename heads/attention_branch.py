"""Attention branch: a second classifier, trained beside the main one, shows where it finds its classes, and gates.

    A = ReLU(BN(conv1×1(x)))        a_c = mean_hw(conv1×1(A))        att = sigmoid(BN(conv3×3(A)))
    g = (1 + att) / (1 + sigmoid(0))      logit_c = mean_hw(g(h, w) W_c · x(h, w)) + b_c
    evidence_c(h, w) = g(h, w) W_c · x(h, w) / (H W)        loss: + CE(a, y)

Fukui et al., "Attention Branch Network: Learning of Attention Mechanism for Visual Explanation", CVPR 2019. There the
gate stands before the last stage, and no identity ties it to the logit; here it stands after ("ABN-late").
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .base import Features
from .cbam import check_kernel_size
from .gating import BatchNorm, GatedHead, GatedState, GateNorm
from .registry import register_head


@dataclass
class BranchState(GatedState):
    """What the attention branch's own logits come from."""

    responses: Tensor  # b c h w, A in the equations


@register_head("attention_branch")
class AttentionBranch(GatedHead[BranchState]):
    """A gate learned by a branch that has to classify on its own.

    Assumes that where a simple classifier finds the classes is where to look. The map is what each cell adds to the
    logit; `parts` is att, between 0 and 1 and the same for all classes. The gate raises cells, by at most twice
    as much as the others, and shuts none out: the map keeps its background, more than with `cbam`. Use it where the
    class label alone does not teach a gate enough. Costs a 1×1 convolution to as many channels as there are classes
    (its maps are made whether explained or not), and a second cross entropy in training (`attention_branch`).

    The paper copies the last stage for the branch and has its batch norm first; a head has no stage to copy, and that
    norm's shift would be undone by the next. Dividing the gate by its start value moves a factor from the classifier's
    weights: the head starts as average pooling to the bit.

    Args:
        kernel_size: Cells that the gate looks at, across; odd. The authors' code has 3, the paper 1.
    """

    def __init__(self, num_features: int, num_classes: int, *, kernel_size: int = 3) -> None:
        super().__init__(num_features, num_classes)
        check_kernel_size(kernel_size)
        # No biases before batch norms: they would be cancelled.
        self.respond = nn.Conv2d(num_features, num_classes, 1, bias=False)
        self.norm = BatchNorm(num_classes)
        self.branch_classifier = nn.Linear(num_classes, num_classes)
        self.convolution = nn.Conv2d(num_classes, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.gate_norm = GateNorm()

    def score(self, features: Features) -> BranchState:
        """Logits `b c` from features `b d h w`; `parts` is the attention `b 1 h w`."""
        assert isinstance(features, Tensor)
        responses = self.norm(self.respond(features)).relu()
        attention = self.gate_norm(self.convolution(responses)).sigmoid()
        gate = (1 + attention) / 1.5
        return BranchState(features, self.gated_logits(features, gate), attention, gate, responses)

    def allows_multi_label(self) -> bool:
        """No: its branch learns one label an image."""
        return False

    def losses(self, state: BranchState, targets: Tensor) -> dict[str, Tensor]:
        """`attention_branch`: cross entropy of the branch's own logits."""
        # A 1×1 convolution and the mean may change places.
        branch_logits = self.branch_classifier(state.responses.mean((-2, -1)))
        return {"attention_branch": functional.cross_entropy(branch_logits, targets)}
