"""Deformable ProtoPNet: a prototype is nine parts around a centre, and each part may move to where it fits the image.

    ẑ(h, w): unit length, not negative        ẑ(l)² = bilinear interpolation of ẑ² at l, so that ‖ẑ(l)‖ = 1 everywhere
    l_n(h, w) = (h, w) + n + δ_n(h, w), n in {−1, 0, 1}²        a_p = max_hw max(Σ_n ⟨ẑ(l_n(h, w)), p_n⟩ / 9, 0)
    logit_c = Σ_p W_cp a_p        evidence_c = Σ_p Σ_n W_cp ⟨ẑ(l_n), p_n⟩ / 9 at the cell nearest to l_n, else 0

Offsets δ `b n 2 h w` are a 3×3 convolution of ẑ, the same for all prototypes; parts p_n are of unit length. Donnelly et
al., "Deformable ProtoPNet: An Interpretable Image Classifier Using Deformable Prototypes", CVPR 2022.
"""

from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from .base import Features, Phase
from .best_cell import PrototypeState, placed
from .options import check_range
from .prototypes import PrototypeHead, add_on_layers
from .registry import register_head
from .similarity import inner_products, widened

_SIDE = 3
_PARTS = _SIDE**2
# Added to the squares of a unit vector: bounds the slope of their root, and gives cells of nothing but zeros a length.
_EPSILON = 1e-6


@dataclass
class DeformableState(PrototypeState):
    """`features` are what was sampled, `b (n d) h w`; `places` are the centres' cells."""

    offsets: Tensor  # b n 2 h w: δ, rows and columns, in cells
    nearest: Tensor  # b n h w int64: the cell nearest to where each part was sampled, counted row by row


