"""TesNet: the prototypes of a class are an orthonormal basis, and its classes are subspaces far apart.

    a_p = max_hw ⟨z(h, w), p / ‖p‖⟩, z after a sigmoid        logit_c = Σ_p W_cp a_p
    orthonormality = mean_c ‖B_c B_cᵀ − I‖₁        B_c: the prototypes of class c, `k d`, of unit length
    subspace_separation = −mean_{c<e} ‖B_cᵀ B_c − B_eᵀ B_e‖_F / √2

Wang et al., "Interpretable Image Recognition by Constructing Transparent Embedding Space", ICCV 2021. The distance of
two projections, which are `d d`, follows from inner products of prototypes alone, with S_ce = ‖B_c B_eᵀ‖²_F:

    ‖B_cᵀ B_c − B_eᵀ B_e‖²_F = S_cc + S_ee − 2 S_ce
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .options import check_range
from .prototypes import (
    PrototypeHead,
    PrototypeState,
    add_on_layers,
    best_cells,
    cluster_and_separation,
    mean_over_pairs,
    off_orthonormal,
)
from .registry import register_head
from .similarity import inner_products, widened


@register_head("tesnet")
class TesNet(PrototypeHead[PrototypeState]):
    """Prototypes of each class that do not repeat each other: a basis of the class's own subspace.

    Assumes that a class is made of independent concepts, and that classes share few. The map holds each prototype's
    points (the length of the cell's projection × weight) at the one cell where that is longest. A projection is no
    cosine: it grows with the length of the cell's vector, so points compare prototypes within an image rather than
    say how alike two patches are; and it is negative where the best cell points away from the prototype. `parts` are
    the projections at every cell. Use it where ProtoPNet's prototypes of a class come out alike. Costs what ProtoPNet
    does, and in training one `p p` product of all prototypes.

    Unit length holds by construction rather than by a correction after each step. `cluster` and `separation` compare
    by cosine, as in the paper; its sums over classes and over pairs of classes are means here, so that their weights
    need not follow the number of classes (the defaults are the paper's at 200 classes). Projection looks for the
    longest projection, and keeps its direction.

    Args:
        per_class: Prototypes of each class, at most `dim`.
        dim: Channels in which cells and prototypes are compared.
        connection: What a prototype counts for classes: "non_negative", "signed" (as in the paper: −0.5 for other
            classes to begin with) or "fixed" (1 for its own, nothing to learn).
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        per_class: int = 10,
        dim: int = 64,
        connection: str = "non_negative",
    ) -> None:
        check_range("dim", dim, 1)
        check_range("per_class", per_class, 1, dim)  # no more vectors than that are orthogonal
        super().__init__(num_features, num_classes, per_class=per_class, dim=dim, connection=connection)
        self.add_on = add_on_layers(num_features, dim, nn.Sigmoid())

    @property
    def basis(self) -> Tensor:
        """The prototypes at unit length, `p d`."""
        return functional.normalize(widened(self.prototypes), dim=1)

    def proximity(self, cells: Tensor) -> Tensor:
        """Length of the projection of each cell on each prototype, `b p h w`, signed."""
        return inner_products(cells, self.basis)

    def activation(self, proximity: Tensor) -> Tensor:
        """The projection as it is."""
        return proximity

    def losses(self, state: PrototypeState, targets: Tensor) -> dict[str, Tensor]:
        """Cluster and separation by cosine; `orthonormality`, `subspace_separation`; `sparsity` of learned weights."""
        lengths = widened(state.features).norm(dim=1, keepdim=True).clamp(min=1e-12)
        cluster, separation = cluster_and_separation(best_cells(state.parts / lengths)[0], self.owners, targets)
        gram = self.basis @ self.basis.T
        overlaps = self.connection.own.to(gram) @ gram.square() @ self.connection.own.T.to(gram)
        own = overlaps.diagonal()
        # The root has no slope at 0, where two classes span the same subspace.
        distances = (own + own[:, None] - 2 * overlaps).clamp(min=1e-12).sqrt()
        return {
            "cluster": cluster,
            "separation": separation,
            **self.sparsity(),
            "orthonormality": off_orthonormal(gram, self.owners).abs().sum() / self.num_classes,
            "subspace_separation": -mean_over_pairs(distances) / math.sqrt(2),
        }

    def loss_weights(self) -> dict[str, float]:
        """The original's at 200 classes: 1e-4 for each class, 1e-7 for each of 19,900 pairs."""
        return super().loss_weights() | {"orthonormality": 0.02, "subspace_separation": 0.002}

    @torch.no_grad()
    def become(self, number: int, vector: Tensor) -> None:
        """Prototype `number` takes the direction of a cell's vector."""
        super().become(number, functional.normalize(widened(vector), dim=0))
