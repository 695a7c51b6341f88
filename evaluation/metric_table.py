"""The table of metrics: what finds each, which way is better, what it means. First: does the model follow the map?"""

from . import sweeps
from .conventions import Conventions
from .judged import Metric
from .metric_table_localisation import LOCALISATION
from .metric_table_maps import OF_MAPS

_BASELINES = {"mean_colour": "the mean colour", "image_mean": "the image's own mean", "blur": "the blurred image"}


def _curve(chosen: Conventions) -> str:
    return (
        f"area under the curve of the {chosen.output} of {chosen.explained_class}, from none to all pixels in "
        f"{chosen.steps} steps, the map's highest first"
    )


def _scale(curve: str) -> str:
    return (
        f"{curve}'s area on the image's own scale: 0 is the mean of five random orders of its 5 × 5 patches, 1 the "
        "best order of them that a greedy search finds; higher is better, also where other images or models are easier"
    )


FAITHFULNESS = (
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
        "insertion_normalised",
        "insertion, on scale",
        "highest",
        sweeps.insertion_on_scale,
        lambda chosen: _scale("insertion"),
    ),
    Metric(
        "deletion_normalised",
        "deletion, on scale",
        "highest",
        sweeps.deletion_on_scale,
        lambda chosen: _scale("deletion"),
    ),
    Metric(
        "road",
        "ROAD",
        "highest",
        sweeps.removal,
        lambda chosen: (
            f"half of what the {chosen.output} of {chosen.explained_class} keeps when the map's lowest 10, 20 … 90 % "
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
            f"the {chosen.output} of {chosen.explained_class} when the map's highest 10, 20 … 90 % of the pixels are "
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
            f"{chosen.explained_class} when it alone is set to the mean colour (IDSDS, Hesse et al. 2024); 0 by "
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
            f"logit of {chosen.explained_class} when they are set to the mean colour (Bhatt et al. 2020); 0 by "
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
)

METRIC_TABLE = (*FAITHFULNESS, *LOCALISATION, *OF_MAPS)
