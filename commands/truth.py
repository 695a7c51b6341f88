"""glasszoo truth: explanations against what each part of a critter is worth to the model, exactly."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ..common.errors import InputError
from .options import add_device, named_source

if TYPE_CHECKING:
    from ..evaluation.truth import Truth

_T = TypeVar("_T")
DESCRIPTION = "Judge explanations where the truth is known: by the exact worth of every part of a critter."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="trained on critters, as --model of 'evaluate'; NAME=MODEL: call it NAME in the table",
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves; or black_box")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of critters, as size")
    parser.add_argument(
        "--object-size",
        dest="object_sizes",
        action="append",
        choices=("small", "medium", "large"),
        help="of the critters; repeatable: a table for each (default: as the data options have it)",
    )
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--methods",
        help="comma-separated, from 'glasszoo list methods' (default: the quick ones); random, centre and uniform maps "
        "and the oracle, which knows the rule, come with every table",
    )
    parser.add_argument("--max-explained", type=int, metavar="N", help="look at N images only")
    parser.add_argument("--target", choices=("predicted", "label"), default="predicted", help="the class explained")
    parser.add_argument(
        "--placement",
        choices=("stretched", "receptive_field"),
        default="stretched",
        help="where a map's cells stand: tiles of the image, or the centres of their receptive fields",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images drawn with all their subsets at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/truth"), help="folder of the results")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation import lacking_methods
    from ..evaluation.results import as_table
    from ..evaluation.sheet import check_names
    from ..evaluation.truth import truth_methods
    from ..evaluation.truth_files import truth_rows, worth_line, write_truth

    sources = [named_source(text) for text in options.models]
    check_names([name for name, _ in sources])
    methods = truth_methods(options.methods.split(",") if options.methods else None)
    truths = _judged(options, sources, methods)
    write_truth(truths, options.out, command=options.command, split=options.split, data_option=options.data_option)
    for name, truth in truths.items():
        print(f"{name}: {worth_line(truth)}")
    print(as_table(truth_rows(truths)))
    for reason in [] if options.methods else lacking_methods():
        print(f"left out: {reason}")
    print(f"truth.json and truth.csv are in {options.out}")


def _judged(options: argparse.Namespace, sources: list[tuple[str, str]], methods: list[str]) -> "dict[str, Truth]":
    from ..data import create_dataset
    from ..data.critters import Critters
    from ..evaluation import Conventions
    from ..evaluation.benchmark import check_classes
    from ..evaluation.truth import judge_truth
    from ..models import open_model
    from ..training.building import chosen_device
    from ..training.recipe import parse_options

    given = parse_options(options.data_option)
    sizes = [{"object_size": size} for size in options.object_sizes or ()] or [{}]
    datasets = [cast(Critters, create_dataset("critters", options.split, **given, **size)) for size in sizes]
    device = chosen_device(options.device)
    models = {name: open_model(source, options.head).to(device) for name, source in sources}
    chosen = Conventions(target=options.target, placement=options.placement)
    how = {"batch_size": options.batch_size, "max_explained": options.max_explained}
    for name, model in models.items():  # all of them, now and not after hours
        _named(name, lambda: check_classes(model, datasets[0]))  # noqa: B023
    return {
        " ".join([name, *size.values()]): _named(
            name,
            lambda: judge_truth(model, dataset, methods=methods, conventions=chosen, **how),  # noqa: B023
        )
        for name, model in models.items()
        for dataset, size in zip(datasets, sizes, strict=True)
    }


def _named(name: str, work: Callable[[], _T]) -> _T:
    """What `work` gives; its errors begin with the model's name."""
    try:
        return work()
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
