"""WILDCAT: a linear classifier at each cell; the logit is the mean of its highest cells and of its lowest.

    M_c(h, w) = mean_m W_cm · x(h, w)        s⁺_c, s⁻_c = mean of the k⁺ largest, of the k⁻ smallest of M_c
    logit_c = (s⁺_c + alpha s⁻_c) / 2 + b_c      (without lowest cells, alpha = 0 or k⁻ = 0: s⁺_c + b_c)
    evidence_c = M_c / (2 k⁺) at the highest cells + alpha M_c / (2 k⁻) at the lowest, else 0    offset_c = b_c

Features `b d h w`, class maps `b c h w`. Durand et al., "WILDCAT: Weakly Supervised Learning of Deep ConvNets for
Image Classification, Pointwise Localization and Segmentation", CVPR 2017, equations 1 and 2. The paper adds s⁺ and
alpha s⁻; its code halves the sum, and so do we: the logit then has the size of a mean.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from ..common.errors import InputError
from .base import Contract, Features, Phase, State, no_parts
from .linear import LinearHead, class_maps, of_classes
from .options import check_range
from .registry import register_head


@dataclass
class _Chosen(State):
    amounts: Tensor  # b c n: what the chosen cells add to the logit
    cells: Tensor  # b c n: where they are, counted row by row


@register_head("topk")
class TopK(LinearHead[_Chosen]):
    """Pooling of the highest cells, and of the lowest as evidence against (WILDCAT).

    Assumes that a class fills about a known share of the image, and that its absence shows somewhere as well. The
    map is the chosen cells' scores and exactly zero elsewhere: an outline of what counted, of a size fixed
    beforehand. For several objects or causes of one class in an image. Scores every class at every cell: d c h w
    multiplications an image, and a top-k a class.

    Args:
        num_features: Channels d of the features.
        num_classes: Classes c.
        modalities: Classifiers whose mean is the class map. A mean of linear maps is a linear map, so more of them
            (the paper takes 4 to 8) change nothing in what the head can say; they are there for the paper's sake.
        top: The highest cells: a float is a share of all cells (at least one is taken), an int their number.
        bottom: The lowest cells, in the same way; None: as many as `top`, 0: none.
        alpha: Weight of the lowest cells.
    """

    contract = Contract.SELECT

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        modalities: int = 1,
        top: float | int = 0.2,
        bottom: float | int | None = None,
        alpha: float = 0.7,
    ) -> None:
        check_range("modalities", modalities, 1)
        check_range("alpha", alpha, 0)
        bottom = top if bottom is None else bottom
        _check_cells("top", top)
        if bottom:
            _check_cells("bottom", bottom)
        super().__init__(num_features, num_classes)
        self.classifier = nn.Linear(num_features, num_classes * modalities)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.modalities = modalities
        self.top = top
        self.bottom = bottom if alpha else 0
        self.alpha = alpha

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """The mean of the modalities: `c d` and `c`. Taken before the cells are scored, it costs as much as one."""
        weight = reduce(self.classifier.weight, "(c m) d -> c d", "mean", m=self.modalities)
        return weight, reduce(self.classifier.bias, "(c m) -> c", "mean", m=self.modalities)

    def score(self, features: Features) -> _Chosen:
        """Logits `b c` from features `b d h w`."""
        assert isinstance(features, Tensor)
        weight, bias = self.weight_and_bias()
        maps = class_maps(features, weight).flatten(2)
        count = _count(self.top, maps.shape[-1])
        amounts, cells = maps.topk(count, sorted=False)
        amounts = amounts / count
        if self.bottom:
            count = _count(self.bottom, maps.shape[-1])
            lowest, lowest_cells = maps.topk(count, largest=False, sorted=False)
            amounts = torch.cat([amounts, lowest * (self.alpha / count)], dim=-1) / 2
            cells = torch.cat([cells, lowest_cells], dim=-1)
        return _Chosen(features, amounts.sum(-1) + bias, no_parts(features), amounts, cells)

    def evidence(self, state: _Chosen, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`, zero outside the chosen cells; offset `b k` (the bias)."""
        amounts, cells = of_classes(state.amounts, classes), of_classes(state.cells, classes)
        height, width = state.features.shape[-2:]
        # Added, not written: on a small grid a cell can be among the highest and the lowest.
        maps = amounts.new_zeros(*classes.shape, height * width).scatter_add(-1, cells, amounts)
        return maps.unflatten(-1, (height, width)), self.weight_and_bias()[1][classes]

    def phases(self) -> list[Phase]:
        """One, with the backbone at a tenth of the rate, as in the paper's fine-tuning."""
        return [Phase(lr_scale={"backbone.*": 0.1})]

    def fold(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take over a classifier of pooled features, in every modality: exact for `top=1.0, alpha=0`.

        With the defaults a folded MobileNetV2 kept 88 % of its predictions on 449 photographs, and 224 of the 227 that
        it had made with more than even probability.
        """
        every_bias = None if bias is None else repeat(bias, "c -> (c m)", m=self.modalities)
        return super().fold(repeat(weight, "c d -> (c m) d", m=self.modalities), every_bias)


def _check_cells(name: str, cells: float | int) -> None:
    is_share = isinstance(cells, float)
    if isinstance(cells, bool) or not (0 < cells <= 1 if is_share else cells >= 1):
        raise InputError(f"{name}={cells!r}: a share of the cells above 0.0 and up to 1.0, or a number of cells from 1")


def _count(cells: float | int, num_cells: int) -> int:
    """How many of `num_cells` cells: `cells` is a share of them if a float, else their number.

    `round` in whole numbers, halves to even, so that exported programs can hold it for every size of image.
    """
    if not isinstance(cells, float):
        return torch.sym_min(cells, num_cells)  # type: ignore[return-value]
    numerator, denominator = Fraction(str(cells)).as_integer_ratio()
    raised = 2 * numerator * num_cells + denominator
    rounded = raised // (2 * denominator)
    is_half = 1 - torch.sym_min(raised % (2 * denominator), 1)
    return torch.sym_max(rounded - is_half * (rounded % 2), 1)  # type: ignore[return-value]
