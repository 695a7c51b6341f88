"""What heads share that look at several stages: one linear classifier a stage, and maps on the finest grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from .base import State, StateT
from .linear import LinearHead
from .options import check_range


@dataclass
class StagesState(State):
    """`features` are those of the deepest stage, `stages` all of them, shallow to deep."""

    stages: list[Tensor]  # b d h w each


class StagesHead(LinearHead[StateT]):
    """A head whose logits are sums over stages, each with a linear classifier of its own; subclasses say how they pool.

    The shallow classifiers start at zero, and so do no harm: the head starts as the classifier of the final features.
    They learn from the first step on, since their gradient is the pooled feature.

    No norm makes the stages alike: weights take any scale, and pretrained stages differ little (MobileNetV2 on photos,
    root mean square of the pooled features: 1.1, 1.6, 1.0 and 0.7 at strides 4, 8, 16 and 32). A batch norm would tie
    evidence to the other images of a batch while training, and fail on one image of one cell; a norm of each cell would
    make evidence no linear function of it.
    """

    def __init__(self, num_features: list[int], num_classes: int, stages: int) -> None:
        if len(num_features) != stages:
            raise InputError(f"stages={stages}: num_features={num_features} does not fit")
        super().__init__(num_features[-1], num_classes)
        shallow = [nn.Linear(channels, num_classes, bias=False) for channels in num_features[:-1]]
        for classifier in shallow:
            nn.init.zeros_(classifier.weight)
        self.shallow = nn.ModuleList(shallow)

    @classmethod
    def wanted_stages(cls, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The last `stages` of the backbone."""
        check_range("stages", options["stages"], 2)
        return tuple(range(-options["stages"], 0))

    @property
    def classifiers(self) -> list[nn.Linear]:
        """One a stage, shallow to deep; only the last has a bias, since one is enough."""
        return [*self.shallow, self.classifier]


def finest(stages: list[Tensor]) -> tuple[int, int]:
    """The grid (h, w) with the most cells; features `b d h w` of each stage."""
    return max(((stage.shape[-2], stage.shape[-1]) for stage in stages), key=lambda grid: grid[0] * grid[1])


def spread(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps `… h w` on a finer `grid`: what a cell holds is divided among the cells it covers, by area.

    Both grids tile the same image, so the sums stay as they are, also where cells do not divide evenly.
    """
    height, width = maps.shape[-2:]
    if (height, width) == grid:
        return maps
    return _shares(grid[0], height, maps) @ maps @ _shares(grid[1], width, maps).T


def _shares(fine: int, coarse: int, like: Tensor) -> Tensor:
    """The share (fine coarse) of each of `coarse` cells that lies on each of `fine` cells of the same length.

    Its columns sum to 1. Lengths are counted in units that make all edges whole, so that only the division rounds.
    """
    from_fine = torch.arange(fine, device=like.device)[:, None] * coarse
    from_coarse = torch.arange(coarse, device=like.device) * fine
    overlap = torch.minimum(from_fine + coarse, from_coarse + fine) - torch.maximum(from_fine, from_coarse)
    return overlap.clamp(min=0).to(like.dtype) / fine
