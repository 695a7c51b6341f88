"""glasszoo export: a model as one file that needs neither glasszoo nor timm."""

import argparse
from pathlib import Path
from typing import Literal

DESCRIPTION = (
    "Write a model as one file for onnxruntime or torch.export: logits, classes and maps of images of any size."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", help="a checkpoint (local-dir:, hf-hub:, wandb:, https:), or timm's weights by name")
    parser.add_argument("--head", default="cam", help="how timm's weights are to explain themselves")
    parser.add_argument("--format", default="onnx", help="onnx (the default) or torch-export")
    parser.add_argument("--out", type=Path, required=True, help="the file")
    parser.add_argument("--top", type=_top, default=1, metavar="K", help="how many classes get a map, or: all")
    parser.add_argument(
        "--preprocess-inside", action="store_true", help="take bytes (uint8, 0 to 255) and normalise them in the file"
    )


def run(options: argparse.Namespace) -> None:
    """See `DESCRIPTION`."""
    from ..models import export_model, open_model

    model = open_model(options.model, options.head)
    done = export_model(
        model, options.out, options.format, top=options.top, preprocess_inside=options.preprocess_inside
    )
    shapes = ", ".join("×".join(map(str, shape)) for shape in done.shapes)
    print(f"{done.path}: {', '.join(done.outputs)}")
    print(f"off by at most {done.gap:.0e} of the largest logit from the model, on images of {shapes}")


def _top(text: str) -> int | Literal["all"]:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return "all" if text == "all" else int(text)
