"""The table of metrics: what finds each, which way is better, and what it means in words."""

from functools import partial

from . import sweeps
from .conventions import Conventions
from .judged import Metric
from .wsol import max_box_acc_v2, pixel_average_precision

_BASELINES = {"mean_colour": "the mean colour", "image_mean": "the image's own mean", "blur": "the blurred image"}


def explained_class(chosen: Conventions) -> str:
    """Whose map is judged, in words."""
    return "the predicted class" if chosen.target == "predicted" else "the label"


def _curve(chosen: Conventions) -> str:
    return (
        f"area under the curve of the {chosen.output} of {explained_class(chosen)}, from none to all pixels in "
        f"{chosen.steps} steps, the map's highest first"
    )


def _attack(chosen: Conventions) -> str:
    return (
        f"under an attack on the pixels outside the box of the map's highest 5 % (projected gradient descent, at most "
        f"0.1 in normalised units, 20 steps of 0.01) that lowers its highest value; the map is that of "
        f"{explained_class(chosen)}, or of its strongest prototype where the head has prototypes; of the built-in map "
        "alone, since others have no gradient in general; lower is better (Sacha et al. 2024)"
    )


def _stability(what: str, chosen: Conventions) -> str:
    return (
        f"structural similarity of the maps of the image and of the image {what}, the class held; a map that ignores "
        "the image has 1, higher is more stable"
    )


