"""The table of metrics, continued: is the map compact and stable, and does it depend on class, model and place?"""

from functools import partial

from . import sweeps
from .conventions import Conventions
from .judged import Metric


def _attack(chosen: Conventions) -> str:
    return (
        f"under an attack on the pixels outside the box of the map's highest 5 % (projected gradient descent, at most "
        f"0.1 in normalised units, 20 steps of 0.01) that lowers its highest value; the map is that of "
        f"{chosen.explained_class}, or of its strongest prototype where the head has prototypes; of the built-in map "
        "alone, since others have no gradient in general; lower is better (Sacha et al. 2024)"
    )


def _stability(what: str, chosen: Conventions) -> str:
    return (
        f"structural similarity of the maps of the image and of the image {what}, the class held; a map that ignores "
        "the image has 1, higher is more stable"
    )


OF_MAPS = (
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
            f"structural similarity of the maps of {chosen.explained_class} and of another class drawn at "
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
