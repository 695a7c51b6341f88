"""Judges explanations where the truth is known: critters, whose parts' exact worth to the model can be computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError, unknown_name
from ..data.critter_rules import SLOTS
from ..data.critters import Critters
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .benchmark import check_classes
from .conventions import Conventions
from .localisation import energy_pointing_game
from .maps import MapMethod, placed_explanations
from .methods import METHODS, map_method, quick_methods, without_missing
from .part_truth import evidence_slots, part_renders, seen, shapley_values, subset_logits, swapped_to_nearest
from .statistics import Interval, bootstrap_interval
from .truth_scores import contrast, correctness, idle_parts, mass_share, part_curves, part_sums

ORACLE = "oracle"
CONTROLS = ("random", "centre", "uniform", ORACLE)  # rows of every table


class TruthScore(NamedTuple):
    """A score of maps against the truth."""

    title: str
    best: Literal["highest", "lowest"]
    meaning: str

    @property
    def heading(self) -> str:
        """Its title, with the direction that is better."""
        return f"{self.title} {'↑' if self.best == 'highest' else '↓'}"


TRUTH_SCORES = {
    "correctness": TruthScore(
        "correctness", "highest", "Spearman's correlation, over the parts, of the map's sum and the exact Shapley value"
    ),
    "error": TruthScore(
        "error", "lowest", "squared error of the map's sums over parts after the best scale, of the Shapley values' own"
    ),
    "sufficiency": TruthScore(
        "sufficiency", "highest", "logit with the map's first parts alone: 1 for the best of all orders, 0 the worst"
    ),
    "necessity": TruthScore(
        "necessity", "highest", "logit without the map's first parts: 1 for the best of all orders, 0 for the worst"
    ),
    "contrast": TruthScore(
        "contrast",
        "highest",
        "share of images where the class's map, less that of the class which a swap of parts makes, peaks in these "
        "parts; of those whose prediction follows the swap",
    ),
    "rule_parts": TruthScore(
        "in rule parts", "highest", "share of the positive evidence in the parts that the rule uses"
    ),
    "idle_parts": TruthScore(
        "in idle parts", "lowest", "share of the positive evidence in parts worth less than 5 % of the image's largest"
    ),
    "distractors": TruthScore("on distractors", "lowest", "share of the positive evidence on distractors"),
    "background": TruthScore(
        "off creature", "lowest", "share of the positive evidence outside the creature, distractors included"
    ),
}


@dataclass
class MethodTruth:
    """One method's scores: an entry an image, NaN where there is none; and mean curves, in logits."""

    name: str
    kind: str
    scores: dict[str, Tensor] = field(default_factory=dict)  # name from TRUTH_SCORES → (n,)
    kept: Tensor = field(default_factory=lambda: torch.zeros(0))  # (parts + 1,), with the map's first parts alone
    removed: Tensor = field(default_factory=lambda: torch.zeros(0))  # (parts + 1,), without them


