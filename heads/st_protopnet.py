"""ST-ProtoPNet: trivial prototypes far from the border between classes, and support prototypes close to it.

    a_p = max_hw max(cos(z_s(h, w), p), 0), s the branch of p        logit_c = Σ_p W_cp a_p over both branches
    discrimination = mean_{c<e} max_{p of c, q of e} cos(p, q) of trivial prototypes: classes apart
    closeness = −mean_{c<e} min_{p of c, q of e} cos(p, q) of support prototypes: classes together

Wang et al., "Learning Support and Trivial Prototypes for Interpretable Image Classification", ICCV 2023.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .options import check_range
from .prototypes import (
    PrototypeHead,
    PrototypeState,
    add_on_layers,
    cluster_and_separation,
    mean_over_pairs,
    off_orthonormal,
)
from .registry import register_head
from .similarity import cosines, widened

BRANCHES = ("trivial", "support")


class Branches(nn.Module):
    """Both branches' cells `b (s d) h w`, trivial first, from features `b d h w`; finer by `upsampling`."""

    def __init__(self, num_features: int, dim: int, upsampling: int) -> None:
        super().__init__()
        self.trivial, self.support = add_on_layers(num_features, dim), add_on_layers(num_features, dim)
        self.upsampling = upsampling

    def forward(self, features: Tensor) -> Tensor:
        """The cells of both."""
        if self.upsampling > 1:
            features = functional.interpolate(features, scale_factor=float(self.upsampling), mode="bilinear")
        return torch.cat([self.trivial(features), self.support(features)], dim=1)


@register_head("st_protopnet")
class STProtoPNet(PrototypeHead[PrototypeState]):
    """Two ProtoPNets over one backbone: what is typical of a class, and what tells it from its neighbours.

    Assumes that classes have near neighbours, so that easy and hard cases need different precedents. The map holds
    each prototype's points (cosine × weight) at the one cell where it was found; maps and logits are sums over both
    branches. `parts` are the similarity maps: of each class the trivial prototypes, then the support ones. Use it for
    fine-grained classes; with unrelated ones there is no border for support prototypes to lie at. Costs two add-ons
    and twice the prototypes of `per_branch`. With `upsampling` maps are that much finer than the features, and a cell
    sees a little more than the receptive field that is given for it: that of the up to four cells it lies between.

    In the paper batches teach the branches in turn; here every batch teaches both, with terms of their own, and cross
    entropy is that of the sum. Its sums over classes are means here, at weights that agree at 200 classes.

    Args:
        per_branch: Prototypes of each class in each branch.
        dim: Channels in which cells and prototypes are compared, in each branch.
        upsampling: Cells for each cell of the features, in either direction, by bilinear interpolation; the paper's: 2.
        connection: What a prototype counts for classes: "non_negative", "signed" (as in the paper: −0.5 for other
            classes to begin with) or "fixed" (1 for its own, nothing to learn).
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        per_branch: int = 5,
        dim: int = 64,
        upsampling: int = 1,
        connection: str = "non_negative",
    ) -> None:
        check_range("per_branch", per_branch, 1)
        check_range("dim", dim, 1)
        check_range("upsampling", upsampling, 1, 4)
        super().__init__(num_features, num_classes, per_class=2 * per_branch, dim=dim, connection=connection)
        self.per_branch, self.scale = per_branch, 1 / upsampling
        self.add_on = Branches(num_features, dim, upsampling)

    def by_branch(self, of_prototypes: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        """What belongs to the trivial prototypes and what to the support ones, along the prototypes' `dim`."""
        both = of_prototypes.unflatten(dim, (self.num_classes, 2, self.per_branch))
        trivial, support = both.unbind(dim + 1)
        return trivial.flatten(dim, dim + 1), support.flatten(dim, dim + 1)

    def proximity(self, cells: Tensor) -> Tensor:
        """Cosine of the cells of each prototype's own branch, `b p h w`."""
        found = [
            cosines(of_branch, prototypes)
            for of_branch, prototypes in zip(cells.chunk(2, dim=1), self.by_branch(self.prototypes), strict=True)
        ]
        return rearrange(found, "s b (c k) h w -> b (c s k) h w", k=self.per_branch)

    def activation(self, proximity: Tensor) -> Tensor:
        """The cosine where it is positive."""
        return proximity.clamp(min=0)

    def losses(self, state: PrototypeState, targets: Tensor) -> dict[str, Tensor]:
        """Cluster, separation and orthonormality of each branch, `discrimination`, `closeness`; `sparsity`."""
        terms = self.sparsity()
        branches = zip(
            BRANCHES,
            self.by_branch(state.proximities, dim=1),
            self.by_branch(self.prototypes),
            self.by_branch(self.owners),
            strict=True,
        )
        for name, proximities, prototypes, owners in branches:
            cluster, separation = cluster_and_separation(proximities, owners, targets)
            unit = functional.normalize(widened(prototypes), dim=1)
            gram = unit @ unit.T
            terms[f"{name}_cluster"], terms[f"{name}_separation"] = cluster, separation
            terms[f"{name}_orthonormality"] = off_orthonormal(gram, owners).square().sum() / self.num_classes
            pairs = rearrange(gram, "(c k) (e l) -> c e (k l)", k=self.per_branch, l=self.per_branch)
            if name == "trivial":
                terms["discrimination"] = mean_over_pairs(pairs.amax(-1))
            else:
                terms["closeness"] = -mean_over_pairs(pairs.amin(-1))
        return terms

    def loss_weights(self) -> dict[str, float]:
        """The original's, at 200 classes where those are of sums over classes."""
        own = {
            **{"trivial_cluster": 0.8, "trivial_separation": 0.08, "trivial_orthonormality": 0.2},
            **{"support_cluster": 0.8, "support_separation": 0.48, "support_orthonormality": 0.2},
            **{"discrimination": 1.0, "closeness": 1.0},
        }
        return own if self.connection.weight is None else own | {"sparsity": 1e-4}

    @torch.no_grad()
    def become(self, number: int, vector: Tensor) -> None:
        """Prototype `number` takes its own branch's half of a cell's vector."""
        super().become(number, vector.chunk(2)[number // self.per_branch % 2])
