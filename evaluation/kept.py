"""Evaluations that are kept until a comparison is whole: a killed one does not begin again with its first model."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.processes import is_first
from ..data.samples import ImageDataset
from ..models import ImageClassifier
from .benchmark import Evaluation, evaluate, fingerprint
from .conventions import Conventions
from .parts import Part, from_first, read_part, write_part
from .prototype_scores import PrototypeScores
from .scoring import MethodScores


class Kept:
    """What is kept of one model's evaluation, in a folder of its own.

    Args:
        store: The folder of all models.
        model: Whose evaluation it is.
        dataset: On which.
        data: What the data set was asked for by: its name, split and options.
        choices: What else the numbers depend on; arguments of `evaluate`.
    """

    def __init__(
        self, store: Path, model: ImageClassifier, dataset: ImageDataset, data: str, choices: Mapping[str, Any]
    ) -> None:
        self._model, self._dataset, self._choices = model, dataset, dict(choices)
        self.folder = store / fingerprint(model, dataset, data, sorted(choices.items()))
        self._file = self.folder / "evaluation.safetensors"

    @property
    def state(self) -> str:
        """How far it has come: "finished", "begun", or "" for not at all."""
        if self._file.exists():
            return "finished"
        return "begun" if any(self.folder.rglob("*.safetensors")) else ""

    def evaluated(self, **how: Any) -> Evaluation:
        """The kept evaluation, or else `evaluate`'s, which goes on where it was and is then kept.

        Args:
            how: Further arguments of `evaluate`, on which no number depends.
        """
        part = from_first(lambda: read_part(self._file))
        if part is not None:
            return _restored(part, self._model)
        found = evaluate(self._model, self._dataset, store=self.folder, **self._choices, **how)
        if is_first():
            write_part(_as_part(found), self._file)
        return found


def _as_part(evaluation: Evaluation) -> Part:
    tensors: dict[str, Tensor] = {}
    about = {
        name: _plain(getattr(evaluation, name), name, tensors)
        for name in (field.name for field in fields(evaluation))
        if name != "model"
    }
    return Part(evaluation.ids, tensors, about)


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values; each tensor is put into `tensors`, and its name stands in for it."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{name}/{place}", tensors) for place, inner in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _with_tensors(inner, tensors) for key, inner in value.items()}
    return [_with_tensors(inner, tensors) for inner in value] if isinstance(value, list) else value


def _restored(part: Part, model: ImageClassifier) -> Evaluation:
    told = _with_tensors(part.about, part.tensors)
    told["class_names"] = tuple(told["class_names"])
    told["conventions"] = Conventions(**told["conventions"])
    told["methods"] = [MethodScores(**method) for method in told["methods"]]
    told["prototypes"] = PrototypeScores(**told["prototypes"]) if told["prototypes"] else None
    return Evaluation(model=model, **told)
