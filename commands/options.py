"""Options that several commands share."""

import argparse


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