METRIC_TABLE = (
    Metric(
        "insertion",
        "insertion",
        "highest",
        sweeps.insertion_curve,
        lambda chosen: (
            f"{_curve(chosen)}, as they are restored to {_BASELINES[chosen.insertion_baseline]} (RISE); higher is "
            "better, between maps of one model"
        ),
        is_quick=True,
    ),
    Metric(
        "deletion",
        "deletion",
        "lowest",
        sweeps.deletion_curve,
        lambda chosen: (
            f"{_curve(chosen)}, as they are replaced by {_BASELINES[chosen.deletion_baseline]} (RISE); lower is "
            "better, between maps of one model"
        ),
        is_quick=True,
    ),
    Metric(
        "road",
        "ROAD",
        "highest",
        sweeps.removal,
        lambda chosen: (
            f"half of what the {chosen.output} of {explained_class(chosen)} keeps when the map's lowest 10, 20 … 90 % "
            "of the pixels are imputed from their neighbours (LeRF), less what it keeps when the highest are (MoRF), "
            "mean (Rong et al. 2022); 0 by chance, higher is better, between maps of one model"
        ),
    ),
    Metric(
        "road_morf",
        "ROAD MoRF",
        "lowest",
        sweeps.removal,
        lambda chosen: (
            f"the {chosen.output} of {explained_class(chosen)} when the map's highest 10, 20 … 90 % of the pixels are "
            "imputed from their neighbours, mean (Rong et al. 2022); lower is better, between maps of one model"
        ),
    ),
    Metric(
        "road_lerf",
        "ROAD LeRF",
        "highest",
        sweeps.removal,
        lambda chosen: "as road_morf, of the map's lowest pixels; higher is better",
    ),
    Metric(
        "single_deletion",
        "single deletion",
        "highest",
        sweeps.patch_ranking,
        lambda chosen: (
            "rank correlation, over 4 × 4 patches, of the map's sum in a patch and the fall of the logit of "
            f"{explained_class(chosen)} when it alone is set to the mean colour (IDSDS, Hesse et al. 2024); 0 by "
            "chance, higher is better; between models only if they were trained with patch_deletion"
        ),
    ),
    Metric(
        "mu_fidelity",
        "μFidelity",
        "highest",
        sweeps.random_deletions,
        lambda chosen: (
            "rank correlation, over 200 random fifths of 9 × 9 patches, of the map's sum inside and the fall of the "
            f"logit of {explained_class(chosen)} when they are set to the mean colour (Bhatt et al. 2020); 0 by "
            "chance, higher is better"
        ),
    ),
    Metric(
        "infidelity",
        "infidelity",
        "lowest",
        sweeps.random_deletions,
        lambda chosen: (
            "share of the logit's squared falls under those deletions that the map's sums, times the best factor, "
            "leave unexplained (Yeh et al. 2019, normalised); 0 to 1, lower is better; blind to the map's overall sign"
        ),
    ),
    Metric(
        "energy_pointing_game",
        "energy in mask",
        "highest",
        sweeps.energy_in_mask,
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
        sweeps.pointing,
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
        sweeps.rank_accuracy,
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
        sweeps.detection,
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
        sweeps.box_overlaps,
        lambda chosen: (
            "share of the images with a box in which the box of some contour of the thresholded map overlaps it by "
            "30, 50 and 70 %, each at its best threshold for the set, mean of the three (Choe et al. 2020); higher "
            "is better"
        ),
        needs_mask=True,
        pool=max_box_acc_v2,
    ),
    Metric(
        "pxap",
        "PxAP",
        "highest",
        sweeps.pixel_values,
        lambda chosen: (
            "area under the curve of precision and recall of all pixels of the set together, as the map's "
            "threshold falls (Choe et al. 2020), over the images with a mask; by chance the masks' share of the "
            "pixels, higher is better"
        ),
        needs_mask=True,
        pool=pixel_average_precision,
    ),
    Metric(
        "grid_pointing",
        "GridPG",
        "highest",
        None,
        lambda chosen: (
            "share of the positive evidence for the class of each quarter of a mosaic of four images that lies in its "
            "quarter, mean over mosaics of images of which the model is sure by 99 % (Rao et al. 2022); 0.25 by "
            "chance, higher is better"
        ),
    ),
    Metric(
        "gini",
        "Gini",
        "highest",
        sweeps.compactness,
        lambda chosen: (
            "Gini index of the map's absolute values at its own resolution, which it depends on: 0 all equal, "
            "higher is more compact"
        ),
    ),
    Metric(
        "entropy",
        "entropy",
        "lowest",
        sweeps.compactness,
        lambda chosen: (
            "entropy of the shares of the map's absolute values at its own resolution, by that of equal shares: "
            "1 all equal, lower is more compact"
        ),
    ),
    Metric(
        "gini_of_pixels",
        "Gini, pixels",
        "highest",
        sweeps.compactness,
        lambda chosen: "as gini, of the map at the image's resolution",
    ),
    Metric(
        "entropy_of_pixels",
        "entropy, pixels",
        "lowest",
        sweeps.compactness,
        lambda chosen: "as entropy, of the map at the image's resolution",
    ),
    Metric(
        "max_sensitivity",
        "max-sensitivity",
        "lowest",
        sweeps.stability,
        lambda chosen: (
            "largest change of the map, relative to its size, under ten draws of uniform noise of ±0.02 in "
            "normalised units, the class held (Yeh et al. 2019); a map that ignores the image has 0, lower is more "
            "stable"
        ),
    ),
    *(
        Metric(
            f"stability_{name}",
            f"SSIM, {name}",
            "highest",
            sweeps.stability,
            partial(_stability, what),
        )
        for name, what in (
            ("noise", "with normal noise of 0.2 of ImageNet's standard deviations"),
            ("jpeg", "stored as JPEG of quality 50"),
            ("shift", "moved by one pixel, the map moved back"),
        )
    ),
    Metric(
        "random_logit",
        "random logit",
        "lowest",
        sweeps.other_class,
        lambda chosen: (
            f"structural similarity of the maps of {explained_class(chosen)} and of another class drawn at "
            "random (Sixt et al. 2020); a map that does not depend on the class has 1, lower is better"
        ),
    ),
    Metric(
        "emprt",
        "eMPRT",
        "highest",
        sweeps.randomisation,
        lambda chosen: (
            "how much the map's entropy rises, relative to itself, when all parameters are drawn anew "
            "(Hedström et al. 2023); higher is better"
        ),
    ),
    Metric(
        "mprt",
        "MPRT",
        "lowest",
        sweeps.randomisation,
        lambda chosen: (
            "rank correlation of the map with that of the model when all parameters are drawn anew (Adebayo "
            "et al. 2018); a map that ignores the model has 1, lower is better"
        ),
    ),
    Metric(
        "plc",
        "PLC",
        "lowest",
        sweeps.attack_outside,
        lambda chosen: (
            "prototypical part location change, 0 to 100: how little the regions of the map's highest tenth before and "
            f"after overlap, 100 (1 − IoU), {_attack(chosen)}"
        ),
    ),
    Metric(
        "pac",
        "PAC",
        "lowest",
        sweeps.attack_outside,
        lambda chosen: (
            "prototypical part activation change, at most 100: by how many percent the map's highest value falls, "
            f"{_attack(chosen)}"
        ),
    ),
)
