"""What an exported program computes, held against the model that it was made of."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from .classifier import ImageClassifier

TOLERANCE = 1e-4  # of the largest logit

Runner = Callable[[Tensor], dict[str, Tensor]]  # images to outputs by name


class Agreement(NamedTuple):
    """How well the two agree."""

    gap: float  # the largest difference, in parts of the largest logit
    shapes: tuple[tuple[int, ...], ...]  # of the images, `b c h w`


class Program(nn.Module):
    """What is exported: the tensors of `Explained` by name, none of them empty, from images `b c h w`.

    `top`: whose maps it gives. `normalises`: the images are bytes, 0 to 255, which it scales and normalises itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ImageClassifier, top: int | Literal["all"], normalises: bool) -> None:
        super().__init__()
        self.model = model
        self.top = top
        self.normalises = normalises
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(model.config.preprocessing, name))[:, None, None])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        explained = self.model(self.normalised(images), self.top)
        return {name: tensor for name, tensor in explained._asdict().items() if tensor.shape[1] != 0}

    def normalised(self, images: Tensor) -> Tensor:
        """The model's input for the program's."""
        return (images.float() / 255 - self.mean) / self.std if self.normalises else images

    def noise(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Images to run it on."""
        generator = torch.Generator().manual_seed(seed)
        if self.normalises:
            return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return torch.randn(shape, generator=generator)


def onnx_runner(path: Path) -> Runner:
    """The program of an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def torch_runner(path: Path) -> Runner:
    """The program of a file of `torch.export.save`."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


RUNNERS = {"onnx": onnx_runner, "torch-export": torch_runner}  # by format


@torch.no_grad()
def check(program: Program, run: Runner) -> Agreement:
    """Hold the exported program, which `run` runs, against the model, on noise of several numbers and sizes.

    Raises:
        InputError: It fails, or is further off than `TOLERANCE`.
    """
    channels, height, width = program.model.config.preprocessing.input_size
    shapes, worst = [], 0.0
    for shape in ((1, channels, height, width), (3, channels, 96, 224), (2, channels, 131, 177)):
        try:
            program(program.noise(shape, seed=0))
        except (RuntimeError, AssertionError, ValueError):
            continue  # the network itself does not take this size: some take no odd sides
        # Where two cells score alike up to rounding, rounding chooses between them, and maps differ although the
        # program is right. That befalls one draw of many, while a wrong program is wrong on each.
        gap = math.inf
        for seed in range(3):
            gap = min(gap, _gap(program, run, program.noise(shape, seed)))
            if gap <= TOLERANCE:
                break
        else:
            raise InputError(
                f"the exported program is off by {gap:.1e} of the largest logit on images of shape {shape}, more than "
                f"{TOLERANCE:g}: nothing was kept"
            )
        worst = max(worst, gap)
        shapes.append(shape)
    return Agreement(worst, tuple(shapes))


def _gap(program: Program, run: Runner, images: Tensor) -> float:
    """The largest difference on these images, in parts of the largest logit, or, for `parts`, of their largest.

    Maps are those of the classes that the program chose; these must be as good as the model's own choice.
    """
    try:
        found = run(images)
    except Exception as error:  # whatever a runtime raises: the file does not run on what the model runs on
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the exported program fails on images of shape {tuple(images.shape)}: {reason}") from error
    classes = found.get("classes")
    model = program.model
    expected = model(program.normalised(images), 0 if classes is None else classes)
    quantity = model.contract.explained_quantity(expected.logits)
    gaps = [_relative(found["logits"], expected.logits, expected.logits)]
    if classes is not None:
        best = expected.logits.topk(classes.shape[1]).values
        chosen = expected.logits.gather(1, classes).sort(descending=True).values
        gaps.append(_relative(chosen, best, expected.logits))
        gaps += [_relative(found[name], getattr(expected, name), quantity) for name in ("maps", "offset")]
    if "parts" in found:
        gaps.append(_relative(found["parts"], expected.parts, expected.parts))
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


def _relative(found: Tensor, expected: Tensor, measure: Tensor) -> float:
    """The largest difference in parts of the largest value of `measure`; infinite where shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    return ((found - expected).abs().max() / measure.abs().max().clamp_min(torch.finfo(measure.dtype).tiny)).item()
