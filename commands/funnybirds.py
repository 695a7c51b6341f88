"""glasszoo funnybirds: explanations judged by FunnyBirds' protocol."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InputError
from .options import add_device, named_source

if TYPE_CHECKING:
    from ..evaluation.funnybirds_results import Birds

DESCRIPTION = "Judge explanations by FunnyBirds' protocol: completeness, correctness, contrastivity."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="trained on FunnyBirds, as --model of 'evaluate'; NAME=MODEL: call it NAME in the table",
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves; or black_box")
    parser.add_argument("--data-root", required=True, metavar="FOLDER", help="in the layout of FunnyBirds")
    parser.add_argument("--split", default="test")
    parser.add_argument("--methods", help="comma-separated, from 'glasszoo list methods' (default: the quick ones)")
    parser.add_argument("--max-explained", type=int, metavar="N", help="look at N images only")
    parser.add_argument("--target", choices=("predicted", "label"), default="predicted", help="the class explained")
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="thresholds best on the judged images, constant maps left out, and 5 %% of the raw logit as what counts",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/funnybirds"), help="folder of the results")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation.funnybirds_results import birds_line, birds_rows, write_birds
    from ..evaluation.results import as_table
    from ..evaluation.sheet import check_names

    sources = [named_source(text) for text in options.models]
    check_names([name for name, _ in sources])
    found = _judged(options, sources)
    write_birds(found, options.out, command=options.command, data=options.data_root, split=options.split)
    for name, birds in found.items():
        print(f"{name}: {birds_line(birds)}")
    print(as_table(birds_rows(found)))
    print(f"funnybirds.json and funnybirds.csv are in {options.out}")


def _judged(options: argparse.Namespace, sources: list[tuple[str, str]]) -> "dict[str, Birds]":
    from ..data.funnybirds import FunnyBirds
    from ..evaluation import Conventions
    from ..evaluation.benchmark import check_classes
    from ..evaluation.funnybirds import judge_funnybirds
    from ..evaluation.funnybirds_results import PUBLISHED, Protocol
    from ..models import open_model
    from ..training.building import chosen_device

    dataset = FunnyBirds(options.data_root, options.split)
    device = chosen_device(options.device)
    models = {name: open_model(source, options.head).to(device) for name, source in sources}
    found: dict[str, Birds] = {}
    name = ""
    try:
        for name, model in models.items():  # noqa: B007 (all of them, now and not after hours)
            check_classes(model, dataset)
        for name, model in models.items():
            found[name] = judge_funnybirds(
                model,
                dataset,
                methods=options.methods.split(",") if options.methods else None,
                protocol=PUBLISHED if options.as_published else Protocol(),
                conventions=Conventions(target=options.target),
                max_explained=options.max_explained,
            )
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return found
