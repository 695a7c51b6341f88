"""What post-hoc methods share: the model as they need it and as it was afterwards, and random numbers an image."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.layers import activations
from torch import Tensor, nn

from ..common.errors import InputError
from ..data.loading import mixed_seed
from ..models import ImageClassifier

Explain = Callable[[Tensor, Tensor, Tensor], Tensor]  # images b c h w, classes b, numbers b → what is attributed
# Switches of gates, which are no part of the question whether a network is rectified.
_GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, activations.Sigmoid, activations.HardSigmoid)
# Where the classes of activations are defined.
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


@contextmanager
def prepared(model: ImageClassifier) -> Iterator[None]:
    """The model as attribution methods want it, and as it was found afterwards.

    Gradients are on, and reach the image alone: parameters have none. Modules do not work in place, since hooks
    look at what went into them.
    """
    in_place = [module for module in model.modules() if getattr(module, "inplace", False)]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in in_place:
        setattr(module, "inplace", False)  # noqa: B010 (not every module has it)
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module in in_place:
            setattr(module, "inplace", True)  # noqa: B010
        for parameter in learning:
            parameter.requires_grad_(True)


def all_at_once(attribute: Callable[..., Tensor], **options: Any) -> Explain:
    """A captum method that draws nothing at random, for a whole batch."""
    return lambda images, classes, indices: attribute(images, target=classes, **options)


def one_by_one(attribute: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> Explain:
    """`attribute` for one image after the other: what it draws at random depends on seed and image number alone."""

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        maps = []
        for place, index in enumerate(indices.tolist()):
            with _seeded(mixed_seed(seed, index)):
                maps.append(attribute(images[place : place + 1], classes[place : place + 1]))
        return torch.cat(maps)

    return explain


def check_rectified(name: str, model: ImageClassifier) -> None:
    """Refuse a network with activations other than ReLU.

    Raises:
        InputError: It has some; they are named.
    """
    found = {
        type(module).__name__
        for module in model.backbone.network.modules()
        if type(module).__module__ in ACTIVATIONS and not isinstance(module, (nn.ReLU, *_GATES))
    }
    if found:
        raise InputError(
            f"{name} changes how ReLUs pass gradients, but {model.config.architecture} has {', '.join(sorted(found))}"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The random numbers of torch, NumPy and Python begin at `seed`, and go on as if nothing had been drawn."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (captum draws from it)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
