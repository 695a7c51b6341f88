"""Adversarial samples: images changed by what nobody sees, so that the prediction is another, or the explanation alone.

All attacks are projected gradient descent in L∞ on the pixels (projected_gradient.py). Images come and go normalised;
sizes of changes are in pixel values of 0..255. What an attack draws at random depends on the seed and the image's
number alone; the model must be in eval mode and is left as it was found.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import InputError, unknown_name
from ..common.seeds import mixed_seed
from ..models import ImageClassifier
from .differentiable_maps import Explain, Explanation, smooth_rectifiers
from .misalignment import high_region
from .posthoc import prepared
from .projected_gradient import ascent, pixel_ball, pixel_units, projected_gradient

Change = Literal["cosine", "top_k"]
SHARE = 0.1  # of a map's cells: the highest, which "top_k" empties
_NOISE, _START = 1, 2  # what is drawn of an image


@dataclass(frozen=True)
class Budget:
    """What an attack may spend.

    Raises:
        InputError: A number below 0, or a change that is not known.
    """

    epsilon: float = 2.0  # largest change of a pixel's value, of 0..255
    step: float = 0.5  # of an iteration, likewise
    iterations: int = 20
    change: Change = "cosine"  # what an attack on the explanation raises
    penalty: float = 0.1  # of the held label's cross-entropy, in an attack on the explanation
    softplus: float | None = None  # sharpness of what stands for rectifiers where its steps are chosen; None: they stay
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "step", "iterations", "penalty"):
            if not getattr(self, name) >= 0:
                raise InputError(f"an attack's {name} must be at least 0, got {getattr(self, name)}")
        if self.change not in ("cosine", "top_k"):
            raise unknown_name("change of a map", self.change, ("cosine", "top_k"))
        if self.softplus is not None and not self.softplus > 0:
            raise InputError(f"softplus needs a sharpness above 0, got {self.softplus}")


def noise(model: ImageClassifier, images: Tensor, indices: Tensor, budget: Budget) -> Tensor:
    """The control: every pixel changed by ±ε at random, as the attacks change nearly all; `b c h w`."""
    ball = pixel_ball(model.config.preprocessing, budget.epsilon, images)
    return ball.project(images + ball.epsilon * _drawn(images, indices, budget.seed, _NOISE).sign(), images)


def attack_prediction(
    model: ImageClassifier,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    budget: Budget,
    *,
    is_targeted: bool = False,
) -> Tensor:
    """Images `b c h w` whose cross-entropy for `classes` (b) is high; where `is_targeted`, low.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, from a random place of
    the ball. `classes` are those that the model now predicts (or the labels), or those that it shall predict.
    """
    preprocessing = model.config.preprocessing
    ball = pixel_ball(preprocessing, budget.epsilon, images)
    start = ball.project(images + ball.epsilon * _drawn(images, indices, budget.seed, _START), images)
    sign = -1 if is_targeted else 1

    def objective(changed: Tensor) -> Tensor:
        return sign * functional.cross_entropy(model(changed, 0).logits, classes, reduction="none")

    step = pixel_units(preprocessing, budget.step, images)
    with prepared(model):
        return projected_gradient(objective, images, ball, step=step, iterations=budget.iterations, start=start)


def attack_explanation(
    model: ImageClassifier, explain: Explain, images: Tensor, classes: Tensor, indices: Tensor, budget: Budget
) -> Tensor:
    """Images `b c h w` whose maps of `classes` (b) by `explain` are others, and whose predictions are what they were.

    Ghorbani et al., "Interpretation of Neural Networks Is Fragile", AAAI 2019; Dombrowski et al., NeurIPS 2019. The
    steps raise the map's change less `penalty` × the cross-entropy of the image's own prediction. One that flips the
    prediction is taken back and tried at half its size. Of all places where the prediction was held, the image itself
    among them, each image gets that of the largest change.

    Args:
        model: In eval mode.
        explain: A method of differentiable_maps.py.
        images: `b c h w`, normalised.
        classes: Whose maps are attacked, `b`.
        indices: Numbers of the images in their set, `b`: the first step is at random, since where nothing has changed
            yet nothing says in which direction the change grows.
        budget: What may be spent.
    """
    preprocessing = model.config.preprocessing
    ball = pixel_ball(preprocessing, budget.epsilon, images)
    step = pixel_units(preprocessing, budget.step, images)
    with prepared(model):
        before = _detached(explain(model, images, classes))
        held = before.logits.argmax(1)

        def objective(changed: Tensor) -> Tensor:
            with smooth_rectifiers(budget.softplus):
                found = explain(model, changed, classes)
            loss = functional.cross_entropy(found.logits, held, reduction="none")
            return map_change(before.maps, found.maps, budget.change) - budget.penalty * loss

        best, place = _Place(images, map_change(before.maps, before.maps, budget.change)), images
        direction = _drawn(images, indices, budget.seed, _START).sign()
        length = images.new_ones(len(images), 1, 1, 1)
        for _ in range(budget.iterations):
            tried = ball.project(place + length * step * direction, images)
            with torch.no_grad():
                found = explain(model, tried, classes)
            is_held = found.logits.argmax(1) == held
            best = best.or_better(tried, map_change(before.maps, found.maps, budget.change), is_held)
            mask = is_held[:, None, None, None]
            place, length = tried.where(mask, place), length.where(mask, length / 2)
            direction = ascent(objective, place)
    return best.images


class _Place(NamedTuple):
    """The best images so far."""

    images: Tensor  # b c h w
    changes: Tensor  # b

    def or_better(self, images: Tensor, changes: Tensor, is_held: Tensor) -> "_Place":
        is_better = is_held & (changes > self.changes)
        return _Place(images.where(is_better[:, None, None, None], self.images), changes.where(is_better, self.changes))


def map_change(before: Tensor, after: Tensor, change: Change) -> Tensor:
    """How far maps `b h w` are from those before, `b`, with gradients for `after`; scales of maps do not matter.

    "cosine": 1 − cosine of the angle between them, 0..2. "top_k": less the share of the map's absolute mass in the
    cells that were the highest tenth before (Ghorbani et al.'s top-k attack), −1..1.
    """
    old, new = before.flatten(1), after.flatten(1)
    if change == "cosine":
        return 1 - functional.cosine_similarity(old, new, dim=1)
    is_high = high_region(before, SHARE).flatten(1)
    return -(new * is_high).sum(1) / new.abs().sum(1).clamp(min=1e-12)


def _detached(found: Explanation) -> Explanation:
    return Explanation(*(each.detach() for each in found))


def _drawn(images: Tensor, indices: Tensor, seed: int, purpose: int) -> Tensor:
    """Uniform numbers in −1..1 for each value of the images, whatever the batch."""
    drawn = [
        torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(mixed_seed(seed, index, purpose)))
        for index in indices.tolist()
    ]
    return (2 * torch.stack(drawn) - 1).to(images)
