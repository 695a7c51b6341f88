"""Looks at a timm architecture without weights or arithmetic: is it a CNN, and what does its feature map look like?

The criterion, found over all of timm (benchmarks will publish the census): `forward_features` gives a map whose
grid follows the image, and nothing on the way multiplies two activations as matrices (attention) or recurs.
The architecture is built and run on torch's meta device, which knows shapes only: tenths of a second, no memory.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Unequal, and far enough apart that no stride rounds them to the same grid. Whole multiples of 32, as most need.
_SIZES = ((256, 320), (384, 512))


class Anatomy(NamedTuple):
    """What is known of an architecture's features before any weight exists."""

    num_features: int
    reduction: int  # input pixels per cell of the feature grid, in either direction
    is_channels_last: bool  # forward_features gives b h w d instead of b d h w
    unused: tuple[str, ...]  # modules whose parameters forward_features never touches: they belong to timm's head


class NotConvolutional(ValueError):
    """The architecture is no CNN; the message completes the sentence "NAME is no CNN: its features …"."""


class _ActivationProducts(TorchDispatchMode):
    """Follows what is computed from the image, and notes where two such tensors are multiplied as matrices."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        # By identity, held so that no id is used twice; tensors on the meta device weigh nothing.
        self.activations = {id(image): image}
        self.found = False
        self.seen: set[int] = set()  # ids of all tensors that took part, parameters among them

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        self.seen.update(map(id, leaves))
        given = [leaf for leaf in leaves if id(leaf) in self.activations]
        name = str(func)
        if len(given) >= 2 and ("mm." in name or "attention" in name):
            self.found = True
        if given:
            self.activations.update({id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)})
        return result


def examine(architecture: str, **model_args: Any) -> Anatomy:
    """Run `architecture` (a timm name without tag, built with `model_args`) on the meta device and describe it.

    Raises:
        NotConvolutional: Its features are not a map that follows the image, or attention or recurrence makes them.
        TypeError, AssertionError, NotImplementedError: timm cannot build it with these arguments.
    """
    return _examine(architecture, json.dumps(model_args, sort_keys=True))


@lru_cache(maxsize=2048)
def _examine(architecture: str, model_args: str) -> Anatomy:
    arguments = json.loads(model_args)
    with warnings.catch_warnings(), torch.device("meta"), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        network = timm.create_model(architecture, num_classes=0, **arguments).eval()
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        raise NotConvolutional("come from recurrent layers")
    images = [torch.empty(1, arguments.get("in_chans", 3), *size, device="meta") for size in _SIZES]
    (small, seen), (large, _) = (_run(network, image) for image in images)
    is_channels_last = small[1] != network.num_features
    grid = slice(1, 3) if is_channels_last else slice(2, 4)
    if large[grid][0] <= small[grid][0] or large[grid][1] <= small[grid][1]:
        raise NotConvolutional("do not follow the size of the image")
    reduction = round((_SIZES[1][0] - _SIZES[0][0]) / (large[grid][0] - small[grid][0]))
    return Anatomy(network.num_features, reduction, is_channels_last, tuple(_untouched(network, seen)))


def _run(network: nn.Module, image: Tensor) -> tuple[torch.Size, set[int]]:
    """The shape of the features of `image`, and the ids of the tensors that made them."""
    try:
        with torch.no_grad(), _ActivationProducts(image) as products:
            features = network.forward_features(image)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise NotConvolutional("do not follow the size of the image") from error
    if not isinstance(features, Tensor):
        raise NotConvolutional(f"are a {type(features).__name__} of tensors")
    if features.ndim != 4:
        raise NotConvolutional(f"are tokens ({features.ndim}-D), not a map (4-D)")
    if products.found:
        raise NotConvolutional("come from attention")
    return features.shape, products.seen


def _untouched(module: nn.Module, seen: set[int], prefix: str = "") -> Iterator[str]:
    """Names of the outermost submodules that have parameters and none of them in `seen`."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if any(id(parameter) in seen for parameter in parameters):
            yield from _untouched(child, seen, f"{prefix}{name}.")
        elif parameters:
            yield f"{prefix}{name}"
