"""A checkpoint for others: with pictures of what its prototypes are, or with nothing of the training images."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..common.errors import InputError
from ..common.files import check_vacant, replacing
from ..data.samples import ImageDataset
from ..models import CardFacts, ImageClassifier, save_pretrained
from .gallery import Pictures, framed


def publish(
    model: ImageClassifier,
    folder: str | os.PathLike[str],
    training: ImageDataset | None = None,
    *,
    prototypes: Literal["shown", "withheld"] = "shown",
    facts: CardFacts | None = None,
) -> None:
    """Write `model` as a checkpoint folder that others may have.

    Args:
        model: Any model.
        folder: A folder that is empty or not there yet, so that nothing of an earlier one is published with it.
        training: The images that prototypes came from; needed to show them.
        prototypes: "shown": prototypes.json names the source of each, and prototypes/NUMBER.png shows it. "withheld":
            their vectors stay, since the model needs them, but no picture, image id, cell or box, and the card gets no
            picture either: for images that must stay private. A vector is still what the network made of a patch; it is
            not an anonymous thing.
        facts: What the model card tells, as for `save_pretrained`; published as it is, but for its picture, which
            `complete_card` draws of a folder that does not withhold images.

    Raises:
        InputError: The folder is not empty, no such way to publish, or prototypes to show without their images.
    """
    folder = Path(folder)
    check_vacant(folder)
    if prototypes not in ("shown", "withheld"):
        raise InputError(f"prototypes={prototypes!r}: 'shown' or 'withheld' expected")
    facts = replace(facts or CardFacts(), picture=None)
    if prototypes == "withheld":
        known = [{key: entry[key] for key in ("prototype", "class")} for entry in model.provenance]
        save_pretrained(model, folder, replace(facts, withholds_images=True), known)
        return
    sourced = [entry for entry in model.provenance if "image" in entry]
    if sourced and training is None:
        raise InputError("the prototypes are to be shown: give the training images, or say prototypes='withheld'")
    if training is not None:
        pictures = Pictures(training, model)
        for entry in sourced:
            with replacing(folder / "prototypes" / f"{entry['prototype']}.png") as temporary:
                framed(pictures.picture(entry["image"]), entry["box"]).save(temporary, format="PNG")
    save_pretrained(model, folder, facts)
