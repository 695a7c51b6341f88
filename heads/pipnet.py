"""PIP-Net: patches that look alike share a prototype, and a class is a sparse, positive sum of what is found.

    z(h, w) = softmax_k(x(h, w))        p_k = max_hw z_k(h, w)        logit_c = Σ_k ReLU(W_ck) p_k
    evidence_c = Σ_k ReLU(W_ck) p_k at the cell where z_k is largest, else 0        offset_c = 0

Features x `b d h w` (or what a 1×1 convolution makes of them), prototypes k, W `c k`; in eval mode a p_k below
`threshold` counts as 0. Nauta et al., "PIP-Net: Patch-Based Intuitive Prototypes for Interpretable Image
Classification", CVPR 2023.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Features, Phase
from .best_cell import BestCellHead, PrototypeState, best_cells
from .devices import sum_over_devices
from .nearest import Patch, nearest_patches
from .options import check_range
from .prototypes import mean_proximity, provenance_of
from .registry import register_head
from .similarity import widened


@register_head("pipnet")
class PIPNet(BestCellHead[PrototypeState]):
    """Prototypes without labels, shared by all classes; a class's score counts those that are there.

    Assumes that a class shows by a few small things, each alike wherever it occurs. The map holds each prototype's
    points (presence × weight) at the one cell where it was found, and never counts against a class; `parts` are the
    presence maps, which add up to 1 over the prototypes at each cell. A logit is a score, not a log-odds: where nothing
    known is found all are exactly 0 (`abstains`), which no other head can say. Use it for few prototypes per decision
    and for images that may show none of the classes. Costs a softmax, two views of each image in training and a
    pretraining phase; wants a fine grid (26×26 in the paper: lower `output_stride`), and with a frozen backbone
    `num_prototypes`, without which there is nothing to pretrain.

    The paper takes the cross entropy of log(1 + logit²), whose sum over prototypes is no map. So logits stay the plain
    sums, that loss is the term `sparse_classification`, and the trainer's own `classification` weighs 0 by default.

    Args:
        num_prototypes: Prototypes, from a 1×1 convolution; None takes the features' own channels.
        threshold: Presence below which a prototype counts as absent in eval mode, and without which it is pruned.
        shrink: What each step takes off every weight that trains, down to 0. It must stay below the classifier's
            learning rate, or all weights vanish: set a `min_lr` of `shrink` / 100 in long runs.
    """

    views = 2
    shares_prototypes = True
    last_layer = ("head.classifier.*",)

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_prototypes: int | None = None,
        threshold: float = 0.1,
        shrink: float = 1e-3,
    ) -> None:
        super().__init__(num_features, num_classes)
        width = num_features if num_prototypes is None else num_prototypes
        check_range("num_prototypes", width, 2)
        check_range("threshold", threshold, 0, 1)
        check_range("shrink", shrink, 0, 1)
        self.threshold = threshold
        self.shrink = shrink
        self.add_on = nn.Identity() if num_prototypes is None else nn.Conv2d(num_features, width, 1)
        self.classifier = nn.Linear(width, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, 1.0, 0.1)
        self.register_buffer("is_kept", torch.ones(width, dtype=torch.bool))

    @property
    def weight(self) -> Tensor:
        """What each prototype (k) counts for each class (c): `c k`, never negative, zero where it was pruned."""
        return self.classifier.weight.relu() * self.is_kept

    def presence(self, features: Features) -> Tensor:
        """How much each cell is each prototype, `b k h w`, from features `b d h w`."""
        return widened(self.add_on(features)).softmax(1)

    def found(self, features: Features) -> tuple[Tensor, Tensor]:
        """No vectors, `b 0 h w`, for prototypes never become any, and the presence maps `b k h w`."""
        presence = self.presence(features)
        return presence[:, :0], presence

    def score(self, features: Features) -> PrototypeState:
        """Logits `b c` from features `b d h w`; `parts` are the presence maps `b k h w`."""
        assert isinstance(features, Tensor)
        parts = self.presence(features)
        best, places = best_cells(parts)
        # Below the threshold nothing would ever learn to rise above it.
        activations = best if self.training else best * (best >= self.threshold)
        logits = functional.linear(activations, self.weight)
        return PrototypeState(features, logits, parts, best, activations, places)

    def abstains(self, logits: Tensor) -> Tensor:
        """Where nothing was found that speaks for any class, `b` bool, from logits `b c`; in eval mode, that is."""
        return (logits == 0).all(1)

    def losses(self, state: PrototypeState, targets: Tensor) -> dict[str, Tensor]:
        """`align` and `uniformity` of the prototypes, and the paper's `sparse_classification`."""
        views = len(state.parts) // len(targets)
        presences = state.parts.chunk(views)
        normalised = state.logits.square().log1p()
        return {
            # With one view it is compared with itself, which is largest where each cell is one prototype alone.
            "align": align(presences[0], presences[-1]),
            "uniformity": uniformity(state.proximities.unflatten(0, (views, len(targets)))),
            "sparse_classification": functional.cross_entropy(normalised, targets.repeat(views)),
        }

    def loss_weights(self) -> dict[str, float]:
        """The paper's; its classification loss takes the place of the trainer's."""
        return {"classification": 0.0, "sparse_classification": 2.0, "align": 5.0, "uniformity": 2.0}

    def phases(self) -> list[Phase]:
        """Prototypes without labels, the classifier alone, all together with projection and pruning, a last look.

        The paper raises `align` from 0 to 1 while it pretrains; here it weighs the mean. It also keeps the backbone's
        first stages frozen, long or for ever: what they are called is the backbone's matter, and a recipe's `trains`.
        """
        add_on = [f"head.add_on.{name}" for name, _ in self.add_on.named_parameters()]
        unlabelled = {"classification": 0.0, "sparse_classification": 0.0, "align": 0.5, "uniformity": 5.0}
        faster = {"head.classifier.*": 100.0}
        return [
            Phase("pretrain", share=0.15, trains=("backbone.*", *add_on), loss_weights=unlabelled),
            Phase("classifier", share=0.05, trains=self.last_layer, lr_scale=faster),
            Phase("joint", share=0.8, lr_scale=faster, project=True, prune=True),
            Phase("judged", epochs=1, trains=()),
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Weights shrink to 0, where ReLU gives no gradient: what was dropped stays dropped, as in the paper.

        Frozen ones are left alone: pretraining would shrink them unopposed.
        """
        if self.classifier.weight.requires_grad:
            self.classifier.weight.sub_(self.shrink).clamp_(min=0)

    def no_weight_decay(self) -> set[str]:
        """The weights shrink already."""
        return {"classifier.weight"}

    def project(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Moves nothing: remembers each prototype's best training patch. Returns the mean presence there."""
        chosen = self.best_patches(loader, model)
        self.provenance = provenance_of(chosen, [None] * len(chosen), model)
        return mean_proximity(chosen)

    @torch.no_grad()
    def prune(self, loader: Iterable[Any], model: nn.Module) -> dict[str, float]:
        """Drop prototypes that no training image shows above the threshold, or that no class has a weight for.

        Returns how many are left.
        """
        shown = [patch is not None and patch.proximity >= self.threshold for patch in self.best_patches(loader, model)]
        is_used = (self.weight > 0).any(0)
        self.is_kept.copy_(is_used & torch.tensor(shown, device=is_used.device))
        return {"prototypes": float(self.is_kept.sum())}

    def best_patches(self, loader: Iterable[Any], model: nn.Module) -> list[Patch | None]:
        """Of each prototype, over all images of `loader`."""
        return [near[0] if near else None for near in nearest_patches(loader, model, self.search(own_class=False))]


def align(first: Tensor, second: Tensor) -> Tensor:
    """−log of how surely two views' cells are the same prototype, from their presences `b k h w`, over b and cells.

    Each view learns from the other held fixed.
    """

    def towards(view: Tensor, other: Tensor) -> Tensor:
        return -((view * other.detach()).sum(1) + 1e-12).log().mean()

    return (towards(first, second) + towards(second, first)) / 2


def uniformity(presence: Tensor) -> Tensor:
    """−log of how surely the batch shows each prototype, from presences `v b k` (v views): the tanh loss, over v and k.

    The sum inside is over the images of all devices.
    """
    return -(sum_over_devices(presence.sum(1)).tanh() + 1e-8).log().mean()
