"""glasszoo visualise: pictures that make a class, a channel or a prototype answer most; a photograph's inner life."""

import argparse
from pathlib import Path

from ..common.errors import InputError
from .options import add_device, add_model

DESCRIPTION = "Draw what a class, a channel or a prototype looks for; show the layers of a photograph."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model(parser, default="cam_mobilenetv2_100.coral_in1k")
    parser.add_argument("--class", dest="classes", action="append", default=[], metavar="NAME", help="repeatable")
    parser.add_argument("--channel", dest="channels", action="append", default=[], type=int, metavar="N")
    parser.add_argument("--stage", type=int, metavar="N", help="of channels; default: what the head pools")
    parser.add_argument(
        "--part", "--prototype", dest="parts", action="append", default=[], type=int, metavar="N",
        help="an inner map of the head: a prototype's, an attention, a part",
    )  # fmt: skip
    parser.add_argument("--photo", type=Path, help="show this one's feature maps and gradients")
    parser.add_argument("--size", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("visualised"), help="folder of the pictures")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation.explaining import class_number
    from ..evaluation.feature_visualisation import Unit, visualise
    from ..evaluation.visualisation_files import unit_title, write_gradients, write_layers, write_units
    from ..models import open_model
    from ..training.building import chosen_device

    model = open_model(options.model, options.head).to(chosen_device(options.device))
    units = [
        *(Unit("class", class_number(name, model.class_names)) for name in options.classes),
        *(Unit("channel", number, options.stage) for number in options.channels),
        *(Unit("part", number) for number in options.parts),
    ]
    if not units and not options.photo:
        raise InputError("nothing to draw: give --class, --channel, --part or --photo")
    if options.photo:
        print(f"feature maps → {write_layers(model, options.photo, options.out)}")
        path, reasons = write_gradients(model, options.photo, options.out)
        print(f"gradients → {path}")
        for reason in reasons:
            print(f"left out: {reason}")
    if units:
        found = visualise(model, units, size=options.size, steps=options.steps, seed=options.seed)
        for unit, answers in zip(units, found.answers.T, strict=True):
            print(f"{unit_title(model, unit)}: {answers[0]:.2f} → {answers[-1]:.2f}")
        print(f"pictures → {write_units(model, units, found, options.out)[-1]}")
