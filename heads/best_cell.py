"""What heads share whose prototypes count at their best cell: similarity × weight = points, which add up to the logit.

    a_p = max_hw s_p(h, w)        logit_c = Σ_p W_cp a_p
    evidence_c = Σ_p W_cp a_p at the cell where s_p is largest, else 0        offset_c = 0

Similarity maps s `b p h w`, W `c p`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.errors import InputError
from .base import Contract, Features, Head, State
from .devices import sum_over_devices
from .nearest import Search
from .options import check_range


@dataclass
class PrototypeState(State):
    """`parts` are the similarity maps; what each prototype found in each image."""

    proximities: Tensor  # b p: cosine, inner product or negative squared distance at the best cell
    activations: Tensor  # b p: the similarity there
    places: Tensor  # b p int64: that cell, counted row by row


PrototypeStateT = TypeVar("PrototypeStateT", bound=PrototypeState)


class BestCellHead(Head[PrototypeStateT]):
    """A head whose prototypes count by their best cell. Subclasses say what similarity and weights are.

    They register `is_kept` (p bool), write `weight`, `found` and `score`, and name what re-fits when prototypes go.
    """

    contract = Contract.SELECT
    has_prototypes = True
    # Whether one prototype may speak for several classes; then it need not be found in every image of any of them.
    shares_prototypes: ClassVar[bool] = False
    last_layer: tuple[str, ...] = ()  # the parameters that weigh prototypes, as `Phase.trains` names them; none: fixed

    is_kept: Tensor
    scale: float = 1.0  # cells of the features for each cell of the maps; below 1 where the head makes them finer

    @property
    def weight(self) -> Tensor:
        """What each prototype (p) counts for each class (c): `c p`, zero where it was pruned."""
        raise NotImplementedError

    @property
    def belongs(self) -> Tensor:
        """For which classes each prototype speaks: `c p` bool."""
        return self.weight > 0

    def found(self, features: Features) -> tuple[Tensor, Tensor]:
        """Cells `b d h w` and their proximity to each prototype `b p h w`, from features `b d h w`."""
        raise NotImplementedError

    def points(self, state: PrototypeStateT, classes: Tensor) -> Tensor:
        """What each prototype adds to the logits of `classes` (b k): `b k p`."""
        return self.weight[classes] * state.activations[:, None]

    def evidence(self, state: PrototypeStateT, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero but at the prototypes' best cells; offset `b k` (0)."""
        points = self.points(state, classes)
        maps = placed(points, state.places, (state.parts.shape[-2], state.parts.shape[-1]))
        return maps, points.new_zeros(classes.shape)

    def search(self, *, own_class: bool, count: int | None = None) -> Search:
        """For `nearest_patches`: in images of the prototype's own class, or of all; `count` of them, one an image."""
        return Search(
            lambda features: self.found(features)[::-1], count=count or 1, owners=self.belongs if own_class else None
        )

    @torch.no_grad()
    def remove(self, numbers: Sequence[int]) -> None:
        """Forbid prototypes: they count for nothing from now on.

        Raises:
            InputError: As `without`.
        """
        kept = self.without(numbers)
        self.keep(kept, torch.zeros_like(kept, dtype=torch.float64))

    @torch.no_grad()
    def without(self, numbers: Sequence[int], class_names: Sequence[str] | None = None) -> Tensor:
        """Which prototypes would be left if `numbers` were removed: p bool. Changes nothing.

        `class_names`: what an error calls the classes; default: their numbers.

        Raises:
            InputError: No such prototype, one that is gone already, or a class would be left without any.
        """
        kept = self.is_kept.clone()
        for number in numbers:
            if not 0 <= number < len(kept):
                raise InputError(f"there is no prototype {number}: they are 0 to {len(kept) - 1}")
            if not self.is_kept[number]:
                raise InputError(f"prototype {number} is removed already")
            kept[number] = False
        left = (self.belongs & kept).any(1) | ~(self.belongs & self.is_kept).any(1)
        if not left.all():
            lost = int((~left).nonzero()[0])
            raise InputError(f"class {class_names[lost] if class_names else lost} would be left without any prototype")
        return kept

    @torch.no_grad()
    def prune_to(self, budget: int, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Keep the `budget` prototypes that add most to their class's logit, on average over its images.

        What a shared one adds to its classes is summed. A class keeps its best one whatever the budget. Returns how
        many are left.

        Raises:
            InputError: A budget below 1.
        """
        check_range("budget", budget, 1)
        model.eval()
        backbone: Any = model.backbone
        device = self.is_kept.device
        totals = torch.zeros(self.belongs.shape, dtype=torch.float64, device=device)
        images = torch.zeros(self.num_classes, 1, dtype=torch.float64, device=device)
        for batch in loader:
            labels = batch.labels.to(device)
            state = self.score(backbone(batch.images.to(device)))
            points = self.points(state, labels[:, None])[:, 0].double()
            of_class = functional.one_hot(labels, self.num_classes).double()
            totals += of_class.T @ (points * self.belongs[labels])
            images += of_class.sum(0)[:, None]
        # What is gone adds nothing, and must not take the place of one that counts against its class.
        merit = (
            (sum_over_devices(totals) / sum_over_devices(images).clamp(min=1))
            .sum(0)
            .masked_fill(~self.is_kept, -torch.inf)
        )
        wanted = torch.zeros_like(self.is_kept)
        wanted[merit.argsort(descending=True, stable=True)[:budget]] = True
        self.keep(wanted & self.is_kept, merit)
        return {"prototypes": float(self.is_kept.sum())}

    def keep(self, wanted: Tensor, merit: Tensor) -> None:
        """Keep the prototypes `wanted` (p bool), and of every class left without any the one of most `merit` (p)."""
        kept = wanted & self.is_kept
        for number in range(self.num_classes):
            own = self.belongs[number] & self.is_kept
            if own.any() and not (kept & own).any():
                kept[merit.double().masked_fill(~own, -torch.inf).argmax()] = True
        self.is_kept.copy_(kept)


def best_cells(proximity: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each map of `b p h w`, `b p`, and where it is, counted row by row."""
    return proximity.flatten(2).max(-1)


def placed(points: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps `b k h w` that hold `points` (b k p) at `places` (b p, counted row by row) and nothing elsewhere."""
    index = places[:, None].expand(-1, points.shape[1], -1)
    maps = points.new_zeros(*points.shape[:2], grid[0] * grid[1]).scatter_add(-1, index, points)
    return maps.unflatten(-1, grid)
