"""Interventions on critters: what a map says that a change would do to the logit, against what it does.

A map that adds up makes a claim: what stands here is worth so much. So taking it away should cost the logit that much.
Critters can be drawn again with exactly one thing changed, and nothing has to be guessed about what takes its place.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..common.errors import InputError
from ..data.critter_interventions import drop_distractors, move, recolour, remove, replace_background, swap
from ..data.critter_rules import FACTORS, SLOTS, Rule
from ..data.critter_scenes import Scenes
from ..data.critters import Critters
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .benchmark import check_classes
from .conventions import Conventions
from .maps import MapMethod
from .methods import map_method, without_missing
from .part_truth import Seen, seen, swapped_to_nearest
from .statistics import Interval, bootstrap_interval, pooled_interval

_SEED = 1  # of new backgrounds, colours and places

Region = Callable[[Seen, Seen, Rule], Tensor]  # pictures before and after → b h w bool


class Intervention(NamedTuple):
    """One change to a scene, and where the evidence is that it takes away; None: the change takes none."""

    change: Callable[[Scenes, Rule], Scenes]
    region: Region | None


def _parts_in(slots: Callable[[Rule], Iterable[str]]) -> Region:
    return lambda before, after, rule: before.parts[:, [SLOTS.index(slot) for slot in slots(rule)]].any(1)


def _idle(rule: Rule) -> list[str]:
    """Slots that the rule does not use."""
    return [slot for slot in SLOTS if slot not in rule.slots]


def _other_variants(scenes: Scenes, rule: Rule) -> Scenes:
    """Another variant in each slot that the rule does not use."""
    for slot in _idle(rule):
        scenes = swap(scenes, slot, (scenes.factor(slot) + 1) % len(FACTORS[slot].variants))
    return scenes


def _removing(slot: str) -> Intervention:
    return Intervention(lambda scenes, rule: remove(scenes, slot), _parts_in(lambda rule: [slot]))


INTERVENTIONS: dict[str, Intervention] = {
    **{f"remove {slot}": _removing(slot) for slot in SLOTS},
    "swap to another class": Intervention(
        lambda scenes, rule: swapped_to_nearest(scenes, rule).scenes, _parts_in(lambda rule: rule.slots)
    ),
    "swap idle parts": Intervention(_other_variants, _parts_in(_idle)),
    "recolour idle parts": Intervention(lambda scenes, rule: recolour(scenes, _idle(rule), _SEED), _parts_in(_idle)),
    "drop distractors": Intervention(
        lambda scenes, rule: drop_distractors(scenes), lambda before, after, rule: before.distractors
    ),
    "new background": Intervention(
        lambda scenes, rule: replace_background(scenes, _SEED), lambda before, after, rule: ~before.creature
    ),
    "move": Intervention(lambda scenes, rule: move(scenes, _SEED), None),
}


@dataclass
class Claim:
    """What one method's maps say that a change does to the logit: an entry an image."""

    name: str
    kind: str
    predicted: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass
class Outcome:
    """What a change did, and what was said of it; entries are images."""

    intervention: str
    conventions: Conventions
    real: Tensor  # the logit after the change less that before
    flips: Tensor  # bool: the prediction is another
    claims: list[Claim]  # none where the change takes no evidence away

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by the conventions."""
        chosen = self.conventions
        return bootstrap_interval(scores.double(), chosen.bootstrap, chosen.confidence, chosen.seed)

    def correlation(self, claim: Claim) -> Interval:
        """Pearson's correlation of claim and outcome over the images."""
        return self._pooled(claim, _weighted_correlation)

    def slope(self, claim: Claim) -> Interval:
        """Real change a unit of the claimed one, by least squares through 0; 1 where the map is right in its unit."""
        return self._pooled(claim, _weighted_slope)

    def _pooled(self, claim: Claim, pool: Callable[[Tensor, Tensor], Tensor]) -> Interval:
        chosen = self.conventions
        values = torch.stack([claim.predicted, self.real], 1).double()
        return pooled_interval(values, pool, chosen.bootstrap, chosen.confidence, chosen.seed)


