"""Prototypes, and the scores of an evaluation, as tables and charts of W&B."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from ..data.samples import ImageDataset
from ..evaluation.gallery import Pictures, framed
from ..evaluation.pictures import as_png
from ..evaluation.results import HEADINGS
from ..evaluation.sheet import Sheet
from ..evaluation.sheet_files import LONG_COLUMNS, long_rows
from ..heads.best_cell import BestCellHead
from ..models import ImageClassifier, InterpretableClassifier
from .wandb_run import WandbRun

MOST = 500  # prototypes in a table, evenly chosen; each has a picture

PROTOTYPE_COLUMNS = ("prototype", "class", "weight", "is_kept", "image", "box", "proximity")


def prototype_table(model: ImageClassifier, training: ImageDataset | None) -> dict[str, Any]:
    """`prototypes`: a row for each prototype that was projected, `MOST` at most; nothing where none was.

    `class` and `weight`: its own class, or the one for which it counts most, and what it counts for that; none where
    the head has no such weights. `box`: x1 y1 x2 y2 in pixels of the model's input. `proximity`: to that patch, before
    it was projected. `source`: the training image that it came from, the box of what its cell sees outlined; the column
    is left out without `training`.
    """
    import wandb

    entries = [entry for entry in model.provenance if "image" in entry]
    if not entries or not isinstance(model, InterpretableClassifier):
        return {}
    head, names = model.head, model.class_names
    count = min(MOST, len(entries))
    pictures = Pictures(training, model) if training else None
    table = wandb.Table(columns=[*PROTOTYPE_COLUMNS, *(["source"] if pictures else [])])
    for entry in (entries[place * len(entries) // count] for place in range(count)):
        number, owner, weight, is_kept = entry["prototype"], entry["class"], None, None
        if isinstance(head, BestCellHead):
            weights = head.weight[:, number]
            owner = int(weights.argmax()) if owner is None else owner
            weight, is_kept = weights[owner].item(), bool(head.is_kept[number])
        box = None if entry["box"] is None else " ".join(f"{edge:g}" for edge in entry["box"])
        whose = None if owner is None else names[owner]
        source = [wandb.Image(framed(pictures.picture(entry["image"]), entry["box"]))] if pictures else []
        table.add_data(number, whose, weight, is_kept, entry["image"], box, entry["proximity"], *source)
    return {"prototypes": table}


def evaluation_tables(sheet: Sheet) -> dict[str, Any]:
    """What a sheet holds, for W&B.

    `evaluation`: sheet.csv as a table, a row for each model, method and quantity. `pareto`: a chart of accuracy over
    the metric of the front, a point a row of the sheet but controls; `pareto_front`: the same with the front marked.
    """
    import wandb

    table = wandb.Table(columns=list(LONG_COLUMNS))
    for cells in long_rows(sheet):
        table.add_data(*(None if cell == "" or _is_nan(cell) else cell for cell in cells))
    by = sheet.front_by
    if by is None:
        return {"evaluation": table}
    points = [
        [row.model, row.method, row.score(by.name), row.accuracy.mean, is_on_front]
        for row, is_on_front in zip(sheet.rows, sheet.on_front, strict=True)
        if row.is_explanation and not _is_nan(row.score(by.name))
    ]
    chart = wandb.Table(columns=["model", "method", by.name, sheet.measure, "on_front"], data=points)
    heading = HEADINGS[sheet.measure]
    title = f"{heading} over {by.heading}"
    picture = Image.open(io.BytesIO(as_png(_front_figure(points, by.heading, heading, by.best == "highest"))))
    return {
        "evaluation": table,
        "pareto": wandb.plot.scatter(chart, by.name, sheet.measure, title=title),
        "pareto_front": wandb.Image(picture, caption=f"{title}; joined: no other row is as good in both"),
    }


def _front_figure(points: list[list[Any]], score: str, accuracy: str, is_rising: bool) -> Figure:
    """Points (model, method, score, accuracy, whether on the front): the front filled, joined and named."""
    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    others = [point for point in points if not point[4]]
    front = sorted((point for point in points if point[4]), key=lambda point: (point[2], point[3]))
    axes.plot([point[2] for point in others], [point[3] for point in others], "o", mfc="none", color="0.5")
    axes.plot([point[2] for point in front], [point[3] for point in front], "o-", color="C3", label="Pareto front")
    for model, method, across, up, _ in front:
        axes.annotate(f"{model} · {method}", (across, up), xytext=(5, 6), textcoords="offset points", fontsize=8)
    if not is_rising:
        axes.invert_xaxis()  # better is to the right
    axes.margins(0.12)
    axes.set_xlabel(score)
    axes.set_ylabel(accuracy)
    axes.grid(alpha=0.3)
    if front:
        axes.legend(fontsize=8)
    return figure


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def report_sheet(run: WandbRun, folder: Path, sheet: Sheet, job_type: str, config: Mapping[str, Any]) -> None:
    """Report a sheet as a run of its own, whose files go below `folder`."""
    run.start(folder, config, job_type=job_type)
    run.add(lambda: evaluation_tables(sheet))
    run.finish()
