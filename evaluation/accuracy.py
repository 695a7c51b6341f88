"""Is the prediction right, and does its confidence mean what it says?"""

import torch
from torch import Tensor

from ..common.errors import InputError


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k highest logits: `b` bool for logits `b c` and labels `b`.

    With k or fewer classes every label is. Equal logits count against the label, and a NaN is never correct.
    """
    own = logits.gather(1, labels[:, None])
    ahead = (logits >= own).sum(1) - 1  # -1 where the label's logit is NaN
    return (ahead >= 0) & (ahead < k)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of the top-1 confidence, weighted by count; 0..1.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3. A bin holds its upper edge.

    Args:
        probabilities: `b c`, rows sum to 1.
        labels: `b`.
        bins: Number of bins between 0 and 1.
    """
    if probabilities.ndim != 2 or not len(probabilities):
        raise InputError(f"probabilities of shape (b, c) with b > 0 expected, got {tuple(probabilities.shape)}")
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64, device=probabilities.device)
    gaps = sums.index_add(0, place, correct - confidence)
    return gaps.abs().sum().item() / len(labels)
