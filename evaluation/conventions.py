"""The choices that a score depends on, frozen and written beside every number."""

from dataclasses import dataclass
from typing import Literal

from ..common.errors import InputError
from ..models import Grid
from .perturbation import Baseline


@dataclass(frozen=True)
class Conventions:
    """How maps are scored here. Two numbers compare only where these agree.

    Maps are brought to the image's resolution linearly and with their sign. Where pixels are ordered, equal values rank
    in reading order; energy counts positive evidence alone, ranks and ROC-AUC take signed values. Deletion and
    insertion look at the probability or the logit of one class throughout.
    """

    target: Literal["predicted", "label"] = "predicted"  # the class whose map is scored
    output: Literal["probability", "logit"] = "probability"  # what deletion and insertion watch
    # Maps are stretched over the image, as in most papers, or each cell stands at the centre of its receptive field.
    placement: Literal["stretched", "receptive_field"] = "stretched"
    deletion_baseline: Baseline = "mean_colour"  # what takes the place of deleted pixels
    insertion_baseline: Baseline = "blur"  # what insertion starts from
    steps: int = 28  # of deletion and insertion; RISE's table: 28 of 1792 pixels at 224 × 224
    bootstrap: int = 2000  # resamples of the images
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of random maps and the bootstrap

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"deletion and insertion need at least one step, got {self.steps}")

    @property
    def explained_class(self) -> str:
        """Whose map is judged, in words."""
        return "the predicted class" if self.target == "predicted" else "the label"

    def placing(self, grid: Grid | None) -> Grid | None:
        """What `placed` is to be told about maps on `grid`: None where they are stretched over the image."""
        return grid if self.placement == "receptive_field" else None
