"""What the selection of features is based on: sums over the training images, in one pass, whatever their number."""

import torch
from torch import Tensor

from .devices import has_several_devices, sum_over_devices
from .feature_selection import Problem

# How the three aims are weighed against each other: QPM's own weights at 50 features, with sums made means.
_REDUNDANCY = 1.2
_LOCALITY = 0.05
_DEAD = 1e-2  # a feature that varies by less than this share of its mean tells nothing, and would be blown up


class FeatureStatistics:
    """Sums of pooled features, by class, and of how local their maps are; in fp64 on the CPU."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        self._by_class = torch.zeros(num_classes, num_features, dtype=torch.float64)
        self._squares = torch.zeros(num_features, dtype=torch.float64)
        self._images = torch.zeros(num_classes, dtype=torch.float64)
        self._strength, self._peak, self._edge = torch.zeros(3, num_features, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Features `b d h w` of images with `labels` (b)."""
        features = features.double()
        pooled = features.mean((-2, -1))
        self._by_class.index_add_(0, labels, pooled)
        self._images.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self._squares += pooled.square().sum(0)
        strength = pooled.clamp(min=0)
        self._strength += strength.sum(0)
        self._peak += (strength * features.flatten(2).softmax(-1).amax(-1)).sum(0)
        self._edge += (strength * _highest_at_the_edge(features)).sum(0)

    def join(self, device: torch.device) -> None:
        """Take in what other processes have summed, by way of `device`."""
        for name, own in vars(self).items():
            setattr(self, name, sum_over_devices(own.to(device)).cpu() if has_several_devices() else own)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each feature over the images, `d`; a deviation of 1 where it hardly varies."""
        mean, deviation, varies = self._moments()
        return mean, deviation.where(varies, 1)

    def problem(self, num_selected: int, per_class: int) -> Problem:
        """What to choose from: relevance of features for classes, less redundancy, plus locality.

        Relevance is Pearson's correlation of a feature with "is of this class", relative to the largest; redundancy
        of two features the cosine of their relevances, where positive; locality how peaked a feature's map is, where
        the feature is strong, and as low as the least of all if it mostly peaks at the grid's edge.
        """
        relevance = self._relevance()
        directions = torch.nn.functional.normalize(relevance, dim=1)
        similarity = (directions @ directions.T).clamp(min=0).fill_diagonal_(0)
        pairs = max(num_selected * (num_selected - 1) / 2, 1)
        return Problem(
            gain=relevance / (per_class * relevance.shape[1]),
            bonus=_LOCALITY * self._locality() / num_selected,
            penalty=_REDUNDANCY * similarity / pairs,
            num_selected=num_selected,
            per_class=per_class,
        )

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, deviation, and whether a feature varies enough to tell anything."""
        number = self._images.sum()
        mean = self._by_class.sum(0) / number
        deviation = (self._squares / number - mean.square()).clamp(min=0).sqrt()
        return mean, deviation, (deviation > _DEAD * mean.abs()) & (deviation > 1e-6 * deviation.amax())

    def _relevance(self) -> Tensor:
        """`d c`, at most 1; 0 where a feature does not vary or a class has no images."""
        mean, deviation, varies = self._moments()
        share = self._images / self._images.sum()
        covariance = self._by_class.T / self._images.sum() - mean[:, None] * share
        scale = deviation[:, None] * (share * (1 - share)).sqrt()
        correlation = (covariance / scale).where(varies[:, None] & (scale > 0), 0)
        return correlation / correlation.amax().clamp(min=1e-12)

    def _locality(self) -> Tensor:
        weight = self._strength.clamp(min=1e-12)
        locality = self._peak / weight
        return locality.where(self._edge <= 0.5 * weight, locality.min())


def _highest_at_the_edge(features: Tensor) -> Tensor:
    """Whether a map's highest cell lies at the edge of the grid, `b d`; never where all cells do."""
    height, width = features.shape[-2:]
    place = features.flatten(2).argmax(-1)
    row, column = place // width, place % width
    at_edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return at_edge & (height > 2 and width > 2)
