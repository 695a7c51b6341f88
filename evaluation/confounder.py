"""Does a model use what it should not, and do its explanations tell? Critters with a tag that may go with the class.

The tag is taken away and nothing else (a do-intervention), so what it does to the logit is known image by image. A good
map shows evidence on the tag where the tag is used; one that hides it lets a shortcut pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError
from ..data.critter_interventions import remove_tag
from ..data.critters import Critters
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .benchmark import check_classes
from .conventions import Conventions
from .localisation import energy_pointing_game
from .maps import MapMethod, placed_explanations
from .methods import map_method, without_missing
from .part_truth import seen
from .statistics import Interval, bootstrap_interval, pooled_interval


@dataclass
class TagEvidence:
    """What one method shows on the tag: its share of the positive evidence, an entry an image."""

    name: str
    kind: str
    mass: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass
class TagUse:
    """What the tag does to a model, and what maps show of it; tensors have an entry an image."""

    conventions: Conventions
    labels: Tensor
    tags: Tensor  # the class whose tag is shown
    predicted: Tensor  # with the tag: the class whose logit and maps are looked at
    without: Tensor  # the prediction once the tag is gone
    effect: Tensor  # the logit with the tag less that without
    area: Tensor  # the tag's share of the image
    methods: list[TagEvidence]

    @property
    def decides(self) -> Tensor:
        """Whether the prediction is another without the tag."""
        return self.predicted != self.without

    def interval(self, scores: Tensor) -> Interval:
        """Mean and interval by the conventions."""
        chosen = self.conventions
        return bootstrap_interval(scores.double(), chosen.bootstrap, chosen.confidence, chosen.seed)

    def detection(self, method: TagEvidence) -> Interval:
        """Area under the ROC curve of the map's share on the tag, as a sign that the tag decides the prediction.

        0.5 by chance; NaN where the tag decides all predictions or none.
        """
        chosen = self.conventions
        values = torch.stack([method.mass, self.decides.double()], 1)
        return pooled_interval(values, weighted_auroc, chosen.bootstrap, chosen.confidence, chosen.seed)


def weighted_auroc(values: Tensor, counts: Tensor) -> Tensor:
    """The area under the ROC curve of scores for what is 1 against what is 0: `r`; ties count half.

    Args:
        values: `n 2`, score and 0 or 1.
        counts: `r n`, how often each counts.
    """
    scores, is_positive = values[:, 0], values[:, 1] > 0.5
    above = scores[is_positive][:, None] - scores[~is_positive]
    wins = (above > 0).double() + 0.5 * (above == 0)
    positive, negative = counts[:, is_positive].double(), counts[:, ~is_positive].double()
    pairs = positive.sum(1) * negative.sum(1)
    found = torch.einsum("rp,pq,rq->r", positive, wins, negative)
    return found / pairs.where(pairs > 0, torch.nan)


def judge_tag_use(
    model: ImageClassifier,
    dataset: Critters,
    methods: Sequence[str],
    *,
    conventions: Conventions | None = None,
    batch_size: int = 32,
    max_explained: int | None = None,
    progress: bool = True,
) -> TagUse:
    """What the tag does to `model` on `dataset`, and what the maps of `methods` show of it.

    The model is left as it was found. "built-in" is passed over for a black box.

    Args:
        model: On the device where it shall run.
        dataset: Critters, all with a tag: "conflicting" tags tell use from harmless presence.
        methods: Names from `METHODS`.
        conventions: `placement`, and those of the intervals, count here.
        batch_size: Images at a time; results do not depend on it.
        max_explained: Look at the first so many images only. None: all.
        progress: Show a bar.

    Raises:
        InputError: Unknown method, other classes than the model's, images without a tag.
    """
    check_classes(model, dataset)
    if (dataset.scenes(range(len(dataset))).tag < 0).any():
        raise InputError("each image must show a tag: give the data set tag='conflicting' or 'aligned'")
    conventions = conventions or Conventions()
    judged = [map_method(name, model) for name in without_missing(methods, model)]
    numbers = torch.arange(len(dataset))[:max_explained].split(batch_size)
    with eval_mode(model), torch.no_grad():
        parts = [
            _batch(model, dataset, judged, conventions, own)
            for own in tqdm(numbers, desc="removing tags", unit="batch", disable=not progress)
        ]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    mass = found.pop("mass")
    evidence = [TagEvidence(method.name, method.kind, mass[:, row]) for row, method in enumerate(judged)]
    return TagUse(conventions, **found, methods=evidence)


def _batch(
    model: ImageClassifier, dataset: Critters, methods: Sequence[MapMethod], conventions: Conventions, numbers: Tensor
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    scenes = dataset.scenes(numbers.numpy())
    drawn, plain = (seen(own, dataset.size, model.preprocess) for own in (scenes, remove_tag(scenes)))
    images, tags = drawn.images.to(device), drawn.tag.to(device)
    logits, after = (model(own, explain=0).logits.float() for own in (images, plain.images.to(device)))
    classes = logits.argmax(1)
    maps = placed_explanations(methods, images, classes, numbers, conventions.placing(model.grid))
    mass = energy_pointing_game(maps, tags)
    found = {
        "labels": dataset.labels[numbers],
        "tags": torch.from_numpy(scenes.tag),
        "predicted": classes,
        "without": after.argmax(1),
        "effect": (logits - after).gather(1, classes[:, None])[:, 0],
        "area": tags.double().mean((1, 2)),
        "mass": mass.T.double(),
    }
    return {name: each.cpu() for name, each in found.items()}
