"""glasszoo gallery: a page of a model's prototypes."""

import argparse
from pathlib import Path

from .options import add_device

DESCRIPTION = "Write a page of a model's prototypes, and of images explained by them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("images", nargs="*", type=Path, help="explain these by prototypes")
    parser.add_argument("--model", required=True, help="local-dir:CHECKPOINT")
    parser.add_argument("--data", required=True, help="the data set that the model was trained on")
    parser.add_argument("--data-option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    parser.add_argument("--nearest", type=int, default=3, help="patches shown of each prototype and split")
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), help="the page")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..data import create_dataset
    from ..evaluation.gallery import write_gallery
    from ..models import load_pretrained
    from ..training.building import chosen_device
    from ..training.recipe import parse_options

    model = load_pretrained(options.model).to(chosen_device(options.device))
    own = parse_options(options.data_option)
    training, test = (create_dataset(options.data, split, **own) for split in ("train", "test"))
    write_gallery(options.out, model, training, test, options.images, options.nearest)
    print(f"the gallery is {options.out}")
