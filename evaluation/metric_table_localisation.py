"""The table of metrics, continued: is the evidence where a mask, a box or a mosaic has it?"""

from . import sweeps
from .judged import Metric
from .wsol import max_box_acc_v2, pixel_average_precision

LOCALISATION = (
    Metric(
        "energy_pointing_game",
        "energy in mask",
        "highest",
        sweeps.energy_in_mask,
        lambda chosen: (
            f"share of the positive evidence for {chosen.explained_class} that lies inside the mask of the "
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
            f"{chosen.explained_class} lies inside it; higher is better"
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
        "difull",
        "DiFull",
        "highest",
        None,
        lambda chosen: (
            "as grid_pointing, of a classifier in which the network sees each quarter alone and the logit depends on "
            "its own quarter, so that evidence elsewhere is the method's error (Rao et al. 2022); 0.25 by chance, 1 is "
            "right"
        ),
    ),
    Metric(
        "dipart",
        "DiPart",
        "highest",
        None,
        lambda chosen: (
            "as difull, of a classifier whose network sees the whole mosaic, but whose head sees its quarter's "
            "features alone (Rao et al. 2022); 0.25 by chance; 1 is right for maps of the features"
        ),
    ),
)