@dataclass
class Truth:
    """What each part is worth to a model, and how the maps of several methods agree with it."""

    model: ImageClassifier
    conventions: Conventions
    ids: list[str]  # n, as all tensors
    labels: Tensor  # (n,)
    predicted: Tensor  # (n,)
    classes: Tensor  # (n,), whose logit and maps were looked at
    values: Tensor  # n 32, the logit with every subset of the parts
    follows: Tensor  # (n,) bool, whether the prediction is right before and after the rule's swap
    rule_slots: tuple[str, ...]
    methods: list[MethodTruth]

    @property
    def shapley(self) -> Tensor:
        """The exact worth of each part, `n parts`, in logits."""
        return shapley_values(self.values)

    def accuracy(self) -> Interval:
        """Share of images classified rightly."""
        return self.interval((self.predicted == self.labels).double())

    def worth(self) -> dict[str, Interval]:
        """The mean Shapley value of each part."""
        return {slot: self.interval(own) for slot, own in zip(SLOTS, self.shapley.T, strict=True)}

    def rule_share(self) -> Interval:
        """How much of the parts' worth, without regard to sign, is that of the parts that the rule uses."""
        sizes = self.shapley.abs()
        whole = sizes.sum(1)
        used = sizes[:, [slot in self.rule_slots for slot in SLOTS]].sum(1)
        return self.interval(used / whole.where(whole > 0, torch.nan))

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by the conventions."""
        return bootstrap_interval(
            scores, self.conventions.bootstrap, self.conventions.confidence, self.conventions.seed
        )


def truth_methods(names: Sequence[str] | None) -> list[str]:
    """`names`, by default the quick methods, and those of `CONTROLS` that are not among them.

    Raises:
        InputError: No such method.
    """
    for name in names or ():
        if name not in METHODS and name != ORACLE:
            raise unknown_name("explanation method", name, [*METHODS, ORACLE])
    return list(dict.fromkeys([*(quick_methods() if names is None else names), *CONTROLS]))


def oracle(model: ImageClassifier, dataset: Critters) -> MapMethod:
    """What a map that knows the rule would show: 1 on the parts that speak for the class, 0 elsewhere."""

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        scenes = dataset.scenes(indices.cpu().numpy())
        slots = torch.from_numpy(evidence_slots(scenes, dataset.rule, classes.cpu().numpy()))
        parts = seen(scenes, dataset.size, model.preprocess).parts
        return (parts & slots[..., None, None]).any(1).float().to(images.device)

    return MapMethod(ORACLE, "control", explain)


def judge_truth(
    model: ImageClassifier,
    dataset: Critters,
    *,
    methods: Sequence[str] | None = None,
    conventions: Conventions | None = None,
    batch_size: int = 16,
    max_explained: int | None = None,
    progress: bool = True,
) -> Truth:
    """The exact worth of every part to `model`, and the maps of `methods` against it: 33 forwards an image for all.

    The model is left as it was found. "built-in" is passed over for a black box, which has no map.

    Args:
        model: On the device where it shall run.
        dataset: Critters; the model's own preprocessing is applied.
        methods: Names from `METHODS`, or "oracle"; `CONTROLS` come with them. None: those that are quick and installed.
        conventions: `target`, `placement`, and those of the intervals, count here.
        batch_size: Images drawn with all their subsets at a time; results do not depend on it.
        max_explained: Look at the first so many images only; classes are balanced whatever it is. None: all.
        progress: Show a bar.

    Raises:
        InputError: Unknown method, other classes than the model's, a number below 1.
    """
    check_classes(model, dataset)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if max_explained is not None and max_explained < 1:
        raise InputError(f"at least 1 image is to be explained, got {max_explained}")
    judged = [
        oracle(model, dataset) if name == ORACLE else map_method(name, model)
        for name in without_missing(truth_methods(methods), model)
    ]
    conventions = conventions or Conventions()
    judge = _Judge(model, dataset, judged, conventions)
    numbers = torch.arange(len(dataset))[:max_explained].split(batch_size)
    with eval_mode(model), torch.no_grad():
        parts = [judge.batch(own) for own in tqdm(numbers, desc="judging", unit="batch", disable=not progress)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Truth(
        model=model,
        conventions=conventions,
        ids=[f"{dataset.split}/{number}" for part in numbers for number in part.tolist()],
        labels=found["labels"],
        predicted=found["predicted"],
        classes=found["classes"],
        values=found["values"],
        follows=found["follows"],
        rule_slots=dataset.rule.slots,
        methods=[
            MethodTruth(
                method.name,
                method.kind,
                {name: found[name][:, row] for name in TRUTH_SCORES},
                found["kept"][:, row].nanmean(0),
                found["removed"][:, row].nanmean(0),
            )
            for row, method in enumerate(judged)
        ],
    )


class _Judge:
    """Judges one batch after the other."""

    def __init__(
        self, model: ImageClassifier, dataset: Critters, methods: Sequence[MapMethod], conventions: Conventions
    ) -> None:
        self._model, self._dataset, self._methods, self._conventions = model, dataset, methods, conventions
        self._device = next(model.parameters()).device

    def batch(self, numbers: Tensor) -> dict[str, Tensor]:
        """What is found of the images of these numbers, images first, methods next."""
        scenes = self._dataset.scenes(numbers.numpy())
        size, preprocess, device = self._dataset.size, self._model.preprocess, self._device
        images, parts, creature, distractors, _ = (each.to(device) for each in seen(scenes, size, preprocess))
        labels = self._dataset.labels[numbers].to(device)
        predicted = self._model(images, explain=0).logits.argmax(1)
        classes = predicted if self._conventions.target == "predicted" else labels
        renders = part_renders(scenes, size, preprocess).to(device)
        values = subset_logits(self._logits, renders, classes)
        shapley = shapley_values(values)

        swapped = swapped_to_nearest(scenes, self._dataset.rule)
        others = torch.from_numpy(swapped.classes).to(device)
        changed = seen(swapped.scenes, size, preprocess).images.to(device)
        follows = (predicted == labels) & (self._model(changed, explain=0).logits.argmax(1) == others)
        are_swapped = torch.from_numpy(swapped.slots).to(device)[..., None, None]
        is_rule_part = torch.tensor([slot in self._dataset.rule.slots for slot in SLOTS], device=device)

        maps = self._maps(images, classes, numbers)
        sums = part_sums(maps, parts)
        correct, curves = correctness(sums, shapley), part_curves(values, sums)
        # Where the prediction follows the swap, the classes looked at are the labels, whatever the conventions.
        differs = contrast(maps, self._maps(images, others, numbers), (parts & are_swapped).any(1), follows)
        scores = {
            "correctness": correct.rank_correlation,
            "error": correct.error,
            "sufficiency": curves.sufficiency,
            "necessity": curves.necessity,
            "contrast": differs,
            "rule_parts": energy_pointing_game(maps, parts[:, is_rule_part].any(1)),
            "idle_parts": mass_share(maps, idle_parts(parts, shapley)),
            "distractors": mass_share(maps, distractors),
            "background": mass_share(maps, ~creature),
            "kept": curves.kept,
            "removed": curves.removed,
        }
        known = {"labels": labels, "predicted": predicted, "classes": classes, "values": values, "follows": follows}
        return {
            **{name: each.cpu() for name, each in known.items()},
            **{name: each.transpose(0, 1).cpu() for name, each in scores.items()},
        }

    def _maps(self, images: Tensor, classes: Tensor, numbers: Tensor) -> Tensor:
        """The maps of all methods at the images' resolution: `m b h w`."""
        grid = self._conventions.placing(self._model.grid)
        return placed_explanations(self._methods, images, classes, numbers, grid)

    def _logits(self, images: Tensor, classes: Tensor) -> Tensor:
        return self._model(images, explain=0).logits.float().gather(1, classes[:, None])[:, 0]
