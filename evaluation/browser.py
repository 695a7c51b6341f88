"""A sheet as one self-contained page: sortable table, front, curves, correlations, and a browser of images and maps."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from ..common.files import write_text
from ..data.samples import ImageDataset
from .benchmark import Evaluation
from .exhibits import Exhibit
from .pictures import COLOURS
from .results import accuracy_line, environment, percent, score
from .sheet import Row, Sheet
from .sheet_files import (
    FRONT,
    correlation_rows,
    cost_text,
    cost_title,
    difference_tables,
    front_line,
    gap_text,
    missing_line,
    without_nan,
)

_SIDES = (32, 24, 16, 12, 8)  # cells a side of the maps in the page
_BYTES = 5_000_000  # that all maps may take in the page
_PICTURE = 224  # pixels of a picture's longer side


def side_of_maps(evaluations: Sequence[Evaluation], images: int, classes: int) -> int:
    """Cells a side so that all maps fit into the page."""
    methods = sum(method.kind != "control" for evaluation in evaluations for method in evaluation.methods)
    return next(
        (side for side in _SIDES if images * classes * methods * side**2 * 4 / 3 <= _BYTES),
        _SIDES[-1],
    )


def write_browser(
    path: Path,
    sheet: Sheet,
    title: str,
    exhibits: dict[str, Exhibit],
    classes: dict[str, list[int]],
    dataset: ImageDataset,
    **about: Any,
) -> None:
    """Write the page to `path`.

    Args:
        path: The HTML file.
        sheet: What the table holds.
        title: Its headline.
        exhibits: By model, all of the same images; none: the page has no browser.
        classes: Of each image the classes that `exhibits` explain.
        dataset: That of the evaluations.
        about: What was run (command, data, seed, commit), shown as it is.
    """
    loader = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True, undefined=StrictUndefined
    )
    first = sheet.first
    told = {**about, **environment(first), "conventions": asdict(sheet.conventions)}
    page = loader.get_template("sheet.html").render(
        title=title,
        subtitle=f"{len(first.ids)} images, {len(first.explained_ids)} of them with their maps scored; "
        f"{len(dataset.classes)} classes: {shorten(', '.join(dataset.classes), 300)}",
        chance=score(first.interval(first.chance)),
        confidence=f"{sheet.conventions.confidence:.0%}",
        columns=_columns(sheet),
        rows=[_row(sheet, place, row) for place, row in enumerate(sheet.rows)],
        models=[(name, _lines(evaluation)) for name, evaluation in sheet.evaluations.items()],
        side=max((found.side for found in exhibits.values()), default=0),
        notes=[note for note in (front_line(sheet), missing_line(sheet)) if note],
        differences=difference_tables(sheet),
        correlation=_correlation(sheet),
        counted=sum(row.is_explanation for row in sheet.rows),
        protocols=[(metric.heading, metric.protocol(sheet.conventions)) for metric in sheet.metrics],
        unreadable=list(dict.fromkeys(line for found in sheet.evaluations.values() for line in found.unreadable)),
        about=json.dumps(told, indent=2, ensure_ascii=False),
        data=without_nan({**_plots(sheet), **_browser(sheet, exhibits, classes)}),
    )
    write_text(path, page)


def _lines(evaluation: Evaluation) -> tuple[str, str]:
    model = evaluation.model
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    what = f"{model.config.head} · {model.config.architecture}, contract {model.contract}, {size:.3g} M parameters"
    return what, accuracy_line(evaluation)


def _columns(sheet: Sheet) -> list[dict[str, str]]:
    """Headings, and which end is better ("" for text)."""
    return [
        {"title": "row", "best": "lowest"},
        *({"title": title, "best": ""} for title in ("model", "map", "kind")),
        {"title": "top-1 ↑", "best": "highest"},
        *({"title": metric.heading, "best": metric.best} for metric in sheet.metrics),
        *({"title": cost_title(name), "best": "lowest"} for name in sheet.costs),
        {"title": "completeness gap ↓", "best": "lowest"},
    ]


def _row(sheet: Sheet, place: int, row: Row) -> dict[str, Any]:
    is_on_front = sheet.on_front[place]
    numbers = [
        (percent(row.accuracy), row.accuracy.mean),
        *(
            (score(row.scores[metric.name]) if metric.name in row.scores else "–", row.score(metric.name))
            for metric in sheet.metrics
        ),
        *((cost_text(row.cost.get(name)), row.cost.get(name, math.nan)) for name in sheet.costs),
        (gap_text(row.gap), row.gap),
    ]
    cells = [
        (f"{place + 1} {FRONT}" if is_on_front else str(place + 1), str(place)),
        *((text, text) for text in (row.model, row.method, row.kind)),
        *((text, "" if math.isnan(value) else repr(value)) for text, value in numbers),
    ]
    return {"kind": row.kind, "is_on_front": is_on_front, "cells": cells}


def _correlation(sheet: Sheet) -> list[list[dict[str, str]]]:
    """The matrix's cells with their colours, first row and column the titles."""
    colours = matplotlib.colormaps[COLOURS]
    table = [[{"text": text, "colour": ""} for text in row] for row in correlation_rows(sheet)]
    for cells, values in zip(table[1:], sheet.correlation.tolist(), strict=True):
        for cell, value in zip(cells[1:], values, strict=True):
            if not math.isnan(value):  # pale, so that the text stays legible
                cell["colour"] = matplotlib.colors.to_hex(colours(0.5 + 0.25 * value))
    return table


