"""Maps with gradients: what an attack on an explanation climbs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..common.errors import InputError, unknown_name
from ..heads import Contract
from ..models import ImageClassifier


class Explanation(NamedTuple):
    """What a model says of images, and why, from one forward pass."""

    logits: Tensor  # b c
    maps: Tensor  # b h w, of the class that was asked for


# Of a model, images (b c h w) and classes (b); with gradients wherever they are enabled.
Explain = Callable[[ImageClassifier, Tensor, Tensor], Explanation]


def built_in(model: ImageClassifier, images: Tensor, classes: Tensor) -> Explanation:
    """The model's own evidence."""
    found = model(images, classes)
    return Explanation(found.logits, found.maps[:, 0])


def grad_cam(model: ImageClassifier, images: Tensor, classes: Tensor) -> Explanation:
    """Grad-CAM at the head's own input, as in methods.py, with the derivative of its weights.

    Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2 without the ReLU.
    """
    kept: list[Tensor] = []
    handle = model.backbone.deepest.register_forward_hook(lambda module, given, features: kept.append(features))
    is_wanted = torch.is_grad_enabled()
    try:
        with torch.enable_grad():
            images = images if images.requires_grad else images.detach().requires_grad_()
            logits = model(images, 0).logits
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradients,) = torch.autograd.grad(chosen, kept[0], create_graph=is_wanted)
            maps = (gradients.mean((2, 3), keepdim=True) * kept[0]).sum(1)
    finally:
        handle.remove()
    return Explanation(logits, maps) if is_wanted else Explanation(logits.detach(), maps.detach())


def gradient(model: ImageClassifier, images: Tensor, classes: Tensor) -> Explanation:
    """The largest absolute gradient over the channels. Simonyan et al., ICLR workshop 2014.

    Of a network of ReLUs its own derivative is zero nearly everywhere: the attack needs `softplus`.
    """
    is_wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        images = images if images.requires_grad else images.detach().requires_grad_()
        logits = model(images, 0).logits
        (found,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), images, create_graph=is_wanted)
    return Explanation(logits if is_wanted else logits.detach(), found.abs().amax(1))


DIFFERENTIABLE: dict[str, Explain] = {"built-in": built_in, "grad-cam": grad_cam, "gradient": gradient}


def differentiable(name: str, model: ImageClassifier) -> Explain:
    """The method `name`.

    Raises:
        InputError: No such method, or the built-in map of a black box.
    """
    if name not in DIFFERENTIABLE:
        raise unknown_name("explanation method with a gradient", name, DIFFERENTIABLE)
    if name == "built-in" and model.contract is Contract.NONE:
        raise InputError("a black box has no built-in map: attack another")
    return DIFFERENTIABLE[name]


class _Softplus(TorchFunctionMode):
    """Rectifiers as their smooth neighbours."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (functional.relu, torch.relu, Tensor.relu):
            return self._smooth(args[0])
        if func is functional.relu6:
            return self._smooth(args[0]) - self._smooth(args[0] - 6)
        if func is functional.hardtanh:  # nn.ReLU6 is one
            return self._hardtanh(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _hardtanh(self, values: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
        return min_val + self._smooth(values - min_val) - self._smooth(values - max_val)

    def _smooth(self, values: Tensor) -> Tensor:
        return functional.softplus(values, self._beta)


@contextmanager
def smooth_rectifiers(beta: float | None) -> Iterator[None]:
    """ReLU and ReLU6 are softplus of sharpness `beta` inside, whatever module calls them; None: they stay.

    The second derivative of a rectifier is zero, so a map that is itself a gradient has none to follow; that of a
    softplus is not. Dombrowski et al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019.
    """
    with nullcontext() if beta is None else _Softplus(beta):
        yield
