"""PDiscoNet: parts found without part labels; each cell belongs to a part or to the background, each part votes.

    A_k = softmax_k(−‖x − p_k‖²), k = 0 … K, the last the background        v_k = mean_hw(A_k x)
    logit_c = mean_{k<K} W_c · (m_k ⊙ v_k) + b_c
    evidence_c(h, w) = Σ_{k<K} A_k(h, w) W_c · (m_k ⊙ x(h, w)) / (K H W)        offset_c = b_c

van der Klis et al., "PDiscoNet: Semantically consistent part discovery for fine-grained recognition", ICCV 2023.
Their equivariance loss needs a second pass over a warped image, and is left out.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from .base import Contract, Features, State, linear_evidence
from .devices import best_of_all_devices
from .linear import LinearHead
from .options import check_range
from .registry import register_head


@dataclass
class PartState(State):
    """What evidence is linear in."""

    weighted: Tensor  # b d h w: x ⊙ Σ_{k<K} A_k m_k / K, dropped parts left out


@register_head("parts")
class Parts(LinearHead[PartState]):
    """Unsupervised part maps that vote.

    Assumes that the objects of all classes are built from the same few parts (birds, insects, cars), each in one place.
    The map is what each cell adds to the logit through the parts it belongs to; `parts` holds the K assignment maps
    and the background's last, and they add up to 1 at each cell: cells of the background add nothing. Use it to see
    *which part* told classes apart. Costs K channel factors and K + 1 distances a cell, and some accuracy where objects
    have no parts in common; its losses shape the maps and want a grid finer than 7×7 (`output_stride`).

    Starts near average pooling, not at it: prototypes must differ if they are to part ways. The background starts at
    their middle and the factors m at K + 1, so that the parts together weigh each cell by 1 up to a few per cent.

    Args:
        num_parts: K, the background not counted.
        dropout: Probability that a part is left out for an image, in training.
    """

    contract = Contract.DYNAMIC

    def __init__(self, num_features: int, num_classes: int, *, num_parts: int = 8, dropout: float = 0.3) -> None:
        super().__init__(num_features, num_classes)
        check_range("num_parts", num_parts, 1)
        check_range("dropout", dropout, 0, 0.99)
        self.num_parts = num_parts
        self.dropout = dropout
        prototypes = torch.empty(num_parts, num_features).uniform_(-1, 1) / num_features**0.5
        middle = prototypes.mean(0, keepdim=True)
        self.prototypes = nn.Parameter(torch.cat([prototypes, middle]))
        self.modulation = nn.Parameter(torch.full((num_parts, num_features), num_parts + 1.0))

    def score(self, features: Features) -> PartState:
        """Logits `b c` from features `b d h w`; `parts` is the assignment `b K+1 h w`."""
        assert isinstance(features, Tensor)
        # ‖x‖² is the same for all parts and cancels; left in, it would swallow the differences.
        likeness = 2 * einsum(self.prototypes, features, "k d, b d h w -> b k h w")
        norms = rearrange(self.prototypes.square().sum(1), "k -> k 1 1")
        assignment = (likeness - norms).softmax(1)
        kept = functional.dropout(
            features.new_ones(features.shape[0], self.num_parts, 1, 1), self.dropout, self.training
        )
        factors = einsum(assignment[:, :-1] * kept, self.modulation, "b k h w, k d -> b d h w") / self.num_parts
        weighted = features * factors
        pooled = functional.adaptive_avg_pool2d(weighted, 1).flatten(1)
        return PartState(features, self.classifier(pooled), assignment, weighted)

    def evidence(self, state: PartState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (the bias)."""
        return linear_evidence(state.weighted, self.classifier.weight, classes), self.classifier.bias[classes]

    def losses(self, state: PartState, targets: Tensor) -> dict[str, Tensor]:
        """`concentration`, `presence` and `orthogonality` of the parts."""
        return {
            "concentration": concentration(state.parts[:, :-1]),
            "presence": presence(state.parts[:, :-1]),
            "orthogonality": orthogonality(state.parts, state.features),
        }

    def loss_weights(self) -> dict[str, float]:
        """The authors' weights, but for `concentration`: they have 1000 on a grid of 26×26.

        On 7×7 the smallest part that is present, 3×3 cells, would then cost five times what its absence costs, and all
        cells become background. Raise it on fine grids.
        """
        return {"concentration": 10.0, "presence": 1.0, "orthogonality": 1.0}

    def no_weight_decay(self) -> set[str]:
        """Neither of these means anything at 0."""
        return {"prototypes", "modulation"}


def concentration(assignment: Tensor) -> Tensor:
    """How far parts spread, from their maps `b k h w`: squared distance to their centroid in sides of the grid.

    Weighted by the assignment, and the mean over images, parts and cells.
    """
    mass = assignment.sum((-2, -1)).clamp(min=1e-6)
    squared = []
    for axis, profile in ((-2, assignment.sum(-1)), (-1, assignment.sum(-2))):
        size = assignment.shape[axis]
        places = torch.arange(size, device=assignment.device, dtype=assignment.dtype) / size
        centroid = (profile * places).sum(-1) / mass
        squared.append((places - centroid[..., None]).square())
    down, across = squared
    return (assignment * (down[..., :, None] + across[..., None, :])).mean()


def presence(assignment: Tensor) -> Tensor:
    """How far parts are from being seen at all, from their maps `b k h w`: 1 − the mean of their best 3×3 cells.

    The best in all images of the batch, on all devices: no image need show every part. Cells outside count as 0, so
    that a part at the border counts less; the authors cut two cells off instead, which a 7×7 grid does not have.
    """
    best = functional.avg_pool2d(assignment, 3, stride=1, padding=1).amax((0, 2, 3))
    return 1 - best_of_all_devices(best).mean()


def orthogonality(assignment: Tensor, features: Tensor) -> Tensor:
    """How alike the mean features of parts are, from maps `b k h w` and features `b d h w`.

    The mean squared difference of their cosines to the identity matrix.
    """
    part_features = einsum(assignment, features, "b k h w, b d h w -> b k d")
    directions = functional.normalize(part_features, dim=-1)
    cosines = einsum(directions, directions, "b k d, b l d -> b k l")
    return (cosines - torch.eye(cosines.shape[-1], device=cosines.device, dtype=cosines.dtype)).square().mean()
