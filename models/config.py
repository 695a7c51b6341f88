"""What rebuilds a model, without its weights: the content of a checkpoint's config.json."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.errors import InputError
from ..common.typed import from_plain
from .preprocessing import Preprocessing

BLACK_BOX = "black_box"


@dataclass(frozen=True)
class BackboneWeights:
    """Where the backbone's first weights came from; a note for the model card, never loaded from again."""

    name: str  # timm's name with tag
    license: str | None = None
    source: str | None = None  # hub id or URL


@dataclass(frozen=True)
class ModelConfig:
    """Everything that rebuilds a model but its weights. Holds no `pretrained`: reloading never touches the network."""

    architecture: str  # timm's name without tag
    num_classes: int
    head: str = "cam"  # or "black_box": timm's own classifier
    in_chans: int = 3
    output_stride: int | None = None
    head_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    multi_label: bool = False  # an image can show several classes or none: probabilities are sigmoids of the logits
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    backbone_weights: BackboneWeights | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(f"num_classes={self.num_classes}: a classifier needs at least one class")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise InputError(f"{len(self.class_names)} class names given for {self.num_classes} classes")
        for name in ("head_kwargs", "backbone_kwargs"):
            try:
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise InputError(f"{name} must hold plain JSON values, since config.json keeps them: {error}") from None

    def to_json(self) -> str:
        """As the text of config.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "ModelConfig":
        """From the text of config.json; `where` names the file in errors.

        Raises:
            InputError: No JSON, an unknown or missing key, or a value of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is no JSON: {error}") from None
        return from_plain(cls, values, where)
