"""What finds the scores of a batch, for all methods at once: a function for the metrics that share their work.

Each gives scores `m b` by name, and what else `Sweep` says.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from .attainable import attainable
from .compactness import gini, normalised_entropy
from .disturbances import disturbances
from .fidelity import fidelity
from .judged import CURVE, POOLED, Judged
from .localisation import energy_pointing_game, pointing_game, relevance_rank_accuracy, roc_auc
from .methods import map_method
from .misalignment import attacked_maps, misalignment
from .perturbation import baseline_of, deletion, insertion, perturbation_curves
from .randomising import randomised
from .road import road
from .sanity import parameter_randomisation, random_logit
from .single_deletion import single_deletion
from .stability import map_stability, max_sensitivity
from .wsol import max_box_hits, pixel_histograms


def deletion_curve(judged: Judged) -> dict[str, Tensor]:
    """Deletion and its curve."""
    curves = deletion(
        judged.watched,
        judged.images,
        judged.placed_maps,
        judged.classes,
        judged.step,
        judged.chunk,
        judged.conventions.deletion_baseline,
    )
    return {"deletion": curves.auc, "deletion" + CURVE: curves.scores}


def insertion_curve(judged: Judged) -> dict[str, Tensor]:
    """Insertion and its curve."""
    curves = insertion(
        judged.watched,
        judged.images,
        judged.placed_maps,
        judged.classes,
        judged.step,
        judged.chunk,
        judged.conventions.insertion_baseline,
    )
    return {"insertion": curves.auc, "insertion" + CURVE: curves.scores}


def deletion_on_scale(judged: Judged) -> dict[str, Tensor]:
    """Deletion between chance and the best order of patches."""
    baseline = baseline_of(judged.images, judged.conventions.deletion_baseline)
    return {"deletion_normalised": _on_scale(judged, judged.images, baseline, lowest=True)}


def insertion_on_scale(judged: Judged) -> dict[str, Tensor]:
    """Insertion between chance and the best order of patches."""
    baseline = baseline_of(judged.images, judged.conventions.insertion_baseline)
    return {"insertion_normalised": _on_scale(judged, baseline, judged.images, lowest=False)}


def _on_scale(judged: Judged, start: Tensor, end: Tensor, lowest: bool) -> Tensor:
    sweep = judged.watched, start, end
    how: dict[str, Any] = {"step": judged.step, "chunk": judged.chunk}
    seed = judged.conventions.seed
    scale = attainable(*sweep, judged.classes, judged.indices, lowest=lowest, seed=seed, **how)
    return scale.normalised(perturbation_curves(*sweep, judged.placed_maps, judged.classes, **how).auc)


def removal(judged: Judged) -> dict[str, Tensor]:
    """ROAD, in both orders."""
    found = road(
        judged.watched,
        judged.images,
        judged.placed_maps,
        judged.classes,
        judged.indices,
        seed=judged.conventions.seed,
        chunk=judged.chunk,
    )
    means = found.most_relevant_first.mean(-1), found.least_relevant_first.mean(-1)
    return {"road": found.combined, "road_morf": means[0], "road_lerf": means[1]}


def patch_ranking(judged: Judged) -> dict[str, Tensor]:
    """Single deletion."""
    maps = judged.placed_maps
    return {"single_deletion": single_deletion(judged.logits, judged.images, maps, judged.classes, chunk=judged.chunk)}


def random_deletions(judged: Judged) -> dict[str, Tensor]:
    """μFidelity and infidelity."""
    found = fidelity(
        judged.logits,
        judged.images,
        judged.placed_maps,
        judged.classes,
        judged.indices,
        seed=judged.conventions.seed,
        chunk=judged.chunk,
    )
    return {"mu_fidelity": found.mu_fidelity, "infidelity": found.infidelity}


def energy_in_mask(judged: Judged) -> dict[str, Tensor]:
    """The energy pointing game."""
    return {"energy_pointing_game": energy_pointing_game(judged.placed_maps, judged.evidence)}


def pointing(judged: Judged) -> dict[str, Tensor]:
    """The pointing game."""
    return {"pointing_game": pointing_game(judged.placed_maps, judged.evidence)}


def rank_accuracy(judged: Judged) -> dict[str, Tensor]:
    """Relevance rank accuracy."""
    return {"relevance_rank_accuracy": relevance_rank_accuracy(judged.placed_maps, judged.evidence)}


def detection(judged: Judged) -> dict[str, Tensor]:
    """ROC-AUC."""
    return {"roc_auc": roc_auc(judged.placed_maps, judged.evidence)}


def box_overlaps(judged: Judged) -> dict[str, Tensor]:
    """What MaxBoxAccV2 needs."""
    hits = max_box_hits(judged.placed_maps, judged.boxes, judged.size).float()
    return {"max_box_acc_v2" + POOLED: hits.masked_fill(hits < 0, torch.nan)}


def pixel_values(judged: Judged) -> dict[str, Tensor]:
    """What PxAP needs."""
    histograms = pixel_histograms(judged.placed_maps, judged.evidence).float()
    is_empty = ~judged.evidence.flatten(1).any(1)
    return {"pxap" + POOLED: histograms.masked_fill(is_empty[:, None, None], torch.nan)}


def compactness(judged: Judged) -> dict[str, Tensor]:
    """Gini index and entropy, at both resolutions."""
    return {
        "gini": torch.cat([gini(maps) for maps in judged.maps]),
        "entropy": torch.cat([normalised_entropy(maps) for maps in judged.maps]),
        "gini_of_pixels": gini(judged.placed_maps),
        "entropy_of_pixels": normalised_entropy(judged.placed_maps),
    }


def stability(judged: Judged) -> dict[str, Tensor]:
    """Max-sensitivity, and likeness under disturbances; every method explains again."""
    where: dict[str, Any] = {"chunk": judged.chunk}
    image = (judged.images, judged.classes, judged.indices)
    disturbed = disturbances(judged.model.config.preprocessing, judged.conventions.seed)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for method in judged.methods:
        sensitivity = max_sensitivity(method.explain, *image, seed=judged.conventions.seed, **where)
        found["max_sensitivity"].append(sensitivity.largest)
        for name, alike in map_stability(method.explain, *image, disturbed, **where).items():
            found[f"stability_{name}"].append(alike.ssim)
    return {name: torch.stack(rows) for name, rows in found.items()}


def other_class(judged: Judged) -> dict[str, Tensor]:
    """Likeness to another class's map."""
    image, classes = (judged.images, judged.classes, judged.indices), judged.model.num_classes
    options: dict[str, Any] = {"seed": judged.conventions.seed, "chunk": judged.chunk}
    alike = [random_logit(method.explain, *image, classes, **options).ssim for method in judged.methods]
    return {"random_logit": torch.stack(alike)}


