"""Options that several commands share."""

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation import Conventions

_BASELINES = ("mean_colour", "image_mean", "blur")


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--model, which has to be given where there is no `default`, and --head."""
    what = "a checkpoint ('glasszoo list pretrained', local-dir:, hf-hub:, wandb:, https:), or timm's weights by name"
    parser.add_argument(
        "--model",
        required=default is None,
        default=default,
        help=f"{what}{f' (default: {default})' if default else ''}",
    )
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves")


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", help="torch's name, such as cpu or cuda:1 (default: the GPU if there is one)")


def add_wandb(parser: argparse.ArgumentParser) -> None:
    """--wandb."""
    parser.add_argument("--wandb", default="disabled", metavar="disabled|offline|online", help="Weights & Biases")


def add_conventions(parser: argparse.ArgumentParser) -> None:
    """What scores depend on."""
    parser.add_argument("--target", choices=("predicted", "label"), default="predicted", help="the class explained")
    parser.add_argument(
        "--output", choices=("probability", "logit"), default="probability", help="what deletion and the like watch"
    )
    parser.add_argument(
        "--placement",
        choices=("stretched", "receptive_field"),
        default="stretched",
        help="where a map's cells stand: tiles of the image, or the centres of their receptive fields",
    )
    parser.add_argument(
        "--deletion-baseline", choices=_BASELINES, default="mean_colour", help="what takes the place of deleted pixels"
    )
    parser.add_argument(
        "--insertion-baseline", choices=_BASELINES, default="blur", help="the image that insertion starts from"
    )


def conventions_of(options: argparse.Namespace) -> "Conventions":
    """The conventions that were asked for."""
    from ..evaluation import Conventions

    return Conventions(
        target=options.target,
        output=options.output,
        placement=options.placement,
        deletion_baseline=options.deletion_baseline,
        insertion_baseline=options.insertion_baseline,
    )


def named_source(text: str) -> tuple[str, str]:
    """The model's name in the sheet and its source, of NAME=MODEL or MODEL."""
    if match := re.fullmatch(r"([^=:/]+)=(.+)", text):
        return match[1], match[2]
    return text.removeprefix("local-dir:"), text
