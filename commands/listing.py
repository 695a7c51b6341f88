"""glasszoo list: the names that the other commands take."""

import argparse
import json
from dataclasses import asdict
from fnmatch import filter as matching

from ..common.errors import InputError, unknown_name

DESCRIPTION = "Print the names that the other commands take."

LISTS = ("heads", "backbones", "families", "recipes", "datasets", "metrics", "methods")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("what", choices=LISTS, metavar="|".join(LISTS))
    parser.add_argument("pattern", nargs="?", default="*", help="with wildcards, as 'resnet*'")
    parser.add_argument("--family", help="of backbones: those of one family, from 'glasszoo list families'")
    parser.add_argument("--json", action="store_true", help="as JSON; of backbones with features, grid and tags")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..models import facts_of

    if options.family and options.what != "backbones":
        raise InputError(f"--family chooses among backbones, not {options.what}")
    names = _names(options.what, options.pattern, options.family)
    if not (found := matching(names, options.pattern)):
        raise unknown_name("family" if options.what == "families" else options.what[:-1], options.pattern, names)
    if not options.json:
        print("\n".join(found))
    elif options.what == "backbones":
        print(json.dumps([asdict(facts_of(name)) for name in found], indent=1))
    else:
        print(json.dumps(found, indent=1))


def _names(what: str, pattern: str, family: str | None) -> list[str]:
    from ..data import DATASETS
    from ..evaluation import MAP_METRICS, METHODS
    from ..heads import list_heads
    from ..models import BLACK_BOX, list_backbones, list_families
    from ..training import list_recipes

    return {
        "heads": lambda: [*list_heads(), BLACK_BOX],
        "backbones": lambda: list_backbones(pattern, family),
        "families": list_families,
        "recipes": list_recipes,
        "datasets": lambda: sorted(DATASETS),
        "metrics": lambda: list(MAP_METRICS),
        "methods": lambda: list(METHODS),
    }[what]()
