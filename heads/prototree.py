"""ProtoTree: a soft decision tree that asks at each node whether the image shows a prototype.

    p(right at n) = g_n = exp(−min_hw ‖z(h, w) − p_n‖)        π_l = Π g_n where the path to l turns right, 1 − g_n left
    P(c) = Σ_l π_l softmax(leaf_l)_c        logit_c = log P(c)        evidence and offset add up to P(c)

Cells z `b d h w` (a 1×1 convolution of the features and a sigmoid), a prototype for each node n, leaf logits `l c`.
Nauta et al., "Neural Prototype Trees for Interpretable Fine-grained Image Recognition", CVPR 2021.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from .base import Contract, Features, Head, Phase
from .best_cell import PrototypeState, best_cells, placed
from .devices import sum_over_devices
from .nearest import Search, assigned, nearest_patches
from .options import check_range
from .prototypes import mean_proximity, provenance_of
from .registry import register_head
from .similarity import squared_distances

# Under the root of squared distances: at a perfect match its gradient, and that of log(1 − g), would be infinite.
_EPSILON = 1e-8


@dataclass
class TreeState(PrototypeState):
    """`parts` are the nodes' similarity maps, `activations` g."""

    log_paths: Tensor  # b l: log π, −∞ for leaves that were pruned


@register_head("prototree")
class ProtoTree(Head[TreeState]):
    """A soft tree of prototypes: 2^depth − 1 questions, each "is this patch there?", and a class distribution a leaf.

    Assumes that classes part by the presence of details, asked one after another. A class's probability is the sum of
    its leaves' shares π_l softmax(leaf_l)_c. The map spreads each share evenly over the nodes of the leaf's path: a
    node whose prototype the path says is present has its part at the cell where it was found; what rests on absence
    has no place and is `offset`. So evidence is in units of probability and never negative. `parts` are the nodes'
    similarity maps. Use it where the order of questions should be read, or all classes share few prototypes. Costs
    2^depth − 1 distances a cell and, an image, 2^depth × classes numbers; all paths are taken at prediction, each by
    its probability. Leaves never see a gradient: train with a `label_smoothing` of 0, which would pull at the paths.

    The paper forgets, each batch, a share of what a leaf held when the epoch began, so that it holds an epoch's votes;
    a head knows no epochs and forgets at the same rate what it holds now. Leaves begin near uniform, not at it: leaves
    that are all alike would leave the prototypes without a gradient.

    Args:
        depth: Questions asked of an image; the paper takes 9 for 200 classes, 2^depth should exceed the classes.
        dim: Channels in which cells and prototypes are compared; 256 in the paper.
        memory: Images whose votes the leaves hold, in the paper as many as there are for training. The more, the
            surer the leaves and the slower they change.
        least: A leaf whose surest class has at most this probability is pruned; None: twice chance (0.01 for the
            paper's 200 classes), at most 0.75.
    """

    contract = Contract.PROBABILITY
    has_prototypes = True

    turns: Tensor
    is_kept: Tensor
    leaves: Tensor
    votes: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        depth: int = 6,
        dim: int = 64,
        memory: int = 2000,
        least: float | None = None,
    ) -> None:
        super().__init__(num_features, num_classes)
        check_range("depth", depth, 1, 12)
        check_range("dim", dim, 1)
        check_range("memory", memory, 1)
        self.memory = memory
        self.least = min(2 / num_classes, 0.75) if least is None else least
        check_range("least", self.least, 0, 1)
        convolution = nn.Conv2d(num_features, dim, 1, bias=False)
        nn.init.xavier_normal_(convolution.weight)
        self.add_on = nn.Sequential(convolution, nn.Sigmoid())
        self.prototypes = nn.Parameter(torch.empty(2**depth - 1, dim).normal_(0.5, 0.1))
        self.register_buffer("turns", turns_of(depth))
        self.register_buffer("is_kept", torch.ones(2**depth, dtype=torch.bool))
        self.register_buffer("leaves", 0.1 * torch.randn(2**depth, num_classes))
        # Zero after each step, so that no checkpoint needs it.
        self.register_buffer("votes", torch.zeros(2**depth, num_classes), persistent=False)

    def found(self, features: Features) -> tuple[Tensor, Tensor]:
        """Cells `b d h w` and their negative squared distance to each prototype `b n h w`, from features `b d h w`."""
        cells = self.add_on(features)
        return cells, -squared_distances(cells, self.prototypes)

    def score(self, features: Features) -> TreeState:
        """Log-probabilities `b c` from features `b d h w`; `parts` are the similarity maps `b n h w`."""
        cells, proximity = self.found(features)
        best, places = best_cells(proximity)
        log_present = -(_EPSILON - best).sqrt()
        present = log_present.exp()
        right, left = ((self.turns == turn).to(best.dtype) for turn in (1, -1))
        log_paths = functional.linear(log_present, right) + functional.linear((-present).log1p(), left)
        log_paths = log_paths.masked_fill(~self.is_kept, -torch.inf)
        # Summed in log space: with sure leaves a class's probability can be too small for a float.
        logits = (rearrange(log_paths, "b l -> b l 1") + self.leaves.log_softmax(1)).logsumexp(1)
        parts = (-(_EPSILON - proximity).sqrt()).exp()
        return TreeState(cells, logits, parts, best, present, places, log_paths)

    def evidence(self, state: TreeState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero but at the nodes' best cells; offset `b k`: what rests on absence. Sum: probability."""
        shares = self.log_shares(state, classes).exp()
        right, left = ((self.turns == turn).to(shares.dtype) for turn in (1, -1))
        steps = (right + left).sum(1)
        # A tree pruned to a single leaf asks nothing: that leaf's probability is all offset.
        absent = torch.where(steps > 0, left.sum(1), 1.0)
        each = shares / steps.clamp(min=1)
        maps = placed(each @ right, state.places, (state.parts.shape[-2], state.parts.shape[-1]))
        return maps, each @ absent

    def log_shares(self, state: TreeState, classes: Tensor) -> Tensor:
        """Of each leaf in the probabilities of `classes` (b k), as logarithms: `b k l`."""
        return state.log_paths[:, None] + self.leaves.log_softmax(1).T[classes]

    def losses(self, state: TreeState, targets: Tensor) -> dict[str, Tensor]:
        """None of its own; in training mode the leaves' votes are counted here, until the step that takes them in."""
        if self.training:
            self.count_votes(state, targets)
        return {}

    @torch.no_grad()
    def count_votes(self, state: TreeState, targets: Tensor) -> None:
        """Each image has one vote for its class, divided among the leaves by their share in its probability."""
        shares = self.log_shares(state, targets[:, None])[:, 0].softmax(1)
        labels = functional.one_hot(targets, self.num_classes).to(shares.dtype)
        self.votes += sum_over_devices(einsum(shares, labels, "b l, b c -> l c"))

    @torch.no_grad()
    def after_step(self) -> None:
        """Leaves forget as many images as have voted since the last step, and take in their votes."""
        self.leaves.mul_((1 - self.votes.sum() / self.memory).clamp(min=0)).add_(self.votes)
        self.votes.zero_()

    def phases(self) -> list[Phase]:
        """With the backbone frozen, all together with projection and pruning, and a last look."""
        return [
            Phase("warm", share=0.3, trains=("head.*",)),
            Phase("joint", share=0.7, lr_scale={"backbone.*": 0.1}, project=True, prune=True),
            Phase("judged", epochs=1, trains=()),
        ]

    def no_weight_decay(self) -> set[str]:
        """Prototypes mean nothing at 0."""
        return {"prototypes"}

    @torch.no_grad()
    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Each prototype becomes the nearest patch of any class, no two the same cell; where from is kept.

        Returns the mean proximity before it was made perfect.
        """
        number = len(self.prototypes)
        search = Search(lambda features: self.found(features)[::-1], count=number, per_image=number)
        chosen = assigned(nearest_patches(loader, model, search), [0] * number)
        for node, patch in enumerate(chosen):
            if patch is not None:
                self.prototypes[node] = patch.vector.to(self.prototypes)
        self.provenance = provenance_of(chosen, [None] * number, model)
        return mean_proximity(chosen)

    @torch.no_grad()
    def prune(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Drop leaves that know nothing, and nodes that then have nothing to decide; their other side moves up.

        A tree of such leaves only stays as it is. Returns how many leaves and prototypes are left.
        """
        kept = self.is_kept & (self.leaves.softmax(1).amax(1) > self.least)
        if kept.any():
            self.is_kept.copy_(kept)
        of_kept = self.turns[self.is_kept]
        decides = (of_kept == 1).any(0) & (of_kept == -1).any(0)
        self.turns *= decides
        self.provenance = [entry for entry in self.provenance if decides[entry["prototype"]]]
        return {"leaves": float(self.is_kept.sum()), "prototypes": float(decides.sum())}


def turns_of(depth: int) -> Tensor:
    """How the path to each leaf (l) turns at each node (n): 1 right, −1 left, 0 where it does not pass; `l n` int8.

    Nodes are numbered level by level, leaves from left to right: a leaf's bits are its turns.
    """
    turns = torch.zeros(2**depth, 2**depth - 1, dtype=torch.int8)
    leaves = torch.arange(2**depth)
    for level in range(depth):
        bit = (leaves >> (depth - level - 1)) & 1
        turns[leaves, 2**level - 1 + (leaves >> (depth - level))] = (2 * bit - 1).to(torch.int8)
    return turns
