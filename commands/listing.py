"""glasszoo list: the names that the other commands take."""

import argparse
import json
from dataclasses import asdict
from fnmatch import filter as matching

from ..common.errors import InputError, unknown_name

DESCRIPTION = "Print the names that the other commands take."

LISTS = ("heads", "backbones", "families", "pretrained", "recipes", "datasets", "metrics", "methods")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("what", nargs="?", choices=LISTS, metavar="|".join(LISTS))
    parser.add_argument("pattern", nargs="?", default="*", help="with wildcards, as 'resnet*'")
    parser.add_argument("--family", help="of backbones: those of one family, from 'glasszoo list families'")
    parser.add_argument("--pretrained", action="store_true", help="the same as 'glasszoo list pretrained'")
    parser.add_argument("--json", action="store_true", help="as JSON; of backbones with features, grid and tags")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..models import facts_of

    if options.pretrained:
        options.what = "pretrained"
    if options.what is None:
        raise InputError(f"say what to list: {', '.join(LISTS)}")
    if options.family and options.what != "backbones":
        raise InputError(f"--family chooses among backbones, not {options.what}")
    names = _names(options.what, options.pattern, options.family)
    if not (found := matching(names, options.pattern)):
        kind = {"families": "family", "pretrained": "checkpoint"}.get(options.what, options.what.removesuffix("s"))
        raise unknown_name(kind, options.pattern, names)
    if options.what == "pretrained":
        _print_pretrained(found, options.json)
    elif not options.json:
        print("\n".join(found))
    elif options.what == "backbones":
        print(json.dumps([asdict(facts_of(name)) for name in found], indent=1))
    else:
        print(json.dumps(found, indent=1))


def _print_pretrained(names: list[str], as_json: bool) -> None:
    """Of each checkpoint: accuracy, scores of its map, licences of code and weights, size."""
    from ..evaluation import QUICK_METRICS
    from ..evaluation.results import as_table
    from ..models import released

    rows = []
    for found in map(released, names):
        scores = {"top1": found.score("top1")} | {metric: found.score(metric, "built-in") for metric in QUICK_METRICS}
        about = {"code": "Apache-2.0", "weights": found.facts.weights_license, "MB": round(found.megabytes, 1)}
        rows.append({"name": found.name, "judged on": found.judged_on, **scores, **about})
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        cells = [
            ["–" if cell is None else f"{cell:.3f}" if key in scores else str(cell) for key, cell in row.items()]
            for row in rows
        ]
        print(as_table([list(rows[0]), *cells]))


def _names(what: str, pattern: str, family: str | None) -> list[str]:
    from ..data import DATASETS
    from ..evaluation import METHODS, METRICS
    from ..heads import list_heads
    from ..models import BLACK_BOX, list_backbones, list_families, list_pretrained
    from ..training import list_recipes

    return {
        "heads": lambda: [*list_heads(), BLACK_BOX],
        "backbones": lambda: list_backbones(pattern, family),
        "families": list_families,
        "pretrained": list_pretrained,
        "recipes": list_recipes,
        "datasets": lambda: sorted(DATASETS),
        "metrics": lambda: list(METRICS),
        "methods": lambda: list(METHODS),
    }[what]()
