"""What a metric is, and what it is given to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..models import Grid, ImageClassifier
from .conventions import Conventions
from .maps import MapMethod, placed


@dataclass(frozen=True)
class Judged:
    """All that a metric may look at: one batch of images, and the maps of m methods for one class of each.

    `maps` are as the methods gave them (`b h w` each); `placed_maps` at the images' resolution.
    """

    model: ImageClassifier
    methods: Sequence[MapMethod]
    maps: Sequence[Tensor]
    images: Tensor  # b c h w, as the model takes them
    classes: Tensor  # b, whose maps are judged
    indices: Tensor  # b, a number that is the image's own, for what is drawn at random
    evidence: Tensor  # b h w bool, all False where nothing is known
    boxes: Sequence[Tensor]  # for each image n 4
    conventions: Conventions
    chunk: int  # images a forward pass

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    @cached_property
    def placed_maps(self) -> Tensor:
        """`m b H W`, by the conventions."""
        return torch.cat(
            [
                placed(own[None], self.size, self._grid(method))
                for method, own in zip(self.methods, self.maps, strict=True)
            ]
        )

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """The logits of `classes` (n) for `images` (n c h w)."""
        return self.model(images, explain=0).logits.float().gather(1, classes[:, None])[:, 0]

    def watched(self, images: Tensor, classes: Tensor) -> Tensor:
        """Logits or probabilities of `classes`, by the conventions."""
        if self.conventions.output == "logit":
            return self.logits(images, classes)
        probabilities = self.model.probabilities(self.model(images, explain=0).logits.float())
        return probabilities.gather(1, classes[:, None])[:, 0]

    @property
    def step(self) -> int:
        """Pixels a step of deletion and insertion."""
        return -(-self.images.shape[-2] * self.images.shape[-1] // self.conventions.steps)

    def _grid(self, method: MapMethod) -> Grid | None:
        return self.conventions.placing(self.model.grid) if method.is_on_grid else None


# Scores `m b` by name; curves `m b k` under NAME + CURVE; what a pooled metric needs of each image, `m b …`, under
# NAME + POOLED.
Sweep = Callable[[Judged], dict[str, Tensor]]
CURVE, POOLED = "/curve", "/pooled"
# Of what each image gives (`n …`) and how often each counts (`r n`, for r resamples), the number of the set: `r`.
Pool = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """How a map is scored, an image at a time. Metrics with the same sweep are found together."""

    name: str
    title: str  # of its column
    best: Literal["highest", "lowest"]
    sweep: Sweep | None  # None: it is of mosaics, which a batch of images does not have
    protocol: Callable[[Conventions], str]  # what it is, in words
    needs_mask: bool = False
    is_quick: bool = False  # scored unless others are asked for
    pool: Pool | None = None  # for metrics of a whole set, which no image has by itself; None: the mean over images

    @property
    def is_of_images(self) -> bool:
        """Whether each image has a score of its own, the same images for all models."""
        return self.sweep is not None and self.pool is None

    @property
    def heading(self) -> str:
        """Its title, with the direction that is better."""
        return f"{self.title} {'↑' if self.best == 'highest' else '↓'}"
