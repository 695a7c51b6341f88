"""glasszoo explain: a picture of the evidence for each image."""

import argparse
from pathlib import Path

from .options import add_device, add_model

DESCRIPTION = "Write a picture of the evidence for each image."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("images", nargs="+", type=Path)
    add_model(parser, default="cam_mobilenetv2_100.coral_in1k")  # models.DEFAULT, whose import takes seconds
    parser.add_argument("--top", type=int, default=3, help="how many classes to explain")
    parser.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="NAME", help="explain this one; repeatable"
    )
    parser.add_argument("--why", metavar="NAME", help="what tells this class (default: the predicted one) …")
    parser.add_argument("--not", dest="instead", metavar="NAME", help="… from this one (default: the next highest)")
    parser.add_argument("--out", type=Path, default=Path("explanations"), help="folder of the pictures")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..evaluation.contrastive import contrast_images
    from ..evaluation.explaining import explain_images
    from ..models import open_model
    from ..training.building import chosen_device

    model = open_model(options.model, options.head).to(chosen_device(options.device))
    if options.why is not None or options.instead is not None:
        for contrast in contrast_images(model, options.images, options.out, options.why, options.instead):
            found = contrast.evidence
            sums = f"{found.margin[0]:.2f} = evidence {found.maps.sum():.2f} + offset {found.offset[0]:.2f}"
            print(f"{contrast.image}: {contrast.why} rather than {contrast.instead}, by {sums} → {contrast.picture}")
        return
    for done in explain_images(model, options.images, options.out, options.top, options.classes):
        probabilities = model.probabilities(done.explained.logits[0])
        numbers = done.explained.classes[0].tolist()
        told = ", ".join(f"{model.class_names[number]} {probabilities[number]:.1%}" for number in numbers)
        print(f"{done.image}: {told} → {done.picture}")
