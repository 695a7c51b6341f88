"""Evaluations as one self-contained HTML page: tables, curves and pictures, nothing to download beside it."""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from torch import Tensor

from ..common.files import write_text
from ..data.loading import Loader
from ..data.samples import ImageDataset
from ..data.subsets import Subset
from .benchmark import Evaluation
from .methods import map_method
from .pictures import as_png, comparison_figure, curves_figure, displayed
from .results import COVERAGES, HEADINGS, environment, percent, prototype_line, score_rows
from .scoring import EVIDENCE


def write_report(
    path: Path, title: str, evaluations: dict[str, Evaluation], dataset: ImageDataset, examples: int = 6, **about: Any
) -> None:
    """Write the page to `path`.

    Args:
        path: The HTML file.
        title: Its headline.
        evaluations: By the model's name in the tables; all on `dataset`.
        dataset: Where the example pictures are taken from, spread evenly.
        examples: How many.
        about: What was run (command, data, seed, commit), shown as it is.
    """
    first = next(iter(evaluations.values()))
    loader = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True, undefined=StrictUndefined
    )
    page = loader.get_template("report.html").render(
        title=title,
        subtitle=f"{len(first.ids)} images, {len(dataset.classes)} classes: {', '.join(dataset.classes)}",
        confidence=f"{first.conventions.confidence:.0%}",
        measures=_ONE_LABEL if first.targets is None else _SEVERAL_LABELS,
        models=[_model(name, evaluation, dataset, examples) for name, evaluation in evaluations.items()],
        about=json.dumps(
            {**about, **environment(first), "conventions": asdict(first.conventions)}, indent=2, ensure_ascii=False
        ),
    )
    write_text(path, page)


_ONE_LABEL = (
    "ECE: expected calibration error. Brier: squared distance of the probabilities from the label's certainty, 0 to 2. "
    "Surest: the images of highest confidence."
)
_SEVERAL_LABELS = (
    "AP: average precision of the ranking of the images by the class's probability; mAP: its mean over the classes."
)


def _correctness(evaluation: Evaluation) -> dict[str, str]:
    """How right the model is, by heading."""
    found = {HEADINGS[name]: percent(interval) for name, interval in evaluation.accuracy().items()}
    if evaluation.targets is not None:
        return found | {f"AP of {name}": f"{100 * value:.1f} %" for name, value in evaluation.precisions().items()}
    surest = evaluation.selective().accuracy_at(COVERAGES[0])
    return found | {
        "ECE": f"{evaluation.calibration_error():.3f}",
        "Brier": f"{evaluation.brier().mean:.3f}",
        f"top-1, surest {COVERAGES[0]:.0%}": f"{100 * surest:.1f} %",
    }


def _model(name: str, evaluation: Evaluation, dataset: ImageDataset, examples: int) -> dict[str, Any]:
    curves: dict[str, dict[str, Tensor]] = {
        metric: {method.name: method.curves[metric] for method in evaluation.methods}
        for metric in ("insertion", "deletion")
        if evaluation.methods and metric in evaluation.methods[0].curves
    }
    shown = [method.name for method in evaluation.methods if method.kind != "control"]
    has_gap = not evaluation.gaps.isnan().all()
    return {
        "name": name,
        "contract": str(evaluation.model.contract),
        "images": len(evaluation.ids),
        "correctness": _correctness(evaluation),
        "gap": f"{evaluation.gaps.nan_to_num().max():.0e}" if has_gap else "–",
        "prototypes": prototype_line(evaluation),
        "explained": len(evaluation.explained_ids),
        "masked": int((~evaluation.chance.isnan()).sum()),
        "rows": score_rows(evaluation),
        "curves": _embedded(curves_figure(curves)) if curves else "",
        "examples": _embedded(examples_figure(evaluation, dataset, examples, shown)) if evaluation.methods else "",
        "unreadable": evaluation.unreadable,
    }


@torch.no_grad()
def examples_figure(evaluation: Evaluation, dataset: ImageDataset, count: int, methods: Iterable[str]) -> Figure:
    """Images of `dataset`, that of the evaluation, spread evenly, and their maps by `methods`, as far as on the grid.

    Unreadable images are left out.
    """
    model = evaluation.model.eval()
    device = next(model.parameters()).device
    places = [place * len(dataset) // count for place in range(min(count, len(dataset)))]
    batch = next(iter(Loader(Subset(dataset, places), model.preprocess, len(places), on_error="skip"))).to(device)
    probabilities = model.probabilities(model(batch.images, explain=0).logits)
    confidence, predicted = probabilities.max(1)
    classes = predicted if evaluation.conventions.target == "predicted" else batch.labels
    names = [shorten(name, 34) for name in evaluation.class_names]
    titles = [
        names[label] + ("" if label == guess else f",\ntaken for {names[guess]}") + f" ({share:.0%})"
        for label, guess, share in zip(batch.labels.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
    ]
    numbers = torch.arange(len(classes))
    maps = {
        method.name: method.explain(batch.images, classes, numbers)
        for method in (map_method(name, model) for name in methods)
        if method.is_on_grid
    }
    pictures = [displayed(image, model.config.preprocessing) for image in batch.images]
    masks = (batch.masks == EVIDENCE) & batch.has_mask[:, None, None]
    return comparison_figure(pictures, titles, maps, masks, evaluation.conventions.placing(model.grid))


def _embedded(figure: Figure) -> str:
    return base64.b64encode(as_png(figure)).decode()
