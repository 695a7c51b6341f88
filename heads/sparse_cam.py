"""Sparse CAM: `cam`, trained so that few cells make the logit.

    loss term evidence_spread = mean over images of Σ_hw |E_c| / (√(H W) ‖E_c‖₂)        E_c: the evidence, as in cam

The L1 norm of the evidence at unit length: 1 where every cell counts the same, 1 / √(H W) where one cell is all. The
idea of a penalty on the class maps is from Brendel and Bethge, "Approximating CNNs with Bag-of-local-Features models
works surprisingly well on ImageNet", ICLR 2019, and its sparse successors; the ratio of norms is from Krishnan et al.,
"Blind Deconvolution Using a Normalized Sparsity Measure", CVPR 2011. Evidence `b k h w`.
"""

from torch import Tensor
from torch.nn import functional

from .base import State, choose_classes
from .cam import CAM
from .options import check_choice
from .registry import register_head


@register_head("sparse_cam")
class SparseCAM(CAM):
    """Class activation maps with a price on spread: the same function and the same map as `cam`, trained otherwise.

    Assumes that a class shows in a small part of the image. The map means what it means in `cam`, with less haze
    around what counts. For maps that people read. Costs nothing at prediction, in training the maps of the labels'
    classes; raise the loss weight of `evidence_spread` until accuracy gives way. Shrinking all evidence would lower a
    plain L1 norm and make nothing sparser; this one does not change with the size of the logits.

    Args:
        num_features: Channels d of the features.
        num_classes: Classes c.
        classes: Whose maps are to be sparse: "target", each image's own class, or "all".
    """

    stand_in = None  # which would know no price on spread

    def __init__(self, num_features: int, num_classes: int, *, classes: str = "target") -> None:
        check_choice("classes", classes, ("target", "all"))
        super().__init__(num_features, num_classes)
        self.classes = classes

    def allows_multi_label(self) -> bool:
        """No: it puts a price on the map of the label."""
        return False

    def losses(self, state: State, targets: Tensor) -> dict[str, Tensor]:
        """`evidence_spread` for targets `b`: from 1 / √(h w) (one cell) to 1 (all cells alike)."""
        classes = choose_classes(state.logits, "all") if self.classes == "all" else targets[:, None]
        maps = self.evidence(state, classes)[0].flatten(2)
        return {"evidence_spread": functional.normalize(maps, dim=-1).abs().sum(-1).mean() / maps.shape[-1] ** 0.5}

    def loss_weights(self) -> dict[str, float]:
        """A tenth of the cross entropy's."""
        return {"evidence_spread": 0.1}