@register_head("deformable_protopnet")
class DeformableProtoPNet(PrototypeHead[DeformableState]):
    """Prototypes of 3×3 parts whose arrangement bends with pose.

    Assumes that a class shows by things larger than a cell, which keep their parts but not their exact shape. The map
    holds each part's points (its share of the cosine × weight) at the cell nearest to where it was sampled; parts that
    fit badly have negative points, as long as the prototype as a whole is found. `parts` are the similarity maps, at
    the centres. Use it where ProtoPNet's patches are too small to tell by. Costs nine times ProtoPNet's products, and
    nine sampled vectors a cell, which all prototypes share. Wants a grid finer than 7×7 (`output_stride`): prototypes
    span three cells, and at the border parts that fall outside are taken from the nearest cells inside.

    The paper also subtracts a margin from the angles of other classes' prototypes in training. With it the logits of
    training would not be the sum of their evidence, so it is left out.

    Args:
        per_class: Prototypes of each class.
        dim: Channels in which cells and parts are compared; None takes the features as they are. Negative ones count
            as 0: only what is not negative can be interpolated without losing length.
        connection: What a prototype counts for classes: "non_negative", "signed" (as in the paper: −0.5 for other
            classes to begin with) or "fixed" (1 for its own, nothing to learn).
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        per_class: int = 6,
        dim: int | None = 128,
        connection: str = "non_negative",
    ) -> None:
        check_range("dim", 1 if dim is None else dim, 1)
        width = num_features if dim is None else dim
        super().__init__(num_features, num_classes, per_class=per_class, dim=_PARTS * width, connection=connection)
        self.add_on = nn.ReLU() if dim is None else add_on_layers(num_features, dim, nn.ReLU())
        self.offset = nn.Conv2d(width, 2 * _PARTS, 3, padding=1)
        nn.init.normal_(self.offset.weight, std=2e-5)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        # Not negative, as what they are compared with: most of the others would begin, and stay, at similarity 0.
        nn.init.uniform_(self.prototypes)

    @property
    def directions(self) -> Tensor:
        """The parts at unit length, `p n d`."""
        return functional.normalize(widened(self.prototypes).unflatten(1, (_PARTS, -1)), dim=2)

    def sampled(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Around each cell nine vectors `b (n d) h w`, the offsets δ and the locations they are from `b n 2 h w`."""
        unit = functional.normalize(widened(self.add_on(features)), dim=1)
        offsets = rearrange(self.offset(unit), "b (n yx) h w -> b n yx h w", yx=2)
        where = locations(offsets)
        return interpolated(unit, where), offsets, where

    def found(self, features: Features) -> tuple[Tensor, Tensor]:
        """What is sampled `b (n d) h w`, and its proximity to each prototype `b p h w`, from features `b d h w`."""
        sampled, _, _ = self.sampled(features)
        return sampled, self.proximity(sampled)

    def proximity(self, cells: Tensor) -> Tensor:
        """Mean cosine of the nine parts, `b p h w`, from what is sampled `b (n d) h w`."""
        return inner_products(cells, self.directions.flatten(1)) / _PARTS

    def activation(self, proximity: Tensor) -> Tensor:
        """The mean cosine where it is positive."""
        return proximity.clamp(min=0)

    def score(self, features: Features) -> DeformableState:
        """Logits `b c` from features `b d h w`; `parts` are the similarity maps `b p h w`."""
        sampled, offsets, where = self.sampled(features)
        state = self.scored(sampled, self.proximity(sampled))
        rows, columns = where.detach().round().long().unbind(2)
        return DeformableState(**vars(state), offsets=offsets, nearest=rows * sampled.shape[-1] + columns)

    def evidence(self, state: DeformableState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero but where parts were sampled; offset `b k` (0)."""
        height, width = state.parts.shape[-2:]
        maps = state.parts.new_zeros(*classes.shape, height, width)
        if classes.shape[1]:
            weight = self.weight[classes] * (state.proximities > 0)[:, None]
            sampled = state.features.unflatten(1, (_PARTS, -1)).flatten(3)
            index = state.places[:, None].expand(-1, sampled.shape[2], -1)
            # One part after the other: a vector for each part of each prototype at once would be nine times as large.
            for number in range(_PARTS):
                at_best = sampled[:, number].gather(2, index)
                share = einsum(self.directions[:, number], at_best, "p d, b d p -> b p") / _PARTS
                cells = state.nearest[:, number].flatten(1).gather(1, state.places)
                maps = maps + placed(weight * share[:, None], cells, (height, width))
        return maps, maps.new_zeros(classes.shape)

    def losses(self, state: DeformableState, targets: Tensor) -> dict[str, Tensor]:
        """As ProtoPNet's, and `orthogonality` of the parts of each class and `offset`, their squared displacement."""
        return super().losses(state, targets) | {
            "orthogonality": orthogonality(self.directions.unflatten(0, (self.num_classes, -1)).flatten(1, 2)),
            "offset": state.offsets.square().sum(2).mean(),
        }

    def loss_weights(self) -> dict[str, float]:
        """The original's, but for `orthogonality`, which is a mean here and a sum there."""
        return super().loss_weights() | {"orthogonality": 1.0, "offset": 0.8}

    def phases(self) -> list[Phase]:
        """As ProtoPNet's; in the warm-up parts do not move."""
        warm, *others = super().phases()
        return [replace(warm, trains=[name for name in warm.trains if not name.startswith("head.offset.")]), *others]


def locations(offsets: Tensor) -> Tensor:
    """Where parts are sampled, `b n 2 h w`: rows and columns in cells, brought back into the grid; δ likewise."""
    sizes = offsets.shape[-2:]
    cells = torch.meshgrid(*(torch.arange(size, device=offsets.device) for size in sizes), indexing="ij")
    steps = torch.arange(_SIDE, device=offsets.device) - _SIDE // 2
    parts = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack(
        [
            (offsets[:, :, axis] + cells[axis] + rearrange(parts[axis], "i j -> (i j) 1 1")).clamp(0, size - 1)
            for axis, size in enumerate(sizes)
        ],
        dim=2,
    )


def interpolated(unit: Tensor, where: Tensor) -> Tensor:
    """Vectors at `where` (b n 2 h w, in the grid) between cells `unit` (b d h w, unit length or 0): `b (n d) h w`.

    Squares are interpolated, and add up to 1 at each cell; so they do in between, and vectors have unit length.
    """
    height, width = unit.shape[-2:]
    squares = unit.square() + _EPSILON
    squares = squares / squares.sum(1, keepdim=True)
    rows, columns = where.unbind(2)
    # Torch counts from −1 to 1 between the outer edges of the first and the last cell.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    between = functional.grid_sample(squares, rearrange(grid, "b n h w xy -> b (n h) w xy"), align_corners=False)
    return rearrange(between.sqrt(), "b d (n h) w -> b (n d) h w", n=_PARTS)


def orthogonality(parts: Tensor) -> Tensor:
    """Mean squared cosine of pairs of different parts `c m d` (unit length) of a class."""
    gram = einsum(parts, parts, "c m d, c l d -> c m l")
    off = gram - torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return off.square().sum() / (gram.shape[0] * gram.shape[1] * (gram.shape[1] - 1))
