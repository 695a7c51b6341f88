"""glasszoo compare: several models and all their explanations on one sheet."""

import argparse
import json
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InputError, unknown_name
from .options import add_conventions, add_device, add_wandb, conventions_of, named_source

if TYPE_CHECKING:
    from ..data.samples import ImageDataset
    from ..evaluation import Evaluation
    from ..evaluation.exhibits import Exhibit
    from ..models import ImageClassifier

DESCRIPTION = "Judge several models and their explanations side by side; write one sheet."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="as --model of 'evaluate'; NAME=MODEL: call it NAME in the sheet"
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves; or black_box")
    parser.add_argument("--data", required=True, help="data set: a name or a folder")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--methods", help="'all', or comma-separated, from 'glasszoo list methods' (default: all installed)"
    )
    parser.add_argument(
        "--metrics", help="'all', or comma-separated, from 'glasszoo list metrics' (default: the quick ones)"
    )
    parser.add_argument("--pareto", metavar="METRIC", help="that spans the front with accuracy (default: insertion)")
    parser.add_argument("--max-explained", type=int, metavar="N", help="score the maps of N images only")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="to browse in the page (default: 16)")
    add_conventions(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument(
        "--skip-prototypes",
        action="store_true",
        help="do not judge prototypes: it takes another pass over all images",
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and count them")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of the results")
    add_wandb(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..common.processes import started_processes
    from ..data import create_dataset
    from ..data.samples import targets_of
    from ..evaluation.sheet import check_names
    from ..models import open_model
    from ..training.building import chosen_device
    from ..training.recipe import parse_options

    sources = [named_source(text) for text in options.models]
    check_names([name for name, _ in sources])
    _check_choices(options)
    with started_processes(chosen_device(options.device)) as device:
        dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
        if targets_of(dataset) is not None:
            raise InputError(
                "compare ranks models by top-1, but these images show several classes or none: use evaluate"
            )
        models = {name: open_model(source, options.head).to(device) for name, source in sources}
        _compare(options, models, dataset)


def _check_choices(options: argparse.Namespace) -> None:
    """Turn the lists of methods and metrics into names, and refuse what would be refused after hours."""
    from ..evaluation import METHODS, METRICS, QUICK_METRICS, quick_methods
    from ..evaluation.metrics import chosen_metrics

    if options.images < 0:
        raise InputError(f"--images must be 0 or more, got {options.images}")
    options.metrics = _names(options.metrics, METRICS, QUICK_METRICS)
    chosen_metrics(options.metrics)
    if options.pareto and options.pareto not in options.metrics:
        chosen_metrics([options.pareto])
        raise InputError(f"--pareto {options.pareto} is not among the metrics asked for: {', '.join(options.metrics)}")
    options.insists = options.methods not in (None, "all")  # on every method
    options.methods = _names(options.methods, METHODS, quick_methods())
    for method in options.methods:
        if method not in METHODS:
            raise unknown_name("explanation method", method, METHODS)


def _compare(options: argparse.Namespace, models: "dict[str, ImageClassifier]", dataset: "ImageDataset") -> None:
    from ..common.processes import is_first
    from ..evaluation import lacking_methods
    from ..evaluation.browser import write_browser
    from ..evaluation.exhibits import shown_classes
    from ..evaluation.kept import Kept
    from ..evaluation.parts import forget
    from ..evaluation.sheet import Sheet
    from ..evaluation.sheet_files import as_text, write_sheet
    from ..training.wandb_run import WandbRun
    from ..training.wandb_tables import report_sheet

    wandb_run = WandbRun(options.wandb)
    offered, reasons = _offered(options, models, dataset)
    store = options.out / "parts"
    data = " ".join([options.data, options.split, *sorted(options.data_option)])
    choices = {
        "metrics": options.metrics,
        "conventions": conventions_of(options),
        "batch_size": options.batch_size,
        "max_explained": options.max_explained,
        "judges_prototypes": not options.skip_prototypes,
        "on_error": "skip" if options.skip_unreadable else "raise",
    }
    kept = {
        name: Kept(store, model, dataset, data, {**choices, "methods": offered[name]}) for name, model in models.items()
    }
    evaluations = []
    for place, (name, own) in enumerate(kept.items(), 1):
        if is_first():
            how = {"finished": ": finished before the stop", "begun": ": resumes where it was stopped"}
            print(f"{name} ({place} of {len(kept)}){how.get(own.state, '')}", file=sys.stderr)
        evaluations.append((name, own.evaluated(num_workers=options.workers)))
    sheet = Sheet(evaluations, options.pareto)
    classes = shown_classes([evaluation for _, evaluation in evaluations])
    folders = {name: own.folder for name, own in kept.items()}
    exhibits = _exhibits(options, sheet.evaluations, dataset, classes, folders)
    if not is_first():
        return
    about = {"command": options.command, "data": options.data, "split": options.split, "left_out": reasons}
    write_sheet(sheet, options.out, **about)
    title = f"{len(models)} models on the {options.split} split of {options.data}"
    write_browser(options.out / "sheet.html", sheet, title, exhibits, classes, dataset, **about)
    forget(store)
    print(as_text(sheet))
    notes = [f"{name}: {note}" for name, found in sheet.evaluations.items() for note in found.notes]
    for reason in [*sheet.first.unreadable, *notes, *reasons, *([] if options.insists else lacking_methods())]:
        print(f"left out: {reason}")
    report_sheet(wandb_run, options.out, sheet, "compare", about | {"models": options.models})
    print(f"sheet.html, sheet.csv and sheet.json are in {options.out}")


def _exhibits(
    options: argparse.Namespace,
    evaluations: "dict[str, Evaluation]",
    dataset: "ImageDataset",
    classes: dict[str, list[int]],
    folders: dict[str, Path],
) -> "dict[str, Exhibit]":
    """What the page shows of each model; parts are kept by what the classes are, which depends on all models."""
    from ..evaluation.browser import side_of_maps
    from ..evaluation.exhibits import exhibit, spread_places

    if not (places := spread_places(dataset, options.images)):
        return {}
    side = side_of_maps(list(evaluations.values()), len(places), len(next(iter(classes.values()))))
    own = zlib.crc32(json.dumps([places, side, classes]).encode())
    how = {"side": side, "num_workers": options.workers}
    return {
        name: exhibit(found, dataset, places, classes, store=folders[name] / f"pictures-{own:08x}", **how)
        for name, found in evaluations.items()
    }


def _offered(
    options: argparse.Namespace, models: "dict[str, ImageClassifier]", dataset: "ImageDataset"
) -> tuple[dict[str, list[str]], list[str]]:
    """The methods that each model can offer, and a sentence for each that it cannot.

    Raises:
        InputError: A model of other classes than the data set's, or a method asked for that none can offer.
    """
    from ..evaluation import map_method
    from ..evaluation.benchmark import check_classes

    offered: dict[str, list[str]] = {name: [] for name in models}
    reasons: list[str] = []
    for name, model in models.items():
        try:
            check_classes(model, dataset)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    for method in options.methods:
        refused: list[InputError] = []
        for name, model in models.items():
            try:
                map_method(method, model)
                offered[name].append(method)
            except InputError as error:
                refused.append(error)
                reasons.append(f"{method} of {name}: {error}")
        if options.insists and len(refused) == len(models):
            raise refused[0]
    return offered, reasons


def _names(text: str | None, known: Iterable[str], default: Iterable[str]) -> list[str]:
    if text is None:
        return list(default)
    return list(known) if text == "all" else text.split(",")
