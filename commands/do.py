"""glasszoo do: critters changed in one thing, what that does to a model, and what its maps said it would."""

import argparse
from pathlib import Path

from .options import add_device, named_source

DESCRIPTION = "Change one thing in critters; set what maps predict against what the change does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="trained on critters; NAME=MODEL: call it NAME in the table"
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves; or black_box")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of critters, as size")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--methods", help="comma-separated, from 'glasszoo list methods' (default: built-in, hires-cam, random)"
    )
    parser.add_argument("--max-explained", type=int, metavar="N", help="look at N images only")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/do"), help="folder of the results")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from typing import cast

    from ..data import create_dataset
    from ..data.critters import Critters
    from ..evaluation.intervention_files import outcome_rows, write_outcomes
    from ..evaluation.interventions import judge_interventions
    from ..evaluation.results import as_table
    from ..evaluation.sheet import check_names
    from ..models import open_model
    from ..training.building import chosen_device
    from ..training.recipe import parse_options

    sources = [named_source(text) for text in options.models]
    check_names([name for name, _ in sources])
    methods = (options.methods or "built-in,hires-cam,random").split(",")
    dataset = cast(Critters, create_dataset("critters", options.split, **parse_options(options.data_option)))
    device = chosen_device(options.device)
    models = {name: open_model(source, options.head).to(device) for name, source in sources}
    found = {
        name: judge_interventions(
            model, dataset, methods, batch_size=options.batch_size, max_explained=options.max_explained
        )
        for name, model in models.items()
    }
    write_outcomes(found, options.out, command=options.command, split=options.split, data_option=options.data_option)
    print(as_table(outcome_rows(found)))
    print(f"do.json and do.csv are in {options.out}")
