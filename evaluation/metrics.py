"""The metrics by name: what finds each, which way is better, and what it means in words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..common.errors import unknown_name
from ..models import Grid, ImageClassifier
from .conventions import Conventions
from .localisation import energy_pointing_game, pointing_game
from .maps import placed
from .methods import MapMethod
from .perturbation import deletion, insertion


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

    @cached_property
    def placed_maps(self) -> Tensor:
        """`m b H W`, by the conventions."""
        size = (self.images.shape[-2], self.images.shape[-1])
        return torch.cat(
            [placed(own[None], size, self._grid(method)) for method, own in zip(self.methods, self.maps, strict=True)]
        )

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """The logits of `classes` (n) for `images` (n c h w)."""
        return self.model(images, explain=0).logits.float().gather(1, classes[:, None])[:, 0]

    def watched(self, images: Tensor, classes: Tensor) -> Tensor:
        """Logits or probabilities of `classes`, by the conventions."""
        if self.conventions.output == "logit":
            return self.logits(images, classes)
        probabilities = self.model(images, explain=0).logits.float().softmax(1)
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
    sweep: Sweep
    protocol: Callable[[Conventions], str]  # what it is, in words
    needs_mask: bool = False
    is_quick: bool = False  # scored unless others are asked for
    pool: Pool | None = None  # for metrics of a whole set, which no image has by itself; None: the mean over images

    @property
    def heading(self) -> str:
        """Its title, with the direction that is better."""
        return f"{self.title} {'↑' if self.best == 'highest' else '↓'}"


def _deletion(judged: Judged) -> dict[str, Tensor]:
    curves = deletion(judged.watched, judged.images, judged.placed_maps, judged.classes, judged.step, judged.chunk)
    return {"deletion": curves.auc, "deletion" + CURVE: curves.scores}


def _insertion(judged: Judged) -> dict[str, Tensor]:
    curves = insertion(judged.watched, judged.images, judged.placed_maps, judged.classes, judged.step, judged.chunk)
    return {"insertion": curves.auc, "insertion" + CURVE: curves.scores}


def _energy(judged: Judged) -> dict[str, Tensor]:
    return {"energy_pointing_game": energy_pointing_game(judged.placed_maps, judged.evidence)}


def _pointing(judged: Judged) -> dict[str, Tensor]:
    return {"pointing_game": pointing_game(judged.placed_maps, judged.evidence)}


def explained_class(chosen: Conventions) -> str:
    """Whose map is judged, in words."""
    return "the predicted class" if chosen.target == "predicted" else "the label"


def _curve(chosen: Conventions) -> str:
    return (
        f"area under the curve of the {chosen.output} of {explained_class(chosen)}, from none to all pixels in "
        f"{chosen.steps} steps, the map's highest first"
    )


_METRICS = (
    Metric(
        "insertion",
        "insertion",
        "highest",
        _insertion,
        lambda chosen: (
            f"{_curve(chosen)}, as they are restored to the blurred image (RISE); higher is better, between "
            "maps of one model"
        ),
        is_quick=True,
    ),
    Metric(
        "deletion",
        "deletion",
        "lowest",
        _deletion,
        lambda chosen: (
            f"{_curve(chosen)}, as they are replaced by the mean colour (RISE); lower is better, between "
            "maps of one model"
        ),
        is_quick=True,
    ),
    Metric(
        "energy_pointing_game",
        "energy in mask",
        "highest",
        _energy,
        lambda chosen: (
            f"share of the positive evidence for {explained_class(chosen)} that lies inside the mask of the "
            "evidence, mean over the images that have one; higher is better"
        ),
        needs_mask=True,
        is_quick=True,
    ),
    Metric(
        "pointing_game",
        "pointing",
        "highest",
        _pointing,
        lambda chosen: (
            "share of the images with a mask in which the highest place of the map of "
            f"{explained_class(chosen)} lies inside it; higher is better"
        ),
        needs_mask=True,
        is_quick=True,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
QUICK_METRICS = tuple(metric.name for metric in _METRICS if metric.is_quick)


def chosen_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names.

    Raises:
        InputError: No such metric; the nearest names are listed.
    """
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    return [METRICS[name] for name in names]
