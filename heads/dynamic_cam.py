"""Dynamic CAM: class activation maps of a classifier that is more than linear after pooling.

    z_0 = x, z_i = step_i(z_{i-1}), logits = z_n        w_c(x): class c's weights over x, pulled back along the steps
    evidence_c(h, w) = w_c(x) · x(h, w)        offset_c = what the biases add

ConvNeXt normalises what it pooled, MobileNetV3 and V4, GhostNet and HGNet send it through another layer and an
activation, VGG through three: `steps` says what, and steps.py how each is undone, exactly, once the image's own
statistics (deviation, gains) are fixed. For average pooling and one linear layer this is CAM: Zhou et al., "Learning
Deep Features for Discriminative Localization", CVPR 2016. Features `b d h w`, weights `b k d h w` (`b k d 1 1` where
all cells have the same).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn

from ..common.errors import InputError, unknown_name
from .base import Contract, Features, Head, State, no_parts
from .registry import register_head
from .steps import STEPS, Linear, Step

_AS_CONVNEXT = ({"kind": "pool"}, {"kind": "norm"}, {"kind": "linear"})


@dataclass
class _Steps(State):
    given: list[Tensor]  # what went into each step


@register_head("dynamic_cam")
class DynamicCAM(Head[_Steps]):
    """The classifier of any timm CNN as it is, with the map that its logits are made of.

    Assumes nothing but that steps follow one another. `create_model(NAME, head="cam", pretrained=True)` makes this head
    where timm ends in more than average pooling and a linear layer; its logits are timm's. The map of a class depends
    on the image not only by the features: its weights are those of this image. Costs K products with the layers'
    weights for K explained classes.

    Args:
        num_features: Channels d of the features.
        num_classes: Classes c.
        steps: From the features to the logits, each {"kind": ..., options}, as steps.py describes them; the last one
            {"kind": "linear"}, without a number of outputs. Default: average pooling, a norm, a linear layer.
    """

    contract = Contract.DYNAMIC

    def __init__(
        self, num_features: int, num_classes: int, *, steps: Sequence[Mapping[str, Any]] = _AS_CONVNEXT
    ) -> None:
        super().__init__(num_features, num_classes)
        if not steps or dict(steps[-1]) != {"kind": "linear"}:
            raise InputError('steps must end in {"kind": "linear"}, which gives one output a class')
        built = []
        for description in [*steps[:-1], {"kind": "linear", "out_features": num_classes}]:
            built.append(_step(num_features, **description))
            num_features = built[-1].out_features
        self.steps = nn.ModuleList(built)

    def score(self, features: Features) -> _Steps:
        """Logits `b c` from features `b d h w`.

        Raises:
            InputError: The steps leave a grid: none of them pools.
        """
        assert isinstance(features, Tensor)
        given = [features]
        for step in self.steps:
            given.append(step(given[-1]))
        *given, last = given
        if last.shape[-2:] != (1, 1):
            raise InputError(
                f"the steps leave a grid of {last.shape[-2]} × {last.shape[-1]} cells: one of them must pool"
            )
        return _Steps(features, last.flatten(1), no_parts(features), given)

    def evidence(self, state: _Steps, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w`; offset `b k`: what the biases add, along the steps."""
        *before, last = self.steps
        assert isinstance(last, Linear)
        weight, offset = last.weight[classes][..., None, None], last.bias[classes]
        for step, given in zip(reversed(before), reversed(state.given[:-1]), strict=True):
            assert isinstance(step, Step)
            weight, constant = step.pull(weight, given)
            offset = offset + constant
        if weight.shape[-2:] == (1, 1):
            return einsum(weight[..., 0, 0], state.features, "b k d, b d h w -> b k h w"), offset
        return einsum(weight, state.features, "b k d h w, b d h w -> b k h w"), offset

    @torch.no_grad()
    def take_over(self, steps: Sequence[Step]) -> bool:
        """Take the weights of `steps`, if they are this head's steps."""
        own = [step.description for step in self.steps]
        if own != [step.description for step in steps]:
            return False
        for step, given in zip(self.steps, steps, strict=True):
            step.load_state_dict(given.state_dict())
        return True


def _step(num_features: int, *, kind: str = "", **options: Any) -> Step:
    """The step of `kind` with `options`, for `num_features` channels.

    Raises:
        InputError: No such kind, or options that it does not take.
    """
    if not kind:
        raise InputError(f"step {options} names no kind: known are {', '.join(STEPS)}")
    if kind not in STEPS:
        raise unknown_name("kind of step", kind, STEPS)
    try:
        return STEPS[kind](num_features, **options)
    except TypeError as error:
        raise InputError(f"step {kind!r} does not take these options: {error}") from None
