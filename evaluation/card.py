"""A checkpoint's model card, completed by what an evaluation found: every metric with its protocol, and a picture."""

import os
from dataclasses import replace
from pathlib import Path

from ..common.errors import InputError
from ..data.samples import ImageDataset
from ..heads import Contract
from ..models import CardFacts, ImageClassifier, ModelConfig, read_facts, write_card
from ..models.layout import CONFIG, EXPLANATION, check_folder
from .benchmark import Evaluation
from .pictures import save_figure
from .protocols import card_metrics
from .report import examples_figure

_SHOWN = 4  # images in the picture


def complete_card(
    folder: str | os.PathLike[str],
    evaluation: Evaluation,
    dataset: ImageDataset,
    *,
    data: str,
    split: str,
    command: str = "",
    withholds_images: bool = False,
) -> CardFacts:
    """Add an evaluation of the checkpoint in `folder` to its card; returns what the card tells now.

    An earlier number of the same metric, data and split gives way. The picture shows what speaks for the predicted
    class of four images of `dataset`.

    Args:
        folder: A checkpoint's folder here; only its card and its picture change.
        evaluation: Of that checkpoint's model.
        dataset: What it was evaluated on.
        data: The name of `dataset`; of a path its last part is told.
        split: Which split it is.
        command: What ran the evaluation.
        withholds_images: Draw no picture and remove one that is there: for images that must stay private. A checkpoint
            that was published with its images withheld gets none anyway.

    Raises:
        InputError: No checkpoint in `folder`, one of another model, or a broken card.json.
    """
    folder, model = Path(folder), evaluation.model
    check_card_of(folder, model)
    facts = read_facts(folder)
    name = Path(data).name or data
    facts = facts.with_metrics(card_metrics(evaluation, name, split))
    facts = replace(
        facts,
        commands=tuple(dict.fromkeys(filter(None, (*facts.commands, command)))),
        withholds_images=facts.withholds_images or withholds_images,
    )
    if facts.withholds_images:
        facts = replace(facts, picture=None)
    elif model.contract is not Contract.NONE:
        predicted = replace(evaluation, conventions=replace(evaluation.conventions, target="predicted"))
        figure = examples_figure(predicted, dataset, _SHOWN, ("built-in",))
        save_figure(figure, folder / EXPLANATION)
        facts = replace(facts, picture=EXPLANATION)
    return write_card(folder, model, facts)


def check_card_of(folder: Path, model: ImageClassifier) -> None:
    """Refuse a folder whose card is not that of `model`.

    Raises:
        InputError: It holds no checkpoint of ours, or one of another configuration.
    """
    check_folder(folder)
    path = folder / CONFIG
    try:
        is_own = ModelConfig.from_json(path.read_text(encoding="utf-8"), str(path)) == model.config
    except InputError:
        is_own = False
    if not is_own:
        raise InputError(f"{folder} holds no checkpoint of glasszoo of the evaluated model: it has no card to complete")
