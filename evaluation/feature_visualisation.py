"""What does a class, a channel or a prototype look for? Pictures that make it answer most.

Activation maximisation: Erhan et al. 2009; with regularity from the parametrisation and from transformations alone,
Olah, Mordvintsev and Schubert, "Feature Visualization", Distill 2017. A picture shows what drives a unit, not all that
it answers to, and never how often that is in photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..models import ImageClassifier
from .image_parametrisation import first_spectrum, jittered, picture_of
from .posthoc import deepest, features_and_output, prepared

Kind = Literal["class", "channel", "part"]
_RATE = 0.05  # of Adam


@dataclass(frozen=True)
class Unit:
    """What is to answer: a class's logit, a channel, or one of the head's inner maps (`Explained.parts`).

    Of a part (a prototype's similarity, an attention map) the best cell counts; of a channel the mean over its cells.
    `stage`: of a channel, timm's intermediate, counted from the first; None: what the head pools.
    """

    kind: Kind
    number: int
    stage: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.number}" + ("" if self.stage is None else f" of stage {self.stage}")


class Visualised(NamedTuple):
    """Pictures of units, and how much each answers."""

    pictures: Tensor  # b 3 h w in 0..1
    answers: Tensor  # (steps + 1) b: of the untransformed picture at the start, then after transformation at each step


def visualise(
    model: ImageClassifier,
    units: Sequence[Unit],
    *,
    size: int = 128,
    steps: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Visualised:
    """A picture for each of `units` that makes it answer most, all in one batch. The model is left as it was found.

    On a CPU results depend on seed and unit alone, not on the others in the batch.

    Args:
        model: On the device where it shall run; three channels.
        units: What is to answer.
        size: Of the pictures, in pixels.
        steps: Of the optimizer.
        seed: Of the first spectra and the transformations.
        progress: Show a bar.

    Raises:
        InputError: A unit that is not there, a model of other channels, a number below 1.
    """
    if model.config.in_chans != 3:
        raise InputError(f"pictures have three channels, but the model takes {model.config.in_chans}")
    if size < 16 or steps < 1:
        raise InputError(f"at least 16 pixels and 1 step are needed, got {size} and {steps}")
    device = next(model.parameters()).device
    preprocessing = model.config.preprocessing
    mean, std = (torch.tensor(each, device=device)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    shape = (size, size)
    seeds = [mixed_seed(seed, *_numbers(unit)) for unit in units]
    generators = [torch.Generator().manual_seed(mixed_seed(own, 1)) for own in seeds]
    with prepared(model):
        spectra = torch.stack([first_spectrum(own, shape) for own in seeds]).to(device).requires_grad_()
        optimizer = torch.optim.Adam([spectra], _RATE)
        with torch.no_grad():
            answers = [_answers(model, units, (picture_of(spectra, shape) - mean) / std)]
        for _ in tqdm(range(steps), desc="drawing", unit="step", disable=not progress):
            pictures = jittered(picture_of(spectra, shape), generators)
            answer = _answers(model, units, (pictures - mean) / std)
            optimizer.zero_grad()
            (-answer.sum()).backward()
            optimizer.step()
            answers.append(answer.detach())
        with torch.no_grad():
            return Visualised(picture_of(spectra, shape), torch.stack(answers))


def _numbers(unit: Unit) -> tuple[int, int, int]:
    return ("class", "channel", "part").index(unit.kind), unit.number, -1 if unit.stage is None else unit.stage


def _answers(model: ImageClassifier, units: Sequence[Unit], images: Tensor) -> Tensor:
    """What each unit answers to its own image: `b`."""
    stages = sorted({unit.stage for unit in units if unit.stage is not None})
    inner = stage_features(model, images, stages) if stages else {}
    features, output = features_and_output(model, images)
    logits, parts = output.logits, output.parts
    found = []
    for row, unit in enumerate(units):
        if unit.kind == "class":
            answers, count = logits[row], model.num_classes
        elif unit.kind == "part":
            answers, count = parts[row].flatten(1).amax(1) if parts.shape[1] else parts[row, :, 0, 0], parts.shape[1]
        else:
            maps = deepest(features) if unit.stage is None else inner[unit.stage]
            answers, count = maps[row].mean((1, 2)), maps.shape[1]
        if not 0 <= unit.number < count:
            raise InputError(f"{unit}: {model.config.head} on {model.config.architecture} has {count} of these")
        found.append(answers[unit.number])
    return torch.stack(found)


def stage_features(model: ImageClassifier, images: Tensor, stages: Sequence[int] | None = None) -> dict[int, Tensor]:
    """The feature maps `b d h w` of timm's intermediates, by number from the first; None: of all.

    Raises:
        InputError: No such stage.
    """
    network = model.backbone.network
    count = len(network.feature_info)
    wanted = list(range(count)) if stages is None else list(stages)
    for stage in wanted:
        if not 0 <= stage < count:
            raise InputError(f"{model.config.architecture} has stages 0 to {count - 1}, not {stage}")
    found = network.forward_intermediates(images, wanted, intermediates_only=True)
    return dict(zip(wanted, found, strict=True))
