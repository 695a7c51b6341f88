"""A model as one file that needs neither glasszoo nor timm: ONNX, or torch's own format; what it computes is checked.

The program takes images of any number and size, and gives by name what the model's `Explained` holds:

    images `b c h w` → logits `b c`, classes `b k`, maps `b k h w`, offset `b k`, parts `b p h w`

A head without inner maps has no `parts`, and a black box nothing but logits: runtimes stumble over empty tensors. What
else a user needs (class names, preprocessing, contract) goes along as JSON, under "glasszoo" in ONNX's metadata, in
torch's file as the extra file "glasszoo.json".
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from ..common.errors import InputError, unknown_name
from ..common.files import replacing
from .classifier import ImageClassifier
from .export_check import RUNNERS, Program, check
from .plain_layouts import PlainLayouts
from .same_padding import followable_padding

METADATA = "glasszoo"  # the key in ONNX's metadata; with .json, the extra file in torch's
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra "export"
_ONNX_BYTES = 2**31  # protobuf's limit
_TRACED = (2, 128, 160)  # b h w; unequal, so that no size is taken for another


@dataclass(frozen=True)
class Exported:
    """What `export_model` wrote, and how well it agrees with the model."""

    path: Path
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # of the images that it was checked on
    gap: float  # the largest difference of logits and evidence from the model's, in parts of the largest logit


def export_model(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    top: int | Literal["all"] = 1,
    preprocess_inside: bool = False,
) -> Exported:
    """Write `model` to `path` as a program of fp32 in eval mode, whatever its own state, which stays as it is.

    The file is run on images of other numbers and sizes than the traced ones, odd sides among them where the network
    takes them, and kept only if it agrees with the model to `TOLERANCE`.

    Args:
        model: Of any head, or a black box.
        path: The file; replaced in one step.
        format: "onnx" (needs the extra "export"), or "torch-export": a `.pt2` file for `torch.export.load`.
        top: The k top classes that maps are given for, or "all". A program cannot be asked for others later.
        preprocess_inside: The program takes uint8 images, 0 to 255, and scales and normalises them itself. Resizing
            and cropping stay outside: no format resizes as the image libraries do that models are trained with.

    Raises:
        InputError: No such format, the extra is missing, fewer classes than `top`, weights too large for ONNX, a
            network that cannot be exported at every size, or a file that does not agree with the model.
    """
    if format not in RUNNERS:
        raise unknown_name("export format", format, RUNNERS)
    missing = [package for package in _ONNX_PACKAGES if format == "onnx" and find_spec(package) is None]
    if missing:
        raise InputError(f"the format onnx needs {missing[0]}: pip install 'glasszoo[export]'")
    if top != "all" and not 1 <= top <= model.num_classes:
        raise InputError(f"top={top}: the model has {model.num_classes} classes, so 1 to {model.num_classes} or 'all'")
    if format == "onnx" and 4 * sum(tensor.numel() for tensor in model.state_dict().values()) >= _ONNX_BYTES:
        raise InputError(
            "ONNX holds at most 2 GB in one file, and these weights are more: take the format torch-export"
        )
    program = Program(copy.deepcopy(model).float().cpu(), top, preprocess_inside).eval()
    for module in program.modules():
        if hasattr(module, "inplace"):  # then torch would take activations apart, and for long; ONNX has them whole
            module.inplace = False  # type: ignore[assignment]
    metadata = _metadata(program)
    with torch.no_grad(), _quiet(), replacing(path) as temporary:
        traced = _traced(program)
        names = tuple(_leaves(traced))
        try:
            (_save_onnx if format == "onnx" else _save_torch)(traced, names, json.dumps(metadata), temporary)
        except (RuntimeError, ValueError, TypeError) as error:
            raise _refused(program, error) from error
        agreement = check(program, RUNNERS[format](temporary))
    return Exported(Path(path), names, agreement.shapes, agreement.gap)


def _metadata(program: Program) -> dict[str, Any]:
    """What goes along as JSON."""
    model = program.model
    return {
        "glasszoo": version("glasszoo"),
        "architecture": model.config.architecture,
        "head": model.config.head,
        "contract": str(model.contract),
        "class_names": model.class_names,
        "preprocessing": asdict(model.config.preprocessing),
        "normalises": program.normalises,
    }


def _traced(program: Program) -> torch.export.ExportedProgram:
    """The program as a graph, for any number and size of images."""
    batch, height, width = _TRACED
    images = program.noise((batch, program.model.config.in_chans, height, width), seed=0)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        with followable_padding(), PlainLayouts():
            traced = torch.export.export(program, (images,), dynamic_shapes=(sizes,), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _refused(program, error) from error
    for module in traced.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # the paths of this machine are nobody's business
    return traced


def _leaves(traced: torch.export.ExportedProgram) -> list[str]:
    """Names of the outputs."""
    spec = traced.call_spec.out_spec
    assert spec is not None
    return list(spec.context)


def _refused(program: Program, error: Exception) -> InputError:
    """The sentence for what torch cannot export; its own reports are pages long."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    config = program.model.config
    return InputError(f"torch cannot export {config.head!r} on {config.architecture}: {reason}")


def _save_onnx(traced: torch.export.ExportedProgram, names: tuple[str, ...], metadata: str, path: Path) -> None:
    written = torch.onnx.export(traced, dynamo=True, input_names=["images"], output_names=list(names), verbose=False)
    assert written is not None
    written.model.metadata_props[METADATA] = metadata
    written.save(path, external_data=False)


def _save_torch(traced: torch.export.ExportedProgram, names: tuple[str, ...], metadata: str, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(traced, file, extra_files={f"{METADATA}.json": metadata})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters tell their developers: what matters to a user is an exception, or found in the check."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
