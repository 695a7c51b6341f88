"""MGProto: prototypes are Gaussians, and each class a mixture of them: how likely is such an image under the class?

    p_k(h, w) = exp(−π ‖z(h, w) − μ_k‖²), z and μ of unit length        p(x|c) = Σ_k π_ck max_hw p_k
    logit_c = log p(x|c)        evidence_c = Σ_k π_ck p_k at the cell where p_k is largest, else 0; it adds up to p(x|c)

Wang et al., "Mixture of Gaussian-distributed Prototypes with Generative Modelling for Interpretable and Trustworthy
Image Recognition", TPAMI 2025.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from .base import Contract, Phase
from .best_cell import PrototypeState, best_cells
from .devices import sum_over_devices
from .options import check_range
from .prototypes import PrototypeHead, add_on_layers
from .registry import register_head
from .similarity import cosines, widened


@register_head("mgproto")
class MGProto(PrototypeHead[PrototypeState]):
    """A density for each class: prototypes are means of Gaussians, with priors that tell how common each is.

    Assumes that a class shows by details that vary about a few types. The map holds each prototype's share π_k p_k of
    the class's density at the one cell where it was found: in units of p(x|c), between 0 and 1, and never negative;
    `parts` are the densities p_k. Use it where unknown images must be told apart: `density` is low where nothing is
    near any mean. Logits lie between −4π and 0, so the posterior is never surer than that, and trained with cross
    entropy alone the density says little: keep `mixture`. Costs what ProtoPNet does.

    The paper fits the means by EM on a memory of features; here they follow the gradient of `mixture` on the batch's
    own cells, held fixed as EM holds them, and of the other losses too. Priors are EM's, with momentum. No memory
    means that no feature of a training image can get into a checkpoint (but by `project`). `mining` follows the
    paper's idea, in a form of our own: the label's l-th best cells against the best of all other classes. The paper's
    Proxy-Anchor loss is left out.

    Args:
        per_class: Prototypes of each class.
        kept: Prototypes of each class that pruning leaves, those with the largest priors.
        dim: Channels in which cells and means are compared; None takes the features as they are.
        mined: Cells of an image that the mixture is fitted to, and levels of `mining`.
        momentum: Of the priors: what a step keeps of the priors of the classes it has seen.
    """

    contract = Contract.PROBABILITY

    priors: Tensor
    votes: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        per_class: int = 10,
        kept: int = 8,
        dim: int | None = 64,
        mined: int = 20,
        momentum: float = 0.99,
    ) -> None:
        check_range("per_class", per_class, 1)
        check_range("kept", kept, 1)
        check_range("dim", 1 if dim is None else dim, 1)
        check_range("mined", mined, 1)
        check_range("momentum", momentum, 0, 1)
        width = num_features if dim is None else dim
        super().__init__(num_features, num_classes, per_class=per_class, dim=width, connection="fixed")
        self.kept = kept
        self.mined = mined
        self.momentum = momentum
        if dim is not None:
            self.add_on = add_on_layers(num_features, dim)
        self.register_buffer("priors", torch.full((len(self.owners),), 1 / per_class))
        # Zero after each step, so that no checkpoint needs it.
        self.register_buffer("votes", torch.zeros(num_classes, per_class), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The priors π_ck as `c p`: zero for other classes' prototypes, and where pruned."""
        return self.connection() * self.priors

    @property
    def log_priors(self) -> Tensor:
        """The logarithms of the priors `c k`: −∞ where pruned."""
        return self.by_class(self.priors.log(), 0)

    def by_class(self, of_prototypes: Tensor, dim: int) -> Tensor:
        """The prototypes' `dim`, p, as two, c k."""
        return of_prototypes.unflatten(dim, (self.num_classes, -1))

    def proximity(self, cells: Tensor) -> Tensor:
        """Logarithms of p_k, −π ‖z − μ‖² `b p h w`, from cells of any length `b d h w`."""
        return 2 * math.pi * (cosines(cells, self.prototypes) - 1)

    def activation(self, proximity: Tensor) -> Tensor:
        """p_k."""
        return proximity.exp()

    def scored(self, cells: Tensor, proximity: Tensor) -> PrototypeState:
        """The state of cells `b d h w` with log-densities `b p h w`; its logits are log p(x|c)."""
        best, places = best_cells(proximity)
        # Priors of a class add up to 1 and log p_k is at least −4π, so no logit is −∞ whatever single priors are.
        logits = (self.by_class(best, 1) + self.log_priors).logsumexp(2)
        return PrototypeState(cells, logits, proximity.exp(), best, best.exp(), places)

    def density(self, logits: Tensor) -> Tensor:
        """How well an image fits any class, log Σ_c p(x|c), `b` from logits `b c`: low for images of another kind.

        Up to a constant the image's log-density where all classes are as likely. The paper takes images below the
        5th percentile of training images for unknown.
        """
        return logits.logsumexp(1)

    def losses(self, state: PrototypeState, targets: Tensor) -> dict[str, Tensor]:
        """`mixture`, `mining` and `diversity`; in training mode responsibilities are gathered for the next step."""
        log_priors = self.log_priors[targets][..., None]  # b k 1
        images = torch.arange(len(targets), device=targets.device)
        own = self.by_class(state.parts, 1)[images, targets].flatten(2).log()  # b k (h w)
        count = min(self.mined, own.shape[2])
        nearest = (own.detach() + log_priors).logsumexp(1).topk(count, dim=1).indices
        # Held fixed: the density is to follow the features, not the features the density.
        cells = state.features.detach().flatten(2).gather(2, nearest[:, None].expand(-1, state.features.shape[1], -1))
        means = functional.normalize(widened(self.by_class(self.prototypes, 0)[targets]), dim=2)
        likeness = einsum(means, functional.normalize(widened(cells), dim=1), "b k d, b d m -> b k m")
        joint = 2 * math.pi * (likeness - 1) + log_priors
        if self.training:
            self.count_votes(joint.detach().softmax(1).mean(2), targets)
        levels = (own.topk(count, dim=2).values + log_priors).logsumexp(1)[:, 1:]  # b l; of one cell there is none
        others = state.logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1, keepdim=True)
        return {
            "mixture": -joint.logsumexp(1).mean(),
            "mining": functional.softplus(others - levels).sum() / max(1, levels.shape[0] * levels.shape[1]),
            "diversity": self.overlap(),
        }

    def overlap(self) -> Tensor:
        """Mean density of a mean under another Gaussian of its class, over pairs that are kept: a scalar."""
        means = functional.normalize(widened(self.by_class(self.prototypes, 0)), dim=2)
        kept = self.by_class(self.is_kept, 0)
        pairs = (rearrange(kept, "c k -> c k 1") & rearrange(kept, "c k -> c 1 k")).triu(1)
        densities = (2 * math.pi * (einsum(means, means, "c k d, c l d -> c k l") - 1)).exp()
        return (densities * pairs).sum() / pairs.sum().clamp(min=1)

    @torch.no_grad()
    def count_votes(self, responsibilities: Tensor, targets: Tensor) -> None:
        """Each image has one vote for the prototypes of its class, `b k`; all devices' votes count."""
        labels = functional.one_hot(targets, self.num_classes).to(responsibilities.dtype)
        self.votes += sum_over_devices(einsum(responsibilities, labels, "b k, b c -> c k"))

    @torch.no_grad()
    def after_step(self) -> None:
        """Priors of classes that were seen since the last step move towards their mean responsibilities."""
        images = self.votes.sum(1, keepdim=True)
        priors = self.by_class(self.priors, 0)
        moved = self.momentum * priors + (1 - self.momentum) * self.votes / images.clamp(min=1e-12)
        self.priors.copy_(torch.where(images > 0, moved, priors).flatten())
        self.votes.zero_()

    def loss_weights(self) -> dict[str, float]:
        """The paper's for `mining` and `diversity`."""
        return {"mixture": 1.0, "mining": 0.2, "diversity": 1.0}

    def phases(self) -> list[Phase]:
        """Warm-up with the backbone frozen, all together with projection and pruning, and a last look."""
        return [replace(phase, prune=phase.project) for phase in super().phases()]

    @torch.no_grad()
    def prune(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Keep the `kept` prototypes of each class with the largest priors. Returns how many are left in all."""
        # What was pruned before is ranked last, however large its class's rest.
        ranks = self.by_class(self.priors, 0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        self.keep((ranks < self.kept).flatten(), self.priors)
        return {"prototypes": float(self.is_kept.sum())}

    @torch.no_grad()
    def keep(self, wanted: Tensor, merit: Tensor) -> None:
        """As in `PrototypeHead`; the priors of what is kept add up to 1 again."""
        super().keep(wanted, merit)
        kept = self.by_class(self.priors * self.is_kept, 0)
        # A prior that no image votes for sinks to 0 in the end; where only such are left, they are equals.
        kept = kept.where(kept.sum(1, keepdim=True) > 0, self.by_class(self.is_kept.to(kept), 0))
        self.priors.copy_((kept / kept.sum(1, keepdim=True)).flatten())
