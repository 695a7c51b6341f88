"""What a model card tells, as data: card.json, from which README.md is written (`card_text.py`)."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..common.errors import InputError
from ..common.typed import from_plain
from ..heads import Contract
from .classifier import ImageClassifier
from .layout import FACTS

VALIDATION = "validation"  # the split on which a run chooses its model: no test
_CLASSES_TOLD = 30


@dataclass(frozen=True)
class DataFacts:
    """What a model was trained on."""

    name: str
    description: str | None = None  # a sentence
    license: str | None = None  # as its owner calls it: "MIT License", "cc-by-4.0"
    images: dict[str, int] = field(default_factory=dict)  # by split: "train", "validation"
    validation_split: str | None = None  # what the data set calls the latter; None: it was carved from "train"


@dataclass(frozen=True)
class Metric:
    """One number, and how it was measured."""

    name: str  # "top1", "insertion"
    value: float
    protocol: str  # how, in sentences: what is counted, by which conventions
    data: str
    split: str
    images: int  # that have a score
    low: float | None = None  # of the interval that `protocol` speaks of
    high: float | None = None
    map: str | None = None  # which map is scored: "built-in", "grad-cam", "random"; None: the model

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """What this is a number of; a later one takes its place."""
        return self.name, self.data, self.split, self.map


@dataclass(frozen=True)
class ModelFacts:
    """What the model itself tells; `save_pretrained` asks it."""

    architecture: str
    head: str
    contract: Contract
    parameters: int
    num_classes: int
    classes: tuple[str, ...] | None  # their names, the first 30; None where they have none
    input_size: tuple[int, int]  # h, w in pixels
    stride: float | None  # pixels a cell; None, as what follows, where the network could not be followed
    receptive_field: tuple[int, int] | None  # h, w in pixels
    sees_whole_image: bool | None
    backbone_weights: str | None  # None: trained from scratch
    backbone_license: str | None
    backbone_source: str | None

    @classmethod
    def of(cls, model: ImageClassifier) -> "ModelFacts":
        """Of a model as it is."""
        config, grid, weights = model.config, model.grid, model.config.backbone_weights
        return cls(
            architecture=config.architecture,
            head=config.head,
            contract=model.contract,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_classes=config.num_classes,
            classes=config.class_names and config.class_names[:_CLASSES_TOLD],
            input_size=(config.preprocessing.input_size[1], config.preprocessing.input_size[2]),
            stride=grid.stride if grid else None,
            receptive_field=grid.receptive_field if grid else None,
            sees_whole_image=grid.sees_whole_image if grid else None,
            backbone_weights=weights.name if weights else None,
            backbone_license=weights.license if weights else None,
            backbone_source=weights.source if weights else None,
        )

    @property
    def name(self) -> str:
        """What the model is called where it has no other name."""
        return f"{self.head}_{self.architecture}"


@dataclass(frozen=True)
class CardFacts:
    """What is known about a checkpoint; None or empty where it is not, which the card then says.

    The code's licence is glasszoo's own, and limits follow from the model; neither can be missing.
    """

    data: DataFacts | None = None
    weights_license: str | None = None
    commands: tuple[str, ...] = ()  # all that made and judged it, in order
    seed: int | None = None
    code: str | None = None  # version and commit of glasszoo (`code_version`)
    hardware: str | None = None
    metrics: tuple[Metric, ...] = ()
    intended_use: str | None = None  # None: a sentence made of the data
    limits: tuple[str, ...] = ()  # beside those that follow from the model
    notes: dict[str, str] = field(default_factory=dict)  # further sections, title → Markdown
    withholds_images: bool = False  # the images are private: no picture is drawn into the card
    picture: str | None = None  # a file beside the card
    model: ModelFacts | None = None

    def lacking(self) -> list[str]:
        """What a released checkpoint would have to say and this one does not; empty where nothing is missing."""
        data, model = self.data, self.model
        explains = model is not None and model.contract is not Contract.NONE
        chosen_on = {VALIDATION, data and data.validation_split}
        tested = [metric for metric in self.metrics if metric.split not in chosen_on]
        known = {
            "data": data,
            "description of the data": data and data.description,
            "licence of the data": data and data.license,
            "images of each split": data and data.images,
            "licence of the weights": self.weights_license,
            "model": model,
            "licence of the backbone's weights": model and (model.backbone_weights is None or model.backbone_license),
            "command": self.commands,
            "seed": self.seed is not None,
            "commit": self.code,
            "hardware": self.hardware,
            "accuracy on a test split": any(metric.name in ("top1", "map") for metric in tested),
            "scores of the map": not explains or any(metric.map == "built-in" for metric in tested),
            "picture": not explains or self.withholds_images or self.picture,
        }
        unexplained = [f"protocol of {metric.name}" for metric in self.metrics if not metric.protocol]
        return [name for name, value in known.items() if not value] + unexplained

    def with_metrics(self, metrics: tuple[Metric, ...]) -> "CardFacts":
        """With `metrics` as well; each takes the place of an earlier one of the same thing."""
        merged = {metric.key: metric for metric in (*self.metrics, *metrics)}
        return replace(self, metrics=tuple(merged.values()))

    def to_json(self) -> str:
        """As the text of card.json."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_facts(folder: str | os.PathLike[str]) -> CardFacts:
    """What the card of the checkpoint in `folder` tells; nothing where it has none.

    Raises:
        InputError: card.json is broken; what is wrong is named.
    """
    path = Path(folder) / FACTS
    if not path.is_file():
        return CardFacts()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is truncated or no JSON ({error})") from None
    return from_plain(CardFacts, values, str(path))
