"""FullGrad: the logit as gradients times the image and times every bias on the way.

Computed here, since pytorch-grad-cam's looks for `nn.Conv2d` and `nn.BatchNorm2d` and passes timm's own layers over:
of timm's resnet50 it has all 53, of mobilenetv2_100 none of 52. Here they are met where they are added.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..models import ImageClassifier
from .maps import MapMethod
from .posthoc import prepared


def full_grad(model: ImageClassifier) -> MapMethod:
    """The gradients' sizes, of image and biases together. Srinivas and Fleuret, NeurIPS 2019, equations 3 and 5.

    Each channel of each layer is brought to 0..1 and stretched over the image: the map is their sum, without sign. What
    has no place in the image, as a classifier's bias, is left out.
    """

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        with prepared(model):
            placed = [part for part in full_gradients(model, images, classes) if part.ndim == 4]
            return torch.stack([_stretched(part, size) for part in placed]).sum(0).to(images.dtype)

    return MapMethod("fullgrad", "post-hoc", explain)


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {"fullgrad": full_grad}


def full_gradients(model: ImageClassifier, images: Tensor, classes: Tensor) -> list[Tensor]:
    """Gradient times image `b c H W`, then gradient times bias of every layer, `b d h w`, or `b d` without a place.

    With ReLU and max or mean pooling they sum up to the logits of `classes`; what saturates (ReLU6, SiLU, norms over an
    image) keeps a part of its own. Gradients must be enabled.
    """
    given = images.detach().clone().requires_grad_()
    with _Biases() as biases:
        logits = model(given, explain=0).logits.gather(1, classes[:, None])
    gradients = torch.autograd.grad(logits.sum(), [given, *biases.outputs], allow_unused=True)
    return [
        _channels_first((gradient * factor).detach(), last)
        for gradient, factor, last in zip(
            gradients, [given, *biases.values], [False, *biases.are_channels_last], strict=True
        )
        if gradient is not None
    ]


class _Biases(TorchFunctionMode):
    """Notes every bias that is added, and the sum it is part of, whose gradient is the bias's at each place."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.values: list[Tensor] = []  # as they are added to the outputs
        self.are_channels_last: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func not in _ADDED or not output.requires_grad:
            return output
        bias = _ADDED[func](*args, **kwargs)
        if bias is None:
            return output
        is_last = func in (functional.linear, functional.layer_norm)
        output = output.clone()  # what follows may change the one it gets in place
        self.outputs.append(output)
        self.values.append(bias if is_last else bias.reshape(-1, *[1] * (output.ndim - 2)))
        self.are_channels_last.append(is_last)
        return output


def _third(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Tensor | None:
    return bias


def _of_norm(
    input: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """What batch norm adds in eval mode: its own bias, and its mean, scaled and taken off."""
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    return (0 if bias is None else bias) - mean * scale


def _of_affine(
    input: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    return bias


_ADDED: dict[Any, Callable[..., Tensor | None]] = {
    functional.conv2d: _third,
    functional.linear: _third,
    functional.batch_norm: _of_norm,
    functional.layer_norm: _of_affine,
    functional.group_norm: _of_affine,
}


def _channels_first(values: Tensor, is_last: bool) -> Tensor:
    return values.permute(0, 3, 1, 2) if is_last and values.ndim == 4 else values


def _stretched(parts: Tensor, size: tuple[int, int]) -> Tensor:
    """Sizes of `b d h w`, each channel brought to 0..1; their sum over the channels, `b H W`."""
    sizes = parts.abs()
    low, high = sizes.amin((2, 3), keepdim=True), sizes.amax((2, 3), keepdim=True)
    summed = ((sizes - low) / (high - low + 1e-7)).sum(1, keepdim=True)
    return functional.interpolate(summed, size=size, mode="bilinear", align_corners=False)[:, 0]
