"""ProtoPool: classes share a pool of prototypes; each class has slots, and each slot learns which prototype it holds.

    q = softmax((κ θ + Gumbel noise) / τ) in training, one-hot at argmax θ otherwise: `s p`, slots × prototypes
    s_p(h, w) = log((d + 1) / (d + ε)), d = ‖z(h, w) − p‖²        a_p = max_hw s_p        m_p = mean_hw s_p
    logit_c = Σ_p U_cp (a_p − m_p), U = W q
    evidence_c = Σ_p U_cp a_p at the cell where s_p is largest, else 0        offset_c = −Σ_p U_cp m_p

Rymarczyk et al., "Interpretable Image Classification with Differentiable Prototypes Assignment", ECCV 2022. W `c s`
starts at 1 for a class's own slots and 0 for others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional

from .base import Features
from .best_cell import PrototypeState, best_cells, placed
from .options import check_range
from .prototypes import PrototypeHead, add_on_layers, nearest_own_and_other
from .registry import register_head
from .similarity import log_ratio, squared_distances, widened

# The paper's: κ rises from the one to the other, and the noise counts for less and less; τ.
_SCALES, _TEMPERATURE = (1.3, 1000.0), 0.5


class Slots(nn.Module):
    """Which prototype each slot holds. A module of its own: frozen, it is in eval mode, and nothing is drawn any more.

    κ follows the steps made, which a buffer counts, so that a resumed run goes on with it: a head knows no epochs.
    Whole numbers, since a κ kept in half precision would stop rising.
    """

    steps: Tensor

    def __init__(self, slots: int, prototypes: int, anneal_steps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.init.xavier_normal_(torch.empty(slots, prototypes)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.anneal_steps = anneal_steps

    def scaled(self) -> Tensor:
        """κ θ, `s p`."""
        low, high = _SCALES
        return widened(self.logits) * low * (high / low) ** (self.steps / self.anneal_steps).clamp(max=1)

    def likely(self) -> Tensor:
        """Assignments `s p` without noise, as soft as κ has it."""
        return (self.scaled() / _TEMPERATURE).softmax(-1)

    def held(self) -> Tensor:
        """The one prototype that each slot holds: `s p`, one-hot."""
        best = self.logits.argmax(-1, keepdim=True)
        return torch.zeros_like(self.logits).scatter(-1, best, 1.0)

    def forward(self) -> Tensor:
        """Assignments `s p`, rows summing to 1: drawn in training mode (torch's global generator), else `held`."""
        return functional.gumbel_softmax(self.scaled(), _TEMPERATURE) if self.training else self.held()


@dataclass
class PooledState(PrototypeState):
    """`PrototypeState`, and what the evidence must not draw again."""

    weight: Tensor  # c p: U, as it was drawn for this pass
    means: Tensor  # b p: the similarity's mean over the grid


@register_head("protopool")
class ProtoPool(PrototypeHead[PooledState]):
    """A small pool of prototypes that classes share, so that an explanation can say "the wing of that other class".

    Assumes that details recur across classes, and are small: what is equally near everywhere does not count, since the
    mean is taken off the maximum (focal similarity). The map holds each prototype's points (similarity × weight) at
    the one cell where it was found; what the means take off is the offset. `parts` are the similarity maps. A grid of
    a single cell has no focus: all logits are 0. Use it for many classes, where a few prototypes each would be too
    many to read. Costs ProtoPNet's, with fewer prototypes. Until κ is high, training mode is another model than the
    one that is validated: let `anneal_steps` end before the phase that learns slots does.

    Similarities are mixed by q, so that each point of evidence is one prototype's; mixing distances first, as the
    authors' code does, differs for one-hot q in m_p alone. That code keeps the noise in evaluation; here there is none.

    Args:
        prototypes: How many all classes share.
        slots: Slots of each class.
        dim: Channels in which cells and prototypes are compared.
        connection: What a slot counts for classes: "non_negative", "signed" (−0.5 for other classes to begin with) or
            "fixed" (1 for its own, nothing to learn).
        epsilon: ε of the log-ratio; the smaller, the more a perfect match counts.
        anneal_steps: Steps of the optimizer until κ is at its end.
    """

    shares_prototypes = True

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        prototypes: int = 200,
        slots: int = 10,
        dim: int = 128,
        connection: str = "non_negative",
        epsilon: float = 1e-4,
        anneal_steps: int = 3000,
    ) -> None:
        check_range("prototypes", prototypes, 1)
        check_range("slots", slots, 1)
        check_range("dim", dim, 1)
        check_range("epsilon", epsilon, 1e-8, 1)
        check_range("anneal_steps", anneal_steps, 1)
        super().__init__(num_features, num_classes, per_class=slots, dim=dim, connection=connection)
        # The connection is that of slots; what has one row for each prototype is the pool's.
        self.prototypes = nn.Parameter(torch.rand(prototypes, dim))
        self.slots = Slots(num_classes * slots, prototypes, anneal_steps)
        self.epsilon = epsilon
        self.add_on = add_on_layers(num_features, dim, nn.Sigmoid())
        self.register_buffer("is_kept", torch.ones(prototypes, dtype=torch.bool))
        self.register_buffer("owners", self.leading())  # as of the last projection

    @property
    def weight(self) -> Tensor:
        """What each prototype counts for each class, through all slots: `c p`; drawn anew in training mode."""
        return self.connection() @ self.slots() * self.is_kept

    @property
    def belongs(self) -> Tensor:
        """Which classes have a slot that holds the prototype: `c p` bool."""
        return self.connection.own @ self.slots.held() > 0

    @torch.no_grad()
    def leading(self) -> Tensor:
        """The class with most slots that hold each prototype, of equals the one whose slots lean to it most: `p`."""
        each = self.slots.held() * (len(self.slots.logits) + 1) + self.slots.likely()
        return (self.connection.own @ each.to(self.connection.own)).argmax(0)

    def proximity(self, cells: Tensor) -> Tensor:
        """Negative squared distance, `b p h w`."""
        return -squared_distances(cells, self.prototypes)

    def activation(self, proximity: Tensor) -> Tensor:
        """The log-ratio."""
        return log_ratio(-proximity, self.epsilon)

    def score(self, features: Features) -> PooledState:
        """Logits `b c` from features `b d h w`; `parts` are the similarity maps `b p h w`."""
        cells, proximity = self.found(features)
        best, places = best_cells(proximity)
        parts, weight = self.activation(proximity), self.weight
        activations = parts.flatten(2).gather(-1, places[..., None]).squeeze(-1)
        means = parts.mean((2, 3))
        logits = functional.linear(activations - means, weight)
        return PooledState(cells, logits, parts, best, activations, places, weight, means)

    def evidence(self, state: PooledState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero but at the prototypes' best cells; offset `b k`, what the means take off."""
        weight, grid = state.weight[classes], (state.parts.shape[-2], state.parts.shape[-1])
        maps = placed(weight * state.activations[:, None], state.places, grid)
        # What the means take off, as the difference: where a prototype is far from every cell, activations and means
        # are alike, and the sums of both would be rounded by more than an untrained logit is large.
        return maps, state.logits.gather(1, classes) - maps.sum((-2, -1))

    def losses(self, state: PooledState, targets: Tensor) -> dict[str, Tensor]:
        """`cluster`, `separation` by who holds what; `slot_orthogonality`, the mean cosine of a class's slots."""
        cluster, separation = nearest_own_and_other(state.proximities, self.belongs[targets])
        unit = functional.normalize(self.slots.likely(), dim=-1).unflatten(0, (self.num_classes, -1))
        cosine = einsum(unit, unit, "c n p, c m p -> n m") / self.num_classes
        pairs = max(1, len(cosine) * (len(cosine) - 1) // 2)
        terms = {"cluster": cluster, "separation": separation, "slot_orthogonality": cosine.triu(1).sum() / pairs}
        return terms | self.sparsity()

    def after_step(self) -> None:
        """Non-negative weights back into their range; a step towards sure slots, where those are learned."""
        super().after_step()
        if self.slots.training:
            self.slots.steps += 1

    def no_weight_decay(self) -> set[str]:
        """As for all prototypes; the slots too: at 0 they hold every prototype."""
        return super().no_weight_decay() | {"slots.logits"}

    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Each prototype becomes the nearest patch in images of any class that holds it; where from is kept.

        No two that the same class leads take the same cell; what no slot holds stays as it is.
        """
        self.owners.copy_(self.leading())
        return super().project(loader, model)