def randomisation(judged: Judged) -> dict[str, Tensor]:
    """Against a model whose parameters are drawn anew."""
    image = (judged.images, judged.classes, judged.indices)
    options: dict[str, Any] = {"seed": judged.conventions.seed, "chunk": judged.chunk}
    options["random_model"] = randomised(judged.model, judged.conventions.seed)
    found = [
        parameter_randomisation(lambda model: map_method(method.name, model), judged.model, *image, **options)  # noqa: B023
        for method in judged.methods
    ]
    return {
        "emprt": torch.stack([of_method.rise for of_method in found]),
        "mprt": torch.stack([of_method.rank_correlation for of_method in found]),
    }


def attack_outside(judged: Judged) -> dict[str, Tensor]:
    """The misalignment attack on the built-in map; NaN for other methods, whose maps have no gradient in general."""
    scores = torch.full((2, len(judged.methods), len(judged.images)), torch.nan, device=judged.images.device)
    rows = [row for row, method in enumerate(judged.methods) if method.kind == "built-in"]
    if rows:
        maps, targets = attacked_maps(judged.model, judged.images, judged.classes)
        grid = judged.conventions.placing(judged.model.grid)
        found = misalignment(maps, judged.images, targets, grid=grid, chunk=judged.chunk)
        scores[:, rows] = torch.stack([found.plc, found.pac])[:, None]
    return {"plc": scores[0], "pac": scores[1]}
