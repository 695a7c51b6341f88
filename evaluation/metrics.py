"""The metrics by name: what finds each, which way is better, and what it means in words."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..common.errors import unknown_name
from .compactness import gini, normalised_entropy
from .conventions import Conventions
from .judged import CURVE, POOLED, Judged, Metric
from .localisation import energy_pointing_game, pointing_game, relevance_rank_accuracy, roc_auc
from .perturbation import deletion, insertion
from .wsol import max_box_acc_v2, max_box_hits, pixel_average_precision, pixel_histograms


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


def _rank_accuracy(judged: Judged) -> dict[str, Tensor]:
    return {"relevance_rank_accuracy": relevance_rank_accuracy(judged.placed_maps, judged.evidence)}


def _roc_auc(judged: Judged) -> dict[str, Tensor]:
    return {"roc_auc": roc_auc(judged.placed_maps, judged.evidence)}


def _boxes(judged: Judged) -> dict[str, Tensor]:
    hits = max_box_hits(judged.placed_maps, judged.boxes, judged.size).float()
    return {"max_box_acc_v2" + POOLED: hits.masked_fill(hits < 0, torch.nan)}


def _pixels(judged: Judged) -> dict[str, Tensor]:
    histograms = pixel_histograms(judged.placed_maps, judged.evidence).float()
    is_empty = ~judged.evidence.flatten(1).any(1)
    return {"pxap" + POOLED: histograms.masked_fill(is_empty[:, None, None], torch.nan)}


def _compactness(judged: Judged) -> dict[str, Tensor]:
    return {
        "gini": torch.cat([gini(maps) for maps in judged.maps]),
        "entropy": torch.cat([normalised_entropy(maps) for maps in judged.maps]),
        "gini_of_pixels": gini(judged.placed_maps),
        "entropy_of_pixels": normalised_entropy(judged.placed_maps),
    }


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
    Metric(
        "relevance_rank_accuracy",
        "rank accuracy",
        "highest",
        _rank_accuracy,
        lambda chosen: (
            "share of the mask among as many of the map's highest pixels as it has, mean over the images that "
            "have one; higher is better"
        ),
        needs_mask=True,
    ),
    Metric(
        "roc_auc",
        "ROC-AUC",
        "highest",
        _roc_auc,
        lambda chosen: (
            "area under the ROC curve of the map's pixels as a detector of the mask's, mean over the images "
            "that have one; 0.5 by chance, higher is better"
        ),
        needs_mask=True,
    ),
    Metric(
        "max_box_acc_v2",
        "MaxBoxAccV2",
        "highest",
        _boxes,
        lambda chosen: (
            "share of the images with a box in which the box of some contour of the thresholded map overlaps "
            "it by 30, 50 and 70 %, each at its best threshold for the set, mean of the three (Choe et al. 2020); higher is "
            "better"
        ),
        needs_mask=True,
        pool=max_box_acc_v2,
    ),
    Metric(
        "pxap",
        "PxAP",
        "highest",
        _pixels,
        lambda chosen: (
            "area under the curve of precision and recall of all pixels of the set together, as the map's "
            "threshold falls (Choe et al. 2020), over the images with a mask; by chance the masks' share of the pixels, "
            "higher is better"
        ),
        needs_mask=True,
        pool=pixel_average_precision,
    ),
    Metric(
        "gini",
        "Gini",
        "highest",
        _compactness,
        lambda chosen: (
            "Gini index of the map's absolute values at its own resolution, which it depends on: 0 all equal, "
            "higher is more compact"
        ),
    ),
    Metric(
        "entropy",
        "entropy",
        "lowest",
        _compactness,
        lambda chosen: (
            "entropy of the shares of the map's absolute values at its own resolution, by that of equal shares: "
            "1 all equal, lower is more compact"
        ),
    ),
    Metric(
        "gini_of_pixels",
        "Gini, pixels",
        "highest",
        _compactness,
        lambda chosen: "as gini, of the map at the image's resolution",
    ),
    Metric(
        "entropy_of_pixels",
        "entropy, pixels",
        "lowest",
        _compactness,
        lambda chosen: "as entropy, of the map at the image's resolution",
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
