"""ProtoPNet: "this looks like that": each class has prototypes, and a class wins by how much they are found.

    s_p(h, w) = max(cos(z(h, w), p), 0), or log((d + 1) / (d + ε)) with d = ‖z(h, w) − p‖²
    a_p = max_hw s_p        logit_c = Σ_p W_cp a_p

Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition", NeurIPS 2019, equation 1 (the
log-ratio); cosine as in Willard et al., "This Looks Better than That: Better Interpretable Models with ProtoPNeXt",
2024.
"""

from torch import Tensor, nn

from .best_cell import PrototypeState
from .options import check_choice, check_range
from .prototypes import PrototypeHead, add_on_layers
from .registry import register_head
from .similarity import cosines, log_ratio, squared_distances


@register_head("protopnet")
class ProtoPNet(PrototypeHead[PrototypeState]):
    """Prototypes of each class, every one a patch of a training image once it is projected.

    Assumes that a class shows by details that can be found again in other images of it. The map holds each prototype's
    points (similarity × weight) at the one cell where it was found, so it says "this cell, because it looks like that
    patch"; `parts` are the similarity maps. Use it where an explanation has to name its precedents. Costs two 1×1
    convolutions, a product of each cell with each prototype, and some accuracy, above all in projection: read the
    accuracy after it. A similar patch sees its whole receptive field: look at the box, not at the cell.

    Args:
        per_class: Prototypes of each class.
        dim: Channels in which cells and prototypes are compared; None takes the features as they are.
        similarity: "cosine", or "l2": the log-ratio of squared distances, with a sigmoid after the add-on.
        connection: What a prototype counts for classes: "non_negative", "signed" (as in the paper: −0.5 for other
            classes to begin with) or "fixed" (1 for its own, nothing to learn).
        epsilon: ε of the log-ratio; the smaller, the more a perfect match counts.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        per_class: int = 10,
        dim: int | None = 128,
        similarity: str = "cosine",
        connection: str = "non_negative",
        epsilon: float = 1e-4,
    ) -> None:
        check_range("dim", 1 if dim is None else dim, 1)
        check_range("epsilon", epsilon, 1e-8, 1)
        check_choice("similarity", similarity, ["cosine", "l2"])
        width = num_features if dim is None else dim
        super().__init__(num_features, num_classes, per_class=per_class, dim=width, connection=connection)
        self.is_cosine = similarity == "cosine"
        self.epsilon = epsilon
        if dim is not None:
            self.add_on = add_on_layers(num_features, dim, None if self.is_cosine else nn.Sigmoid())
        if not self.is_cosine:
            nn.init.uniform_(self.prototypes)

    def proximity(self, cells: Tensor) -> Tensor:
        """Cosine, or negative squared distance, `b p h w`."""
        if self.is_cosine:
            return cosines(cells, self.prototypes)
        return -squared_distances(cells, self.prototypes)

    def activation(self, proximity: Tensor) -> Tensor:
        """The cosine where it is positive, or the log-ratio."""
        return proximity.clamp(min=0) if self.is_cosine else log_ratio(-proximity, self.epsilon)
