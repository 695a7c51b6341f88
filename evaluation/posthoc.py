"""What post-hoc methods share: the model as they need it and as it was afterwards, and random numbers an image."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.layers import activations
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..common.errors import InputError
from ..common.seeds import mixed_seed
from ..heads import Explained, Features
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode

Explain = Callable[[Tensor, Tensor, Tensor], Tensor]  # images b c h w, classes b, numbers b → what is attributed
# Switches of gates, which are no part of the question whether a network is rectified.
_GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, activations.Sigmoid, activations.HardSigmoid)
# Where the classes of activations are defined.
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


@contextmanager
def prepared(model: ImageClassifier) -> Iterator[None]:
    """The model as attribution methods want it, and as it was found afterwards.

    It is in eval mode. Gradients are on, and reach the image alone: parameters have none, and keep what they had (some
    packages set it to zero). Modules do not work in place, since hooks look at what went into them.
    """
    in_place = [module for module in model.modules() if getattr(module, "inplace", False)]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in learning]
    for module in in_place:
        setattr(module, "inplace", False)  # noqa: B010 (not every module has it)
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with eval_mode(model), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="captum")  # that it hooks, and asks for gradients
            yield
    finally:
        for module in in_place:
            setattr(module, "inplace", True)  # noqa: B010
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.requires_grad_(True)
            parameter.grad = gradient


def features_and_output(model: ImageClassifier, images: Tensor) -> tuple[Features, Explained]:
    """What the backbone made of `images`, a list of several stages, and logits and parts, from one pass."""
    seen: list[Features] = []
    handle = model.backbone.register_forward_hook(lambda module, given, features: seen.append(features))
    try:
        output = model(images, explain=0)
    finally:
        handle.remove()
    return seen[0], output


def deepest(features: Features) -> Tensor:
    """The stage that post-hoc methods look at, `b d h w`."""
    return features if isinstance(features, Tensor) else features[-1]


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
    """Refuse a network with activations other than ReLU, or with ReLUs that are no modules and would be passed over.

    Raises:
        InputError: It has some; they are named.
    """
    reason = f"{name} changes how ReLUs pass gradients, but {model.config.architecture}"
    found = {
        type(module).__name__
        for module in model.backbone.network.modules()
        if type(module).__module__ in ACTIVATIONS and not isinstance(module, (nn.ReLU, *_GATES))
    }
    if found:
        raise InputError(f"{reason} has {', '.join(sorted(found))}")
    if _num_loose_relus(model):
        raise InputError(f"{reason} has some that are no modules, where it finds none")


def _num_loose_relus(model: ImageClassifier) -> int:
    """How many ReLUs of the backbone are called as functions, beside those that modules call."""
    height, width = model.config.preprocessing.input_size[1:]
    image = next(model.parameters()).new_zeros(1, model.config.in_chans, height, width)
    modules = [module for module in model.backbone.modules() if isinstance(module, nn.ReLU)]
    in_modules: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda module, *rest: in_modules.append(module)) for module in modules]
    try:
        with eval_mode(model), torch.no_grad(), _ReluCalls() as calls:
            model.backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls.count - len(in_modules)


class _ReluCalls(TorchFunctionMode):
    """Counts ReLUs, whether a module or a function calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
        return func(*args, **(kwargs or {}))


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
