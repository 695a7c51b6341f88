"""glasszoo attack: how far predictions and explanations move when images change by what nobody sees."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InputError
from .options import add_device, named_source

if TYPE_CHECKING:
    from ..evaluation.adversarial import Budget
    from ..evaluation.robustness import Robustness

DESCRIPTION = "Attack predictions, and explanations with the prediction held; tell how far each moves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="as --model of 'evaluate'; NAME=MODEL: call it NAME in the table"
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves; or black_box")
    parser.add_argument("--data", required=True, help="data set: a name or a folder")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--methods", help="comma-separated: built-in, grad-cam, gradient (default: built-in,grad-cam)")
    parser.add_argument("--epsilon", type=float, default=2.0, help="largest change of a pixel, of 255 (default: 2)")
    parser.add_argument("--step", type=float, help="of an iteration (default: a quarter of --epsilon)")
    parser.add_argument("--iterations", type=int, default=20, help="steps (default: 20)")
    parser.add_argument(
        "--change",
        choices=("cosine", "top_k"),
        default="cosine",
        help="of a map: turn it as far as can be, or empty its highest tenth",
    )
    parser.add_argument("--penalty", type=float, default=0.1, help="of leaving the prediction (default: 0.1)")
    parser.add_argument(
        "--softplus",
        type=float,
        metavar="BETA",
        help="choose the steps of the attack on maps with rectifiers this sharp; for 'gradient', try 10",
    )
    parser.add_argument("--max-explained", type=int, metavar="N", help="attack N images only")
    parser.add_argument("--pictures", type=int, default=2, metavar="N", help="show the first N images (default: 2)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and count them")
    parser.add_argument("--seed", type=int, default=0, help="of noise and first steps")
    parser.add_argument("--out", type=Path, default=Path("runs/attack"), help="folder of the results")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation.results import as_table
    from ..evaluation.robustness_files import robustness_line, robustness_rows, write_robustness
    from ..evaluation.sheet import check_names

    sources = [named_source(text) for text in options.models]
    check_names([name for name, _ in sources])
    found = _judged(options, sources, _budget(options))
    files = write_robustness(found, options.out, command=options.command, data=options.data, split=options.split)
    for name, own in found.items():
        print(f"{name}: {robustness_line(own)}")
    print(as_table(robustness_rows(found)))
    for reason in [reason for own in found.values() for reason in own.unreadable]:
        print(f"left out: {reason}")
    print(f"{', '.join(files[:-1])} and {files[-1]} are in {options.out}")


def _budget(options: argparse.Namespace) -> "Budget":
    from ..evaluation.adversarial import Budget

    return Budget(
        epsilon=options.epsilon,
        step=options.epsilon / 4 if options.step is None else options.step,
        iterations=options.iterations,
        change=options.change,
        penalty=options.penalty,
        softplus=options.softplus,
        seed=options.seed,
    )


def _judged(options: argparse.Namespace, sources: list[tuple[str, str]], budget: "Budget") -> "dict[str, Robustness]":
    from ..data import create_dataset
    from ..evaluation.benchmark import check_classes
    from ..evaluation.parts import Reading
    from ..evaluation.robustness import attacked_methods, judge_robustness
    from ..models import open_model
    from ..training.building import chosen_device
    from ..training.recipe import parse_options

    dataset = create_dataset(options.data, options.split, **parse_options(options.data_option))
    device = chosen_device(options.device)
    models = {name: open_model(source, options.head).to(device) for name, source in sources}
    reading = Reading(options.batch_size, options.workers, "skip" if options.skip_unreadable else "raise")
    methods = options.methods.split(",") if options.methods else None
    found = {}
    name = ""
    try:
        for name, model in models.items():  # noqa: B007 (all of them, now and not after hours)
            check_classes(model, dataset)
            attacked_methods(model, methods)
        for name, model in models.items():
            found[name] = judge_robustness(
                model,
                dataset,
                methods=methods,
                budget=budget,
                reading=reading,
                max_explained=options.max_explained,
                pictures=options.pictures,
            )
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return found
