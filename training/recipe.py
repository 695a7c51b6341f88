"""A recipe: everything that decides what a training run does, typed, from one YAML file and overrides."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from ..common.errors import InputError, unknown_name
from ..common.typed import from_plain
from ..data.augmentation import Augmentation
from ..heads import Phase


@dataclass(frozen=True)
class DataRecipe:
    """Which images."""

    name: str  # a data set of ours ("critters"), or the path of a folder
    options: dict[str, Any] = field(default_factory=dict)  # of the data set
    validation: float = 0.15  # share of the training images on which the model is chosen
    # The split of the data set on which it is chosen instead: nothing is carved, all training images are learned from.
    validation_split: str | None = None
    batch_size: int = 64  # of all processes together
    num_workers: int = 0
    keep_in_memory: bool = False  # read every image once, before training
    on_error: Literal["raise", "skip"] = "raise"  # at an unreadable image
    license: str | None = None  # for the model card; None: what the data set says of itself


@dataclass(frozen=True)
class ModelRecipe:
    """Which network, and what its images look like."""

    backbone: str  # timm's name
    head: str = "cam"
    pretrained: bool = False
    weights: str | None = None  # another source of the backbone's weights: "local-dir:PATH", "hf-hub:ID"
    output_stride: int | None = None
    head_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | int | None = None  # h, w or both; None: what the weights were trained at
    crop_mode: str | None = None
    crop_pct: float | None = None
    license: str | None = None  # of the trained weights, for the model card


@dataclass(frozen=True)
class OptimizerRecipe:
    """timm's optimizer and its step."""

    name: str = "adamw"  # any of timm's
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9  # where the optimizer has one
    clip_grad: float | None = None  # largest norm of the gradient
    accumulate: int = 1  # batches a step
    warmup_epochs: float = 0.0  # linear, then a cosine down to `min_lr`, in each phase
    min_lr: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    data: DataRecipe
    model: ModelRecipe
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 10  # all phases together
    phases: tuple[Phase, ...] | None = None  # None: the head's own
    # Images can show several classes at once, or none: binary cross entropy for each class, and the model is chosen by
    # mean average precision. The data set says which are there (of a folder: data.options.labels).
    multi_label: bool = False
    label_smoothing: float = 0.0
    # Loss terms by name: the head's own, each with the head's weight unless given here; and, only where given, terms
    # over the evidence of the label class: evidence_l1, evidence_tv, class_contrast, and for images with a mask or box
    # evidence_energy, evidence_outside (evidence_losses.py). A weight of 0 only reports the term.
    loss_weights: dict[str, float] = field(default_factory=dict)
    # Freeze the backbone, compute its features of the images once, without augmentation, and train the head alone.
    probe: bool = False
    feature_cache: str | None = None  # a folder that keeps those features for other runs (probe.py)
    ema_decay: float | None = None  # average the weights, and choose and publish the average
    mixed_precision: bool = True  # bf16 autocast, on a GPU only
    channels_last: bool = True
    compile: bool = False  # by torch.compile: faster steps, after a minute or more of compiling
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"epochs must be at least 1, got {self.epochs}")
        if self.optimizer.accumulate < 1:
            raise InputError(f"optimizer.accumulate must be at least 1, got {self.optimizer.accumulate}")
        if self.probe and self.augmentation.patch_deletion:
            raise InputError("augmentation.patch_deletion needs images, but a probe trains on features computed once")

    @property
    def measure(self) -> str:
        """What the model is chosen by: the column of metrics.csv."""
        return "val_map" if self.multi_label else "val_top1"

    def to_yaml(self) -> str:
        """As a YAML file that gives this recipe again."""
        # Through JSON types, since YAML would tag tuples as Python's own.
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of that name among those shipped, with overrides like "optimizer.lr=3e-4".

    Raises:
        InputError: No such recipe, no YAML, an unknown key (the nearest is named), a value of the wrong type.
    """
    path = Path(name).expanduser()
    shipped = {entry.name.removesuffix(".yaml"): entry for entry in _configs() if entry.name.endswith(".yaml")}
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif name in shipped:
        text = shipped[name].read_text(encoding="utf-8")
    else:
        raise unknown_name("recipe", name, shipped)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} holds no recipe: a mapping with the keys data and model is expected")
    for key, value in parse_options(overrides).items():
        _override(values, key, value)
    return from_plain(Recipe, values, name)


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _configs() if entry.name.endswith(".yaml"))


def _configs() -> list[Any]:
    return list((files(__name__.partition(".")[0]) / "configs").iterdir())


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key from texts like "size=128"; what follows the sign is read as YAML.

    Raises:
        InputError: A text without a key or a sign.
    """
    values = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise InputError(f"{setting!r}: KEY=VALUE expected, such as optimizer.lr=3e-4")
        values[key] = yaml.safe_load(text)
    return values


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise InputError(f"override {key!r}: {name!r} holds no keys")
    section[last] = value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
