"""Classifiers for mosaics in which a logit provably depends on one cell alone: where would a true map be zero?

Rao, Böhle and Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022: DiFull and DiPart. What a
map shows in another cell than that whose class it explains is the method's own error, whatever the model has learnt.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ..common.errors import InputError
from ..heads import Explain, Explained, Features
from ..models import ImageClassifier
from .grid_pointing import mosaic

# Where cells part: before the network, or behind it, where the head begins.
Split = Literal["image", "features"]


class _CellBackbone(nn.Module):
    """A backbone, run on each of the side² cells of a mosaic alone; the features lie side by side as the cells do."""

    def __init__(self, model: ImageClassifier, side: int, split: Split) -> None:
        super().__init__()
        self.inner = model.backbone
        self.deepest = nn.Identity()  # what post-hoc methods look at
        self.network, self.stages, self.grid = model.backbone.network, model.backbone.stages, model.backbone.grid
        self.num_features, self.reduction = model.backbone.num_features, model.backbone.reduction
        self._side, self._split = side, split

    def forward(self, mosaics: Tensor) -> Features:
        if self._split == "features":
            features = self.inner(mosaics)
        else:
            features = _each(lambda stage: _mosaic(stage, self._side), self.inner(_cells(mosaics, self._side)))
        if isinstance(features, Tensor):
            return self.deepest(features)
        return [*features[:-1], self.deepest(features[-1])]


class Disconnected(ImageClassifier):
    """`model` on mosaics of side² cells, whose logit number `cell · classes + class` depends on that cell alone.

    It explains one class an image, by its built-in map in the cell and nothing elsewhere.
    """

    def __init__(self, model: ImageClassifier, side: int, split: Split) -> None:
        channels, height, width = model.config.preprocessing.input_size
        preprocessing = replace(model.config.preprocessing, input_size=(channels, side * height, side * width))
        config = replace(
            model.config, num_classes=side**2 * model.num_classes, class_names=None, preprocessing=preprocessing
        )
        super().__init__(_CellBackbone(model, side, split), config)  # type: ignore[arg-type]
        self.inner = model
        self.contract = model.contract
        self._side = side

    def forward_head(
        self, features: Features, targets: Tensor | None, explain: Explain = 0
    ) -> tuple[Explained, dict[str, Tensor]]:
        """As `ImageClassifier.forward_head`; `explain` is 0 or class numbers `b` or `b 1`.

        Raises:
            InputError: The features do not divide into cells.
        """
        count, own = self._side**2, self.inner.num_classes
        apart = _each(lambda stage: _cells(stage, self._side), features)
        if not isinstance(explain, Tensor):
            found, _ = self.inner.forward_head(apart, None, 0)
            nothing = found.maps.new_zeros(len(found.logits) // count, 0)
            empty = nothing[..., None, None]
            return Explained(self._joined(found.logits), nothing.long(), empty, nothing, empty), {}
        classes = explain.reshape(-1)
        found, _ = self.inner.forward_head(apart, None, (classes % own).repeat_interleave(count)[:, None])
        is_its_cell = torch.arange(count, device=classes.device) == (classes // own)[:, None]  # b k
        maps = found.maps[:, 0] * is_its_cell.flatten()[:, None, None]
        offset = found.offset[:, 0].unflatten(0, (-1, count))[is_its_cell]
        whole = _mosaic(maps[:, None], self._side)
        return Explained(self._joined(found.logits), classes[:, None], whole, offset[:, None], whole[:, :0]), {}

    def _joined(self, logits: Tensor) -> Tensor:
        return rearrange(logits, "(b k) c -> b (k c)", k=self._side**2)


def _each(change: Callable[[Tensor], Tensor], features: Features) -> Features:
    return change(features) if isinstance(features, Tensor) else [change(stage) for stage in features]


def _cells(tensor: Tensor, side: int) -> Tensor:
    if tensor.shape[-2] % side or tensor.shape[-1] % side:
        raise InputError(f"{tensor.shape[-2]}×{tensor.shape[-1]} do not divide into {side}×{side} equal cells")
    return rearrange(tensor, "b c (row h) (column w) -> (b row column) c h w", row=side, column=side)


def _mosaic(cells: Tensor, side: int) -> Tensor:
    return mosaic(cells.unflatten(0, (-1, side**2)))
