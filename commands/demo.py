"""glasszoo demo: everything once, on critters."""

import argparse
from pathlib import Path

DESCRIPTION = "Train, evaluate and explain on critters; a few minutes, nothing to download."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..training.demo import run_demo

    report = run_demo(options.out, options.command)
    print(f"the report is {report}")
