"""glasszoo prune: prototypes removed, the last layer re-fitted."""

import argparse
from pathlib import Path

from .options import add_device

DESCRIPTION = "Remove prototypes, re-fit the last layer, and say what that does to accuracy."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--model", required=True, help="local-dir:CHECKPOINT")
    parser.add_argument("--data", required=True, help="the data set that the model was trained on; not its test split")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--remove", nargs="+", type=int, default=[], metavar="ID", help="by number, as in the gallery")
    parser.add_argument("--as-in-paper", action="store_true", help="prune as the head's paper does")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="keep the N that add most to logits; one a class at least"
    )
    parser.add_argument("--refit-epochs", type=int, default=10, metavar="N", help="0: leave the last layer as it is")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the re-fit")
    parser.add_argument("--seed", type=int, default=0, help="the training run's, or images it knows judge it")
    parser.add_argument("--validation", type=float, default=0.15, help="the training run's share of validation images")
    parser.add_argument("--validation-split", metavar="NAME", help="the training run's data.validation_split, if any")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out, and list them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..common.files import check_vacant
    from ..evaluation.results import as_table
    from ..models import load_pretrained, read_facts, save_pretrained
    from ..models.sources import resolve
    from ..training.building import build_data, chosen_device
    from ..training.card import facts_of_pruning
    from ..training.interaction import Pruning, Refit, prune_and_refit
    from ..training.recipe import DataRecipe, parse_options

    pruning = Pruning(options.remove, options.as_in_paper, options.budget)
    refit_by = Refit(options.refit_epochs, options.lr)
    check_vacant(options.out)
    device = chosen_device(options.device)
    model = load_pretrained(options.model).to(device)
    before = read_facts(resolve(options.model))
    data = DataRecipe(
        options.data,
        parse_options(options.data_option),
        validation=options.validation,
        validation_split=options.validation_split,
    )
    done = prune_and_refit(
        model,
        *build_data(data, options.seed),
        pruning,
        refit_by,
        seed=options.seed,
        on_error="skip" if options.skip_unreadable else "raise",
    )
    table = as_table(done.rows())
    save_pretrained(model, options.out, facts_of_pruning(before, options.command, device, table, done.refitted))
    print(table)
    for line in (done.refitted, *(f"left out: {reason}" for reason in done.unreadable)):
        print(line)
    print(f"the new checkpoint is local-dir:{options.out}")
