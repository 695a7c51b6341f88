"""glasszoo evaluate: a model's accuracy and explanations, judged."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InputError
from .options import add_conventions, add_device, add_model, add_wandb, conventions_of

if TYPE_CHECKING:
    import torch

    from ..data.samples import ImageDataset
    from ..evaluation import Evaluation
    from ..training.wandb_run import WandbRun

DESCRIPTION = "Judge a model's accuracy and explanations; write tables and a report."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model(parser)
    parser.add_argument("--data", required=True, help="data set: a name or a folder")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--methods", help="comma-separated, from 'glasszoo list methods' (default: all installed)")
    parser.add_argument(
        "--metrics",
        help="comma-separated, from 'glasszoo list metrics' (default: insertion, deletion, both pointing games)",
    )
    parser.add_argument("--max-explained", type=int, metavar="N", help="score the maps of N images only")
    add_conventions(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument(
        "--skip-prototypes",
        action="store_true",
        help="do not judge prototypes: it takes another pass over all images",
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and count them")
    parser.add_argument(
        "--into-card",
        action="store_true",
        help="add the numbers, and a picture of four images, to the model card of local-dir:CHECKPOINT",
    )
    parser.add_argument("--withhold-images", action="store_true", help="no picture in the card: the images are private")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="folder of the results")
    add_wandb(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..common.processes import started_processes
    from ..training.building import chosen_device

    with started_processes(chosen_device(options.device)) as device:
        _evaluate(options, device)


def _evaluate(options: argparse.Namespace, device: "torch.device") -> None:
    from ..common.processes import is_first
    from ..data import create_dataset
    from ..evaluation import QUICK_METRICS, evaluate
    from ..evaluation.card import check_card_of
    from ..evaluation.parts import forget
    from ..models import open_model
    from ..models.sources import resolve
    from ..training.recipe import parse_options
    from ..training.wandb_run import WandbRun

    wandb_run = WandbRun(options.wandb)
    if options.into_card and not options.model.startswith("local-dir:"):
        raise InputError(
            f"--into-card writes into a checkpoint's folder, local-dir:PATH, but --model is {options.model}"
        )
    dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
    model = open_model(options.model, options.head).to(device)
    if options.into_card:
        check_card_of(resolve(options.model), model)  # now, not after all images
    evaluation = evaluate(
        model,
        dataset,
        methods=options.methods.split(",") if options.methods else None,
        metrics=options.metrics.split(",") if options.metrics else QUICK_METRICS,
        conventions=conventions_of(options),
        batch_size=options.batch_size,
        max_explained=options.max_explained,
        judges_prototypes=not options.skip_prototypes,
        num_workers=options.workers,
        on_error="skip" if options.skip_unreadable else "raise",
        store=options.out / "parts",  # a killed evaluation, asked for again, goes on where it was
    )
    forget(options.out / "parts")
    if is_first():
        _tell(options, evaluation, dataset)
        _report(options, wandb_run, evaluation)


def _report(options: argparse.Namespace, wandb_run: "WandbRun", evaluation: "Evaluation") -> None:
    """To W&B, where that is asked for."""
    from ..evaluation.sheet import Sheet
    from ..training.wandb_tables import report_sheet

    name = f"{evaluation.model.config.head} · {evaluation.model.config.architecture}"
    config = {"model": options.model, "data": options.data, "split": options.split, "command": options.command}
    report_sheet(wandb_run, options.out, Sheet([(name, evaluation)]), "evaluate", config)


def _tell(options: argparse.Namespace, evaluation: "Evaluation", dataset: "ImageDataset") -> None:
    """Files, the printed table, and the card."""
    from ..evaluation import complete_card, lacking_methods
    from ..evaluation.report import write_report
    from ..evaluation.results import accuracy_line, as_table, prototype_line, score_rows, write_results
    from ..models.layout import CARD
    from ..models.sources import resolve

    model = evaluation.model
    about = {"command": options.command, "data": options.data, "split": options.split}
    write_results(evaluation, options.out, **about)
    name = f"{model.config.head} · {model.config.architecture}"
    write_report(options.out / "report.html", f"{name} on {options.split}", {name: evaluation}, dataset, **about)
    print(accuracy_line(evaluation))
    if line := prototype_line(evaluation):
        print(line)
    print(as_table(score_rows(evaluation)))
    for reason in [*evaluation.unreadable, *evaluation.notes, *([] if options.methods else lacking_methods())]:
        print(f"left out: {reason}")
    if options.into_card:
        folder = resolve(options.model)
        facts = complete_card(
            folder,
            evaluation,
            dataset,
            data=options.data,
            split=options.split,
            command=options.command,
            withholds_images=options.withhold_images,
        )
        lacking = facts.lacking()
        print(f"the card is {folder / CARD}" + (f"; it still lacks: {', '.join(lacking)}" if lacking else ""))
    print(f"results.json, per_image.csv and report.html are in {options.out}")
