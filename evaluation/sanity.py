"""Sanity: does a map depend on what the model has learned, and on the class that it is said to explain?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .map_similarity import Similarity, discrete_entropy, rank_correlation, similarity
from .maps import MapMethod, placed
from .randomising import randomised
from .stability import Explain, in_chunks

Make = Callable[[ImageClassifier], MapMethod]


class Randomisation(NamedTuple):
    """What became of each image's map when the model forgot everything: `b` each."""

    rise: Tensor  # (after − before) / before: eMPRT's score; NaN where the map was constant
    before: Tensor  # entropy of the model's own map, nats
    after: Tensor  # of the randomised model's
    rank_correlation: Tensor  # of both maps: MPRT's last number; NaN where one is constant


@torch.no_grad()
def parameter_randomisation(
    make: Make,
    model: ImageClassifier,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    *,
    seed: int = 0,
    random_model: ImageClassifier | None = None,
    bins: int = 100,
    chunk: int = 64,
) -> Randomisation:
    """Efficient MPRT and MPRT's last number: the map against that of a model whose parameters are all drawn anew.

    A map that shows what the model learned becomes more complex (a high rise) and another (a rank correlation near 0,
    with sign). Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; Hedström et al., "Sanity Checks
    Revisited: An Exploration to Repair the Model Parameter Randomisation Test", XAI in Action 2023. Maps
    are stretched over the image for the entropy, since the cells of a coarse grid would not fill the bins of its
    histogram, and correlated at their own resolution.

    Args:
        make: The method for a model, as in `METHODS`.
        model: Left as it was found; judged in eval mode.
        images: `b c h w`, normalised.
        classes: `b`; the same for both models.
        indices: `b`, the images' numbers in the set.
        seed: Of the randomised model.
        random_model: `randomised(model, seed)`, where several batches share one.
        bins: Of the histograms.
        chunk: Images a call of the method.
    """
    fresh = randomised(model, seed) if random_model is None else random_model
    size = (images.shape[-2], images.shape[-1])
    with eval_mode(model), eval_mode(fresh):
        maps = [in_chunks(make(each).explain, images, classes, indices, chunk) for each in (model, fresh)]
    before, after = (discrete_entropy(placed(each[None], size)[0], bins) for each in maps)
    return Randomisation((after - before) / before.where(before > 0, torch.nan), before, after, rank_correlation(*maps))


@torch.no_grad()
def random_logit(
    explain: Explain,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
    chunk: int = 64,
) -> Similarity:
    """How alike an image's maps of its class and of another class are, drawn for each image; low is class-sensitive.

    Sixt et al., "When Explanations Lie: Why Many Modified BP Attributions Fail", ICML 2020. A map that does
    not depend on the class, as attention or a control, has an SSIM of 1 (and a rank correlation of 1, unless it is
    constant): that is no error, but it cannot say why this class and not another.

    Args:
        explain: The method; a model behind it must be in eval mode.
        images: `b c h w`, normalised.
        classes: `b`.
        indices: `b`, the images' numbers in the set: the other class is drawn by seed and number.
        num_classes: How many classes there are.
        seed: Of the other classes.
        chunk: Images a call of `explain`.

    Raises:
        InputError: Fewer than two classes.
    """
    others = other_classes(classes, indices, num_classes, seed)
    first, second = (in_chunks(explain, images, chosen, indices, chunk) for chosen in (classes, others))
    return similarity(first, second)


def other_classes(classes: Tensor, indices: Tensor, num_classes: int, seed: int = 0) -> Tensor:
    """For each of `classes` (b) another one, uniform over the rest, drawn by seed and the image's number: `b`.

    Raises:
        InputError: Fewer than two classes.
    """
    if num_classes < 2:
        raise InputError(f"there is no other class among {num_classes}")
    steps = [
        torch.randint(1, num_classes, (), generator=torch.Generator().manual_seed(mixed_seed(seed, index)))
        for index in indices.tolist()
    ]
    return (classes + torch.stack(steps).to(classes)) % num_classes
