"""SCOUTER: each class has slots that search the image, and is scored by how much they find.

    v = ReLU(W_v x)        k = MLP(v + position)        D = s · k / √d        A = sigmoid(D · t̄ / t), t = Σ_hw |D|
    s ← GRU(Σ_hw A v / d, s)   between the `iterations` rounds of D and A; t̄ = mean of t over all slots
    logit_c = e Σ_s Σ_hw A_cs(h, w) mean_d v(h, w)        evidence_c(h, w) = e Σ_s A_cs(h, w) mean_d v(h, w)

Li et al., "SCOUTER: Slot Attention-Based Classifier for Explainable Image Recognition", ICCV 2021. Theirs is D Σt / t
with t = Σ_hw D: where D has both signs t may vanish and turn a slot's attention round, and Σt grows with the number of
slots until the sigmoid is flat.
"""

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from ..common.errors import InputError
from .base import Contract, Features, Head, State
from .linear import of_classes
from .options import check_choice, check_range
from .registry import register_head


@dataclass
class SlotState(State):
    """What the evidence is read from."""

    class_maps: Tensor  # b c h w: e Σ_s A_cs · mean_d v


@register_head("scouter")
class SCOUTER(Head[SlotState]):
    """Slot attention as the classifier: a class wins by what its slots find, or loses by it.

    Assumes that a class is told by what is there ("positive": all evidence ≥ 0), or can be ruled out by what is there
    ("negative": all evidence ≤ 0, and the map says why *not* this class; the image's own class should find nothing).
    The map is what each cell adds to the logit; there is no offset. What a cell holds is shared by all classes, so at
    a cell they rank as their attention does. `parts` holds the attention of every slot, class by class, between 0 and
    1. `slot_area` keeps attention small: raise its weight for smaller maps, and lower the learning rate with it. Costs
    `iterations` attention maps a slot and a GRU over all slots. There is no linear classifier in it, so it cannot start
    as a pretrained one (`fold` says no) and takes longer to train than heads that can.

    Args:
        slots: Slots for each class.
        dim: Channels of slots and cells; a multiple of 4.
        iterations: Rounds of search.
        evidence_sign: "positive" or "negative", e = 1 or −1.
    """

    contract = Contract.DYNAMIC

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        slots: int = 1,
        dim: int = 64,
        iterations: int = 3,
        evidence_sign: str = "positive",
    ) -> None:
        super().__init__(num_features, num_classes)
        check_range("slots", slots, 1)
        check_range("iterations", iterations, 1)
        check_choice("evidence_sign", evidence_sign, ["positive", "negative"])
        if dim < 4 or dim % 4:
            raise InputError(f"dim={dim}: must be a multiple of 4, for sine and cosine along both axes")
        self.iterations = iterations
        self.sign = 1 if evidence_sign == "positive" else -1
        self.value = nn.Conv2d(num_features, dim, 1)
        self.key = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.slots = nn.Parameter(torch.randn(num_classes * slots, dim))
        # The last round's attention makes the logit: slots are updated between rounds only.
        self.update = nn.GRUCell(dim, dim) if iterations > 1 else None

    def score(self, features: Features) -> SlotState:
        """Logits `b c` from features `b d h w`; `parts` is the attention `b (c slots) h w`."""
        assert isinstance(features, Tensor)
        height, width = features.shape[-2:]
        grid = self.value(features).relu()
        cells = rearrange(grid, "b d h w -> b (h w) d")
        keys = self.key(cells + rearrange(sine_positions(grid), "d h w -> (h w) d"))
        slots = self.slots.expand(features.shape[0], -1, -1)
        attention = attend(slots, keys)
        if self.update is not None:
            for _ in range(self.iterations - 1):
                found = einsum(attention, cells, "b s n, b n d -> b s d") / cells.shape[-1]
                slots = self.update(found.flatten(0, 1), slots.flatten(0, 1)).unflatten(0, slots.shape[:2])
                attention = attend(slots, keys)
        parts = rearrange(attention, "b s (h w) -> b s h w", h=height, w=width)
        by_class = reduce(parts, "b (c s) h w -> b c h w", "sum", c=self.num_classes)
        class_maps = self.sign * by_class * grid.mean(1, keepdim=True)
        return SlotState(features, class_maps.sum((-2, -1)), parts, class_maps)

    def evidence(self, state: SlotState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, offset `b k` (0)."""
        return of_classes(state.class_maps, classes), state.logits.new_zeros(classes.shape)

    def losses(self, state: SlotState, targets: Tensor) -> dict[str, Tensor]:
        """`slot_area`: the squared share of the grid that the slots attend to, over images."""
        # Squared before images are averaged, so that it does not matter how a batch is split.
        return {"slot_area": state.parts.mean((1, 2, 3)).square().mean()}

    def loss_weights(self) -> dict[str, float]:
        """A tenth of the paper's least: at 1, attention may vanish before it has found anything, and stays away."""
        return {"slot_area": 0.1}

    def no_weight_decay(self) -> set[str]:
        """The slots, as other learned tokens."""
        return {"slots"}


def attend(slots: Tensor, keys: Tensor) -> Tensor:
    """Attention `b s n`, between 0 and 1, of slots `b s d` to cells with keys `b n d`."""
    scores = einsum(slots, keys, "b s d, b n d -> b s n") / math.sqrt(keys.shape[-1])
    own = scores.abs().sum(-1, keepdim=True)
    # Every slot gets the same total.
    return (scores / own.clamp(min=1e-6) * own.mean(1, keepdim=True)).sigmoid()


def sine_positions(grid: Tensor) -> Tensor:
    """Sine and cosine codes `d h w` of the cells of `b d h w`: the grid spans 2π, whatever its size.

    Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section A.4.
    """
    dim, height, width = grid.shape[-3:]
    exponents = torch.arange(dim // 4, device=grid.device, dtype=grid.dtype) / (dim // 4)
    frequencies = rearrange(10000**-exponents, "f -> f 1")
    codes = []
    for size in (height, width):
        centres = (torch.arange(size, device=grid.device, dtype=grid.dtype) + 0.5) * (2 * math.pi / size)
        codes.append(torch.cat([(frequencies * centres).sin(), (frequencies * centres).cos()]))
    along_y, along_x = codes
    return torch.cat([along_y[:, :, None].expand(-1, -1, width), along_x[:, None, :].expand(-1, height, -1)])
