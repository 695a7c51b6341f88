"""Ways to get a map of a model's decision: built in, post hoc, and the controls that every table carries."""

import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch
from torch import Tensor

from ..common.errors import InputError, unknown_name
from ..common.seeds import mixed_seed
from ..heads import Contract
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from . import posthoc_cam, posthoc_channels, posthoc_fullgrad, posthoc_gradients, posthoc_lrp, posthoc_perturbation
from .maps import MapMethod


def built_in(model: ImageClassifier) -> MapMethod:
    """The model's own evidence, from the forward pass that gives the logits.

    Raises:
        InputError: The model has none (a black box).
    """
    if model.contract is Contract.NONE:
        raise InputError("a black box has no built-in map: choose post-hoc methods")
    return MapMethod("built-in", "built-in", lambda images, classes, indices: model(images, classes).maps[:, 0], True)


def grad_cam(model: ImageClassifier) -> MapMethod:
    """Grad-CAM at the head's own input, by captum, before its ReLU; at the deepest, where a head looks at several.

    Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2. The ReLU is left to the metrics, which count positive
    evidence alone where that is wanted; so all methods are treated alike.
    """
    from captum.attr import LayerGradCam

    layer_grad_cam = LayerGradCam(model.as_logits(), model.backbone.deepest)

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        with eval_mode(model), torch.enable_grad():
            return layer_grad_cam.attribute(images, target=classes)[:, 0].detach()

    return MapMethod("grad-cam", "post-hoc", explain, is_on_grid=len(model.backbone.stages) == 1)


def random_map(model: ImageClassifier, seed: int = 0) -> MapMethod:
    """Uniform noise on the model's own grid, drawn anew for every image."""

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        cells = [math.ceil(side / model.backbone.reduction) for side in images.shape[-2:]]
        generators = [torch.Generator().manual_seed(mixed_seed(seed, index)) for index in indices.tolist()]
        return torch.stack([torch.rand(cells, generator=generator) for generator in generators]).to(images.device)

    return MapMethod("random", "control", explain, is_on_grid=True)


def centre_blob(model: ImageClassifier) -> MapMethod:
    """A Gaussian in the middle of every image, a quarter of its sides wide (standard deviation)."""

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        vertical, horizontal = (
            torch.exp(-0.5 * (torch.linspace(-0.5, 0.5, side, device=images.device) / 0.25) ** 2)
            for side in images.shape[-2:]
        )
        return torch.outer(vertical, horizontal).expand(len(images), -1, -1)

    return MapMethod("centre", "control", explain)


def uniform_map(model: ImageClassifier) -> MapMethod:
    """The same value everywhere: pixels in reading order, evidence spread over the whole image."""
    return MapMethod("uniform", "control", lambda images, classes, indices: torch.ones_like(images[:, 0]))


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "built-in": built_in,
    "grad-cam": grad_cam,
    "random": random_map,
    "centre": centre_blob,
    "uniform": uniform_map,
    **posthoc_gradients.METHODS,
    **posthoc_perturbation.METHODS,
    **posthoc_cam.METHODS,
    **posthoc_channels.METHODS,
    **posthoc_fullgrad.METHODS,
    **posthoc_lrp.METHODS,
}

# Modules of the extra "posthoc" by the methods that need them.
_NEEDS = {
    "grad-cam": "captum",
    **{
        name: part.NEEDS
        for part in (posthoc_gradients, posthoc_perturbation, posthoc_cam, posthoc_lrp)
        for name in part.METHODS
    },
}
_QUICK = ("built-in", "grad-cam", "random", "centre", "uniform")  # compared unless others are asked for


def quick_methods() -> list[str]:
    """Names of the methods that take about as long as a forward pass, as far as they are installed."""
    return [name for name in _QUICK if not _lacking(name)]


def lacking_methods() -> list[str]:
    """A sentence for every quick method that is not, saying what to install."""
    return [sentence for name in _QUICK if (sentence := _lacking(name))]


def _lacking(name: str) -> str | None:
    if name not in _NEEDS or find_spec(_NEEDS[name]):
        return None
    return f"{name} needs {_NEEDS[name]}: pip install 'glasszoo[posthoc]'"


def without_missing(names: Iterable[str], model: ImageClassifier) -> list[str]:
    """The names without "built-in" where `model` is a black box, which has no map."""
    return [name for name in names if not (name == "built-in" and model.contract is Contract.NONE)]


def map_method(name: str, model: ImageClassifier) -> MapMethod:
    """The method `name` for `model`.

    Raises:
        InputError: No such method (the nearest are listed), or one that this model or installation cannot offer.
    """
    if name not in METHODS:
        raise unknown_name("explanation method", name, METHODS)
    if sentence := _lacking(name):
        raise InputError(sentence)
    return METHODS[name](model)
