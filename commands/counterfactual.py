"""glasszoo counterfactual: which cells of another image would turn a photograph's prediction into another class."""

import argparse
from pathlib import Path

from .options import add_device, add_model

DESCRIPTION = "Put cells of another image's features into a photograph's until its prediction is another class."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("image", type=Path)
    parser.add_argument("--distractor", type=Path, required=True, help="an image of the other class")
    parser.add_argument("--class", dest="target", metavar="NAME", help="the other class; default: the distractor's")
    add_model(parser, default="cam_mobilenetv2_100.coral_in1k")
    parser.add_argument("--out", type=Path, default=Path("counterfactuals"), help="folder of the picture")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation.counterfactual import show_counterfactual
    from ..models import open_model
    from ..training.building import chosen_device

    model = open_model(options.model, options.head).to(chosen_device(options.device))
    told = show_counterfactual(model, options.image, options.distractor, options.out, options.target)
    edits, cells = told.found.edits, told.found.grid[0] * told.found.grid[1]
    outcome = f"not even all {cells} cells" if edits is None else f"{edits} of {cells} cells"
    print(f"{options.image}: {outcome} turn {told.before} into {told.target} → {told.picture}")
