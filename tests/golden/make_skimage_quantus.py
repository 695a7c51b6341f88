"""Makes skimage_quantus.npz: what scikit-image 0.26 and Quantus 0.6 return for maps without ties.

Run where both are installed (python tests/golden/make_skimage_quantus.py); the tests only read the file.
Quantus' EfficientMPRT explains through a callback: here it hands out `before` for the model as it is and `after` once
the last of its layers is randomised, so that the score is about these maps alone.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import quantus
import torch
from skimage.metrics import structural_similarity
from torch import nn

BINS = 100
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}


def full_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over all cells, borders included, in the data range of both maps."""
    first, second = np.double([first, second])
    data_range = max(first.max(), second.max()) - min(first.min(), second.min())
    return float(structural_similarity(first, second, data_range=data_range, **SSIM)[1].mean())


def main() -> None:
    warnings.simplefilter("ignore")
    random = np.random.default_rng(0)
    before = random.normal(size=(4, 24, 17)).cumsum(1).cumsum(2).astype(np.float32)  # smooth, signed
    after = random.normal(size=(4, 24, 17)).astype(np.float32)
    nearly = before + random.normal(size=before.shape).astype(np.float32)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    start = [parameter.clone() for parameter in network.parameters()]

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        is_start = all(torch.equal(mine, first) for mine, first in zip(model.parameters(), start, strict=True))
        return (before if is_start else after)[:, None]

    images = random.normal(size=(4, 1, 24, 17)).astype(np.float32)
    options: dict[str, Any] = {"disable_warnings": True, "abs": False, "normalise": False}
    call: dict[str, Any] = {"model": network, "x_batch": images, "y_batch": np.zeros(4, int), "explain_func": explain}
    rise = quantus.EfficientMPRT(complexity_func_kwargs={"n_bins": BINS}, **options)(**call)
    last = quantus.MPRT(return_last_correlation=True, return_average_correlation=False, **options)(**call)
    entropy = quantus.functions.complexity_func.discrete_entropy
    flat_ssim = quantus.functions.similarity_func.ssim
    np.savez_compressed(
        Path(__file__).with_name("skimage_quantus.npz"),
        before=before,
        after=after,
        nearly=nearly,
        ssim=[full_ssim(*pair) for pair in zip(before, nearly, strict=True)],
        ssim_after=[full_ssim(*pair) for pair in zip(before, after, strict=True)],
        quantus_ssim=flat_ssim(before.reshape(4, -1), nearly.reshape(4, -1), batched=True),
        entropy_before=[entropy(map_, map_, n_bins=BINS) for map_ in before],
        rise=rise,
        last_correlation=last,
        entropy_constant=entropy(np.ones((5, 5)), np.ones((5, 5)), n_bins=BINS),
    )


if __name__ == "__main__":
    main()