def judge_interventions(
    model: ImageClassifier,
    dataset: Critters,
    methods: Sequence[str],
    *,
    conventions: Conventions | None = None,
    batch_size: int = 32,
    max_explained: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Every one of `INTERVENTIONS` on the images, what it does to the predicted class's logit, and what maps say.

    A map claims that the logit loses what evidence lies in the region that the change takes away. The model is left as
    it was found. "built-in" is passed over for a black box.

    Args:
        model: On the device where it shall run.
        dataset: Critters.
        methods: Names from `METHODS`.
        conventions: Those of the intervals count here.
        batch_size: Images at a time; results do not depend on it.
        max_explained: Look at the first so many images only. None: all.
        progress: Show a bar.

    Raises:
        InputError: Unknown method, other classes than the model's, a number below 1.
    """
    check_classes(model, dataset)
    if max_explained is not None and max_explained < 1:
        raise InputError(f"at least 1 image is to be explained, got {max_explained}")
    conventions = conventions or Conventions()
    judged = [map_method(name, model) for name in without_missing(methods, model)]
    numbers = torch.arange(len(dataset))[:max_explained].split(batch_size)
    with eval_mode(model), torch.no_grad():
        parts = [
            _batch(model, dataset, judged, own)
            for own in tqdm(numbers, desc="intervening", unit="batch", disable=not progress)
        ]
    outcomes = []
    for name, intervention in INTERVENTIONS.items():
        real, flips, predicted = (torch.cat([part[name][place] for part in parts]) for place in range(3))
        claims = [Claim(method.name, method.kind, predicted[:, row]) for row, method in enumerate(judged)]
        outcomes.append(Outcome(name, conventions, real, flips, claims if intervention.region else []))
    return outcomes


def _batch(
    model: ImageClassifier, dataset: Critters, methods: Sequence[MapMethod], numbers: Tensor
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    device = next(model.parameters()).device
    scenes = dataset.scenes(numbers.numpy())
    before = seen(scenes, dataset.size, model.preprocess)
    images = before.images.to(device)
    logits = model(images, explain=0).logits.float()
    classes = logits.argmax(1)
    maps = [spread(method.explain(images, classes, numbers), images.shape[-2:]) for method in methods]
    stacked = torch.stack(maps).cpu() if maps else torch.zeros(0, *images[:, 0].shape).double()
    found = {}
    for name, intervention in INTERVENTIONS.items():
        after = seen(intervention.change(scenes, dataset.rule), dataset.size, model.preprocess)
        changed = model(after.images.to(device), explain=0).logits.float()
        real = (changed - logits).gather(1, classes[:, None])[:, 0]
        if intervention.region:
            region = intervention.region(before, after, dataset.rule).double()
            predicted = -torch.einsum("mbhw,bhw->bm", stacked, region)
        else:
            predicted = torch.zeros(len(images), len(methods)).double()
        found[name] = (real.double().cpu(), (changed.argmax(1) != classes).cpu(), predicted)
    return found


def spread(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps `b h w` as pixels `b H W`, fp64: each cell's evidence evenly over its tile, so that the sum stays."""
    height, width = size
    tiles = functional.interpolate(maps[:, None].double(), (height, width), mode="nearest-exact")[:, 0]
    return tiles * (maps.shape[-2] * maps.shape[-1] / (height * width))


def _weighted_correlation(values: Tensor, counts: Tensor) -> Tensor:
    """Pearson's, of values `n 2` that count `r n` times: `r`, NaN where one side does not vary."""
    shares = counts.double() / counts.sum(1, keepdim=True)
    centred = values.T - (shares @ values)[..., None]  # r 2 n
    covariance = torch.einsum("rn,rin,rjn->rij", shares, centred, centred)
    norm = (covariance[:, 0, 0] * covariance[:, 1, 1]).sqrt()
    return covariance[:, 0, 1] / norm.where(norm > 1e-12, torch.nan)


def _weighted_slope(values: Tensor, counts: Tensor) -> Tensor:
    """Least squares of the second of values `n 2` on the first, through 0: `r`, NaN where the first is 0."""
    sums = counts.double() @ torch.stack([values.prod(1), values[:, 0].square()], 1)
    return sums[:, 0] / sums[:, 1].where(sums[:, 1] > 1e-12, torch.nan)