def _plots(sheet: Sheet) -> dict[str, Any]:
    """What scatter and curves are drawn from."""
    by = sheet.front_by
    curved = [metric for metric in sheet.metrics if any(metric.name in row.curves for row in sheet.rows)]
    return {
        "front": {"title": by.heading, "best": by.best} if by else None,
        "rows": [
            {
                "model": row.model,
                "method": row.method,
                "kind": row.kind,
                "isOnFront": is_on_front,
                "accuracy": row.accuracy.mean,
                "score": row.score(by.name) if by else None,
                "curves": {
                    metric.name: [round(value, 4) for value in row.curves[metric.name].tolist()]
                    for metric in curved
                    if metric.name in row.curves
                },
            }
            for row, is_on_front in zip(sheet.rows, sheet.on_front, strict=True)
        ],
        "curves": [{"name": metric.name, "title": metric.heading} for metric in curved],
        "output": sheet.conventions.output,
    }


def _browser(sheet: Sheet, exhibits: dict[str, Exhibit], classes: dict[str, list[int]]) -> dict[str, Any]:
    """Images, the views of them that models have, and every map as bytes.

    A map is a row of int8, 127 its largest absolute value ("peaks"); those of one model and method are one text, image
    after image, class after class.
    """
    names, first = list(exhibits), next(iter(exhibits.values()), None)
    ids = first.ids if first else []
    rows = {identifier: row for row, identifier in enumerate(sheet.first.ids)}
    labels = sheet.first.labels.tolist()
    views = list(dict.fromkeys(sheet.evaluations[name].model.config.preprocessing for name in names))
    seen_by = [views.index(sheet.evaluations[name].model.config.preprocessing) for name in names]
    return {
        "classes": {
            str(number): shorten(sheet.first.class_names[number], 40)
            for identifier in ids
            for number in (*classes[identifier], labels[rows[identifier]])
        },
        "models": [{"name": name, "view": view} for name, view in zip(names, seen_by, strict=True)],
        "images": [
            {
                "id": identifier,
                "label": labels[rows[identifier]],
                "classes": classes[identifier],
                "probabilities": [
                    [round(sheet.evaluations[name].probabilities[rows[identifier], k].item(), 4)
                     for k in classes[identifier]]
                    for name in names
                ],
                "predicted": [int(sheet.evaluations[name].logits[rows[identifier]].argmax()) for name in names],
                "views": [_view(exhibits[names[seen_by.index(view)]], place) for view in range(len(views))],
            }
            for place, identifier in enumerate(ids)
        ],
        "maps": [
            {"model": model, "method": method, "unit": exhibits[name].units[method], **_packed(maps)}
            for model, name in enumerate(names)
            for method, maps in exhibits[name].maps.items()
        ],
    }  # fmt: skip


def _packed(maps: Tensor) -> dict[str, Any]:
    """Maps `n k h w` as bytes; a map that is not finite has no peak."""
    peaks = maps.abs().amax((-2, -1))
    scaled = maps / peaks.clamp(min=1e-30)[..., None, None] * 127
    cells = scaled.nan_to_num().clamp(-127, 127).round().to(torch.int8)
    return {
        "height": maps.shape[-2],
        "width": maps.shape[-1],
        "peaks": [[float(f"{peak:.4g}") if math.isfinite(peak) else None for peak in row] for row in peaks.tolist()],
        "cells": base64.b64encode(cells.contiguous().numpy().tobytes()).decode(),
    }


def _view(exhibit: Exhibit, place: int) -> dict[str, str]:
    """One image as a model sees it, and its mask ("": none), as data URIs."""
    picture = Image.fromarray(exhibit.pictures[place].numpy())
    picture.thumbnail((_PICTURE, _PICTURE))
    mask = exhibit.masks[place]
    small = Image.fromarray(mask.numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return {
        "picture": _data_uri(picture, "JPEG", quality=85),
        "mask": _data_uri(small, "PNG") if bool(mask.any()) else "",
    }


def _data_uri(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
