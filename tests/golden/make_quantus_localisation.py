"""What Quantus 0.6.0 gives for localisation and compactness, with its inputs: writes quantus_localisation.npz.

Needs `pip install quantus==0.6.0`; test_localisation.py and test_compactness.py compare with the file.
"""

import warnings
from pathlib import Path

import numpy as np
import quantus

warnings.filterwarnings("ignore")
generator = np.random.default_rng(0)
height, width = 20, 24
positive = generator.random((5, height, width)).astype(np.float32)  # no two values are equal
signed = generator.normal(size=(5, height, width)).astype(np.float32)
rows, columns = np.mgrid[:height, :width]
masks = np.stack([(abs(rows - 6 - i) < 3 + i) & (abs(columns - 9 + i) < 4 + i) for i in range(5)])
empty = masks.copy()
empty[0] = False


def scores(metric, maps: np.ndarray, truth: np.ndarray | None = None, batch_size: int = 64, **options) -> np.ndarray:
    """The metric's scores; a sentence where it raises. Its batch has three channels, as images have."""
    images = np.zeros((len(maps), 3, height, width), np.float32)
    segments = None if truth is None else truth[:, None].astype(np.float32)
    try:
        found = metric(disable_warnings=True, display_progressbar=False, **options)(
            model=None,
            x_batch=images,
            y_batch=np.zeros(len(maps), np.int64),
            a_batch=maps[:, None].copy(),
            s_batch=segments,
            batch_size=batch_size,
        )
    except Exception as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array(found, dtype=np.float64)


as_they_are = {"abs": False, "normalise": False}
results = {
    "mass_positive": scores(quantus.RelevanceMassAccuracy, positive, masks, **as_they_are),
    "mass_signed": scores(quantus.RelevanceMassAccuracy, signed, masks, **as_they_are),
    "rank_signed": scores(quantus.RelevanceRankAccuracy, signed, masks, **as_they_are),
    "top_50_signed": scores(quantus.TopKIntersection, signed, masks, k=50, **as_they_are),
    "auc_signed": scores(quantus.AUC, signed, masks, **as_they_are),
    "pointing_signed": scores(quantus.PointingGame, signed, masks, **as_they_are),
    "pointing_empty": scores(quantus.PointingGame, signed, empty, **as_they_are),
    "pointing_weighted": scores(quantus.PointingGame, np.where(masks, 1, 0) + positive / 2, masks, weighted=True),
    "attribution_localisation": scores(quantus.AttributionLocalisation, positive, masks),
    "attribution_localisation_signed": scores(quantus.AttributionLocalisation, signed, masks),
    "attribution_localisation_weighted_5": scores(quantus.AttributionLocalisation, positive, masks, weighted=True),
    "attribution_localisation_weighted_4": scores(
        quantus.AttributionLocalisation, positive[:4], masks[:4], weighted=True
    ),
    "sparseness_signed": scores(quantus.Sparseness, signed),
    "complexity_signed": scores(quantus.Complexity, signed),
}
for name, values in results.items():
    print(name, values)
np.savez_compressed(
    Path(__file__).with_name("quantus_localisation.npz"), positive=positive, signed=signed, masks=masks, **results
)
