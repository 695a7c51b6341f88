"""How each metric was measured, in words: the sentences that stand beside its number in a model card."""

from dataclasses import asdict

from ..models import Metric
from .benchmark import Evaluation
from .conventions import Conventions
from .metrics import METRICS
from .statistics import Interval

_ATTACK = (
    "under an attack on the strongest prototype of the label from outside the box of its map's highest 5 % (projected "
    "gradient descent, at most 0.1 in normalised units, 20 steps of 0.01), mean over at most 32 images, evenly spread; "
    "0 if all that counts is where the map shows it, lower is better (Sacha et al. 2024)"
)
_PROTOTYPES = {
    "prototypes": "how many the head has left",
    "used_per_decision": "how many add at least a tenth of the largest points to the predicted class, mean over images",
    "local_size": "how many are more active than a tenth of the most active one, mean over images",
    "global_size": "how many are used for the decision on at least one image",
    "sparsity": "share of the weights between classes and prototypes that are 0",
    "consistency": "share of prototypes that find one and the same part in at least 80 % of the images of their "
    "classes, in boxes of 72 of 224 pixels",
    "stability": "share of images in which a prototype hits the same parts when noise is added to the image (0.2 "
    "standard deviations of ImageNet's pixels, cut at 0.25), in boxes of 72 of 224 pixels",
    "purity": "share of a prototype's ten strongest patches, 32 of 224 pixels wide, that show one and the same part, "
    "left and right ones taken together",
    "purity_receptive_field": "as purity, in the receptive field of a cell",
    "plc": f"how little the regions of the highest tenth of the prototype's map overlap, 100 (1 − IoU), {_ATTACK}",
    "pac": f"by how many percent the prototype's activation falls, {_ATTACK}",
    "prc": f"by how many places the prototype falls among all, by activation, {_ATTACK}",
    "ac": f"accuracy lost, in points, {_ATTACK}",
}
_PRECISION = "mean over classes of the average precision of their ranking of the images, without interpolation"
_CALIBRATION = (
    "gap between confidence and accuracy, mean over 15 bins of equal width, weighted by count (Guo et al. 2017)"
)
_CHANCE = "the same, of prototypes found at random cells"


def card_metrics(evaluation: Evaluation, data: str, split: str) -> tuple[Metric, ...]:
    """Every score of an evaluation on the `split` of `data`, with its protocol; those that no image has are left out.

    What a map costs is not among them: that belongs to the machine, and stands in results.json.
    """
    chosen, images = evaluation.conventions, len(evaluation.ids)
    found: list[Metric] = []

    def add(name: str, value: float | Interval | None, protocol: str, of_map: str | None = None) -> None:
        if isinstance(value, Interval):
            if value.images:
                told = f"{protocol}; {_interval(chosen)}"
                place = (told, data, split, value.images, value.low, value.high, of_map)
                found.append(Metric(name, value.mean, *place))
        elif value is not None and value == value:
            found.append(Metric(name, value, protocol, data, split, images, map=of_map))

    for name, interval in evaluation.accuracy().items():
        first = "first" if name == "top1" else f"among the first {name.removeprefix('top')}"
        told = f"share of images whose class is ranked {first}; equal logits count against it"
        add(name, interval, _PRECISION if name == "map" else told)
    if evaluation.targets is None:
        add("expected_calibration_error", evaluation.calibration_error(), _CALIBRATION)
    gaps = evaluation.gaps[~evaluation.gaps.isnan()]
    add(
        "completeness_gap",
        gaps.max().item() if len(gaps) else None,
        "how far map and offset of the predicted class miss what they add up to, relative to its largest value over "
        "the classes, at the worst image",
        "built-in",
    )
    for method in evaluation.methods:
        for name in method.metrics:
            add(name, evaluation.score(method, name), _map_protocol(name, chosen), method.name)
    share = "share of the image that its mask covers: what a map that knows nothing gets in both pointing games"
    add("mask_share", evaluation.interval(evaluation.chance), share)
    for name, value in asdict(evaluation.prototypes).items() if evaluation.prototypes else ():
        of_what = name.removesuffix("_chance")
        add(name, value, _PROTOTYPES[of_what] + (f": {_CHANCE}" if name != of_what else ""))
    return tuple(found)


def _map_protocol(metric: str, chosen: Conventions) -> str:
    placed = (
        "maps stretched over the image" if chosen.placement == "stretched" else "cells placed at their field's centre"
    )
    return f"{METRICS[metric].protocol(chosen)}; {placed}"


def _interval(chosen: Conventions) -> str:
    return f"in brackets the {chosen.confidence:.0%} bootstrap interval over images ({chosen.bootstrap} resamples)"
