"""Is the prediction right, and does its confidence mean what it says?

An image with a NaN among its logits or probabilities has no prediction: it is never correct and, where images are
ranked by confidence, the last. It has no confidence that could be calibrated, so its Brier score is NaN and the
calibration error leaves it out.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError

# What a model is judged and chosen by: the first, or, where images can show several classes, the second.
MEASURES = {
    "top1": "share of images whose class is ranked first",
    "map": "mean over classes of the average precision of their ranking of the images",
}


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k highest logits: `b` bool for logits `b c` and labels `b`.

    With k or fewer classes every label is. Equal logits count against the label, and an image with a NaN is never
    correct.
    """
    own = logits.gather(1, labels[:, None])
    ahead = (logits >= own).sum(1) - 1
    return (ahead < k) & ~logits.isnan().any(1)


def average_precision(scores: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
    """Of each class by itself, where an image can show several: `c`, 0..1, NaN for one that no image shows.

    Images are ranked by their score; the mean, over the images that show the class, of the share of such images among
    those ranked as high or higher. Images of equal scores rank together, those with a NaN last. Without interpolation,
    as in scikit-learn; a ranking that knows nothing scores the class's share of the images.

    Args:
        scores: `n c`; only their order counts.
        targets: `n c`, 1 where the class is there, else 0.
        counts: `r n`, how often each image counts, for r resamples at once; the result is then `r c`.
    """
    weights = torch.ones(1, len(scores), dtype=torch.float64, device=scores.device) if counts is None else counts
    columns = [_average_precision(own, shown.double(), weights) for own, shown in zip(scores.T, targets.T, strict=True)]
    found = torch.stack(columns, dim=1)
    return found[0] if counts is None else found


def _average_precision(scores: Tensor, shown: Tensor, weights: Tensor) -> Tensor:
    """Of one class, `r`: scores and shown `n`, weights `r n`."""
    ranked, order = scores.nan_to_num(nan=-torch.inf).sort(descending=True)
    is_last = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])  # of its equals
    hits = (weights[:, order] * shown[order]).cumsum(1)[:, is_last]
    seen = weights[:, order].cumsum(1)[:, is_last]
    gained = hits.diff(dim=1, prepend=hits.new_zeros(len(hits), 1))
    # Nothing is seen before the first image that counts, and nothing gained; with nothing to gain 0 / 0 is NaN.
    return (gained * hits / seen.clamp(min=1)).sum(1) / hits[:, -1]


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of the top-1 confidence, weighted by count; 0..1.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3. A bin holds its upper edge. Images
    with a NaN are left out; NaN where none is left.

    Args:
        probabilities: `b c`, rows sum to 1.
        labels: `b`.
        bins: Number of bins between 0 and 1.
    """
    _check(probabilities)
    has_prediction = ~probabilities.isnan().any(1)
    confidence, predicted = probabilities[has_prediction].double().max(1)
    correct = (predicted == labels[has_prediction]).double()
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64, device=probabilities.device)
    gaps = sums.index_add(0, place, correct - confidence)
    return gaps.abs().sum().item() / len(confidence) if len(confidence) else math.nan


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Squared distance between the probabilities `b c` and the label's certainty, summed over classes: `b` in 0..2.

    Low is good; one number an image, so that means come with intervals. NaN where a probability is NaN. Brier,
    "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950; with two
    classes twice what is often called so.
    """
    _check(probabilities)
    certain = torch.zeros_like(probabilities, dtype=torch.float64).scatter_(1, labels[:, None], 1)
    return (probabilities.double() - certain).square().sum(1)


class Selective(NamedTuple):
    """How right a model is on the images that it is most sure of, from the surest one to all n."""

    coverage: Tensor  # (n,): 1/n to 1, the share of images answered
    accuracy: Tensor  # (n,): of these

    @property
    def risk(self) -> Tensor:
        """Share of wrong answers among those given, (n,): the risk-coverage curve."""
        return 1 - self.accuracy

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve, 0..1, low is good; confidence that knows nothing scores the error rate.

        Geifman et al., "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
        """
        return self.risk.mean().item()

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy on the surest `coverage` of the images, rounded up to whole images.

        Raises:
            InputError: A coverage outside (0, 1].
        """
        if not 0 < coverage <= 1:
            raise InputError(f"coverage must lie in (0, 1], got {coverage}")
        # 0.1 * 30 is a little more than 3.
        return self.accuracy[math.ceil(coverage * len(self.accuracy) - 1e-9) - 1].item()


def selective_accuracy(probabilities: Tensor, labels: Tensor) -> Selective:
    """The accuracy at every coverage when a model answers where its top-1 confidence is highest.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010. Images of equal
    confidence count with their mean correctness, as in a random order of them, so the curve does not depend on the
    data set's order. Images with a NaN come last and are wrong.

    Args:
        probabilities: `b c`; any confidences will do, since only their order counts.
        labels: `b`.
    """
    _check(probabilities)
    confidence = probabilities.double().amax(1)
    confidence = confidence.where(~confidence.isnan(), -torch.inf)
    correct = topk_correct(probabilities, labels, 1).double()
    groups, counts = confidence.unique(return_inverse=True, return_counts=True)[1:]
    means = torch.zeros_like(counts, dtype=torch.float64).index_add(0, groups, correct) / counts
    answered = torch.arange(1, len(labels) + 1, device=labels.device)
    accuracy = means[groups.sort(descending=True).values].cumsum(0) / answered
    return Selective(answered.double() / len(labels), accuracy)


def _check(probabilities: Tensor) -> None:
    if probabilities.ndim != 2 or not len(probabilities):
        raise InputError(f"probabilities of shape (b, c) with b > 0 expected, got {tuple(probabilities.shape)}")
