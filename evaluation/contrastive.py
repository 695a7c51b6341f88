"""Why this class and not that one: the evidence that tells two classes apart, from one forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..data.folder import read_image
from ..heads import Contract, Explained
from ..models import ImageClassifier
from .explaining import check_explains, class_number, free_name
from .pictures import contrast_figure, displayed, save_figure


class ContrastiveEvidence(NamedTuple):
    """What speaks for one class rather than another, in logits (in probabilities where the head's maps are)."""

    maps: Tensor  # b h w, signed; maps.sum((-2, -1)) + offset == margin
    offset: Tensor  # b
    margin: Tensor  # b, logit of the first class less that of the second


def contrastive_evidence(
    model: ImageClassifier, images: Tensor, classes: Tensor, others: Tensor
) -> ContrastiveEvidence:
    """The evidence for `classes` (b) less that for `others` (b), for images `b c h w`; the network runs once.

    Raises:
        InputError: The model has no built-in map.
    """
    check_explains(model)
    return _difference(model(images, torch.stack([classes, others], 1)), model.contract)


def _difference(out: Explained, contract: Contract) -> ContrastiveEvidence:
    """Of an explanation of two classes."""
    quantities = contract.explained_quantity(out.logits).gather(1, out.classes)
    return ContrastiveEvidence(*(each[:, 0] - each[:, 1] for each in (out.maps, out.offset, quantities)))


class Contrast(NamedTuple):
    """A photograph's contrastive explanation, and the picture that shows it."""

    image: Path
    picture: Path
    why: str
    instead: str
    evidence: ContrastiveEvidence  # a batch of one


@torch.inference_mode()
def contrast_images(
    model: ImageClassifier, images: Sequence[Path], folder: Path, why: str | None, instead: str | None
) -> list[Contrast]:
    """Write a picture of what tells class `why` from class `instead` for each of `images` into `folder`.

    Args:
        model: An explaining model.
        images: Image files.
        folder: Where the pictures go.
        why: A class, by name or number; None: the highest beside `instead`.
        instead: Another; None: the highest beside `why`.

    Raises:
        InputError: A black box, a file that is no image, an unknown class, twice the same.
    """
    check_explains(model)
    model.eval()
    device = next(model.parameters()).device
    wanted, unwanted = (None if name is None else class_number(name, model.class_names) for name in (why, instead))
    if model.num_classes < 2 or (wanted is not None and wanted == unwanted):
        raise InputError("two different classes are needed to tell one from the other")

    def pair(logits: Tensor) -> Tensor:
        ranked = logits[0].argsort(descending=True).tolist()
        first = wanted if wanted is not None else next(number for number in ranked if number != unwanted)
        second = unwanted if unwanted is not None else next(number for number in ranked if number != first)
        return torch.tensor([[first, second]], device=device)

    told: list[Contrast] = []
    for place, path in enumerate(images):
        batch = model.preprocess(read_image(path))[None].to(device)
        out = model(batch, pair)
        found = _difference(out, model.contract)
        first, second = (model.class_names[number] for number in out.classes[0].tolist())
        picture = displayed(batch[0], model.config.preprocessing)
        target = free_name(folder, images, place)
        save_figure(contrast_figure(picture, out.maps[0], found.maps[0], (first, second), model.contract), target)
        told.append(Contrast(path, target, first, second, found))
    return told
