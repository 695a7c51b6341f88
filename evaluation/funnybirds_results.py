"""What FunnyBirds' protocol found, as text and as files: the printed table, funnybirds.json and funnybirds.csv."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..common.environment import code_version, device_name
from ..common.errors import unknown_name
from ..common.files import write_text
from ..models import ImageClassifier
from .conventions import Conventions
from .funnybirds_scores import Irrelevance
from .results import interval_cells, interval_columns, percent, score
from .sheet_files import without_nan
from .statistics import Interval, bootstrap_interval, pooled_interval

FUNNYBIRDS_SCORES = {
    "completeness": "½ ((CSDC + PC + DC) / 3 + D)",
    "correctness": "SD: ½ + ½ Spearman of a part's share of the map and the logit's drop without it",
    "contrastivity": "TS: maps of two classes give the parts that each shares with the bird more than the other does",
    "mean": "of completeness, correctness and contrastivity",
    "CSDC": "controlled synthetic data check: the share of a sufficient set of parts that is called important",
    "PC": "preservation check: the prediction stays with the important parts alone",
    "DC": "deletion check: the prediction changes without the important parts",
    "D": "distractibility: the share of the parts and objects that hardly count that is not called important",
}
_COLUMNS = ("CSDC", "PC", "DC", "D", "correctness", "contrastivity")  # what an image has


@dataclass(frozen=True)
class Protocol:
    """Where the published protocol is unsound; `PUBLISHED` is it.

    Raises:
        InputError: An unknown choice.
    """

    # The share of the map that makes a part important: that which is best for the method on the other half of the
    # images, or on the very images that it is judged on.
    threshold: Literal["crossfit", "oracle"] = "crossfit"
    # A map that gives all parts the same says nothing of them: it scores chance, or its image is left out.
    constant_maps: Literal["chance", "dropped"] = "chance"
    irrelevant: Irrelevance = "effect"  # see `irrelevant`

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name.replace("_", " "), getattr(self, name), known)


CHOICES = {
    "threshold": ("crossfit", "oracle"),
    "constant_maps": ("chance", "dropped"),
    "irrelevant": ("effect", "logit"),
}
PUBLISHED = Protocol("oracle", "dropped", "logit")


@dataclass
class MethodBirds:
    """One method's scores."""

    name: str
    kind: str
    scores: Tensor  # n 6, as in `_COLUMNS`; NaN where there is none
    thresholds: tuple[float, ...]  # chosen: one, or one a half


@dataclass
class Birds:
    """FunnyBirds' protocol on one model."""

    model: ImageClassifier
    conventions: Conventions
    protocol: Protocol
    ids: list[str]  # n, as all tensors
    is_right: Tensor  # (n,) bool
    background: Tensor  # (n,), share of the background's objects that hardly count; NaN where there is none
    methods: list[MethodBirds]

    def accuracy(self) -> Interval:
        """Share of images classified rightly."""
        return self._interval(self.is_right.double())

    def background_independence(self) -> Interval:
        """BI: share of the background's objects that hardly count."""
        return self._interval(self.background)

    def scores(self, method: MethodBirds) -> dict[str, Interval]:
        """All of `FUNNYBIRDS_SCORES`, with intervals over images."""
        single = {name: self._interval(values) for name, values in zip(_COLUMNS, method.scores.T, strict=True)}
        whole = {name: self._pooled(method.scores, name) for name in ("completeness", "mean")}
        return {name: (single | whole)[name] for name in FUNNYBIRDS_SCORES}

    def _interval(self, scores: Tensor) -> Interval:
        chosen = self.conventions
        return bootstrap_interval(scores, chosen.bootstrap, chosen.confidence, chosen.seed)

    def _pooled(self, values: Tensor, name: str) -> Interval:
        chosen = self.conventions
        return pooled_interval(values, partial(_pool, name), chosen.bootstrap, chosen.confidence, chosen.seed)


def _pool(name: str, values: Tensor, counts: Tensor) -> Tensor:
    """Completeness, or the mean of all three, of images `n 6` that count as often as `r n` says: `r`."""
    means = counts.double() @ values.nan_to_num(0) / (counts.double() @ (~values.isnan()).double())
    complete = (means[:, :3].mean(1) + means[:, 3]) / 2
    return complete if name == "completeness" else torch.stack([complete, means[:, 4], means[:, 5]]).mean(0)


def birds_line(birds: Birds) -> str:
    """What was judged, in one line."""
    background = birds.background_independence()
    told = f"; {percent(background)} of the background's objects hardly count" if background.images else ""
    return f"{len(birds.ids)} images, top1 {percent(birds.accuracy())}{told}"


def birds_rows(found: Mapping[str, Birds]) -> list[list[str]]:
    """The table, first row the header: a row for each model, by name, and method."""
    rows = [["model", "map", "kind", *FUNNYBIRDS_SCORES, "threshold"]]
    for name, birds in found.items():
        for method in birds.methods:
            scores = [score(interval) for interval in birds.scores(method).values()]
            chosen = ", ".join(f"{threshold:.3f}" for threshold in method.thresholds)
            rows.append([name, method.name, method.kind, *scores, chosen])
    return rows


def as_csv(found: Mapping[str, Birds]) -> str:
    """A row for each model and method; of each score mean, interval and the number of images that have one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "kind", *interval_columns(FUNNYBIRDS_SCORES)])
    for name, birds in found.items():
        for method in birds.methods:
            writer.writerow([name, method.name, method.kind, *interval_cells(birds.scores(method).values())])
    return text.getvalue()


def as_json(found: Mapping[str, Birds], **about: Any) -> dict[str, Any]:
    """All summaries as plain values, None where there is none; `about` says what was run."""
    first = next(iter(found.values()))
    device = device_name(next(first.model.parameters()).device)
    plain: dict[str, Any] = without_nan(
        {
            "about": {**about, "code": code_version(), "torch": torch.__version__, "device": device},
            "conventions": asdict(first.conventions),
            "protocol": asdict(first.protocol),
            "scores": FUNNYBIRDS_SCORES,
            "models": {name: _as_json(birds) for name, birds in found.items()},
        }
    )
    return plain


def _as_json(birds: Birds) -> dict[str, Any]:
    return {
        "images": len(birds.ids),
        "accuracy": birds.accuracy()._asdict(),
        "background_independence": birds.background_independence()._asdict(),
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "thresholds": list(method.thresholds),
                "scores": {name: interval._asdict() for name, interval in birds.scores(method).items()},
            }
            for method in birds.methods
        ],
    }


def write_birds(found: Mapping[str, Birds], folder: Path, **about: Any) -> None:
    """funnybirds.json and funnybirds.csv."""
    write_text(folder / "funnybirds.json", json.dumps(as_json(found, **about), indent=1) + "\n")
    write_text(folder / "funnybirds.csv", as_csv(found))
