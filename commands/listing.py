"""glasszoo list: the names that the other commands take."""

import argparse

from ..common.errors import unknown_name

DESCRIPTION = "Print the names that the other commands take."

LISTS = ("heads", "backbones", "recipes", "datasets", "metrics", "methods")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("what", choices=LISTS, metavar="|".join(LISTS))
    parser.add_argument("pattern", nargs="?", default="*", help="with wildcards, as 'resnet*'")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from fnmatch import filter as matching

    from ..data import DATASETS
    from ..evaluation import MAP_METRICS, METHODS
    from ..heads import list_heads
    from ..models import BLACK_BOX, list_backbones
    from ..training import list_recipes

    names = {
        "heads": lambda: [*list_heads(), BLACK_BOX],
        "backbones": lambda: list_backbones(options.pattern),
        "recipes": list_recipes,
        "datasets": lambda: sorted(DATASETS),
        "metrics": lambda: list(MAP_METRICS),
        "methods": lambda: list(METHODS),
    }[options.what]()
    if not (found := matching(names, options.pattern)):
        raise unknown_name(options.what.removesuffix("s"), options.pattern, names)
    print("\n".join(found))
