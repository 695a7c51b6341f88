"""Explains single photographs: what `glasszoo explain` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..common.errors import InputError, unknown_name
from ..data.folder import read_image
from ..heads import Contract, Explained
from ..models import ImageClassifier
from .pictures import displayed, explanation_figure, save_figure


class Explanation(NamedTuple):
    """A photograph's explanation, and the picture that shows it."""

    image: Path
    picture: Path
    explained: Explained  # a batch of one


@torch.inference_mode()
def explain_images(
    model: ImageClassifier, images: Sequence[Path], folder: Path, top: int = 3, classes: Sequence[str] = ()
) -> list[Explanation]:
    """Write a picture of the evidence for each of `images` into `folder`, named after it.

    Args:
        model: An explaining model.
        images: Image files.
        folder: Where the pictures go.
        top: How many of the highest classes to explain.
        classes: Explain these classes, by name or number, instead.

    Raises:
        InputError: A black box, a file that is no image, a class that the model does not know.
    """
    check_explains(model)
    model.eval()
    device = next(model.parameters()).device
    numbers = [class_number(name, model.class_names) for name in classes]
    explain = torch.tensor([numbers], device=device) if numbers else min(top, model.num_classes)
    explanations: list[Explanation] = []
    for place, path in enumerate(images):
        batch = model.preprocess(read_image(path))[None].to(device)
        explained = model(batch, explain)
        picture = displayed(batch[0], model.config.preprocessing)
        figure = explanation_figure(
            picture, explained, model.contract, model.class_names, model.probabilities(explained.logits[0].float())
        )
        target = free_name(folder, images, place)
        save_figure(figure, target)
        explanations.append(Explanation(path, target, explained))
    return explanations


def check_explains(model: ImageClassifier) -> None:
    """Refuse a model without a built-in map.

    Raises:
        InputError: It is a black box.
    """
    if model.contract is Contract.NONE:
        raise InputError("a black box does not explain itself: give a model with an interpretable head")


def free_name(folder: Path, images: Sequence[Path], place: int) -> Path:
    """The picture in `folder` named after the image at `place`: no image is overwritten, no name given twice."""
    own = images[place].stem
    alike = sum(image.stem == own for image in images[:place])
    target = folder / (f"{own}_{alike + 1}.png" if alike else f"{own}.png")
    given = {image.resolve() for image in images}
    while target.resolve() in given:
        target = target.with_stem(f"{target.stem}_evidence")
    return target


def class_number(name: str, class_names: Sequence[str]) -> int:
    """The number of a class given by its name or number.

    Raises:
        InputError: No such class (the nearest are listed), or several of that name, as ImageNet's "crane".
    """
    if len(alike := [number for number, other in enumerate(class_names) if other == name]) > 1:
        raise InputError(f"{len(alike)} classes are called {name!r}: give a number ({', '.join(map(str, alike))})")
    if alike:
        return alike[0]
    if name.isdecimal() and int(name) < len(class_names):
        return int(name)
    raise unknown_name("class", name, class_names)
