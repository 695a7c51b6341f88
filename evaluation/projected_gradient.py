"""Projected gradient descent, L∞: what all attacks on an image share.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.errors import InputError
from ..models import Preprocessing

Objective = Callable[[Tensor], Tensor]  # images b c h w → what each one's steps raise, b, with gradients


class Ball(NamedTuple):
    """What an attacked image may be: a value at most `epsilon` from the original's, and a colour.

    All broadcast to images `c h w`, in the units of the normalised image.
    """

    epsilon: Tensor
    lowest: Tensor | None = None  # both or neither; None: any value is a colour
    highest: Tensor | None = None

    def project(self, images: Tensor, origin: Tensor) -> Tensor:
        """The nearest to `images` (b c h w) that lie around `origin` (b c h w)."""
        near = origin + (images - origin).clamp(-self.epsilon, self.epsilon)
        return near if self.lowest is None else near.clamp(self.lowest, self.highest)


def pixel_units(preprocessing: Preprocessing, value: float, images: Tensor) -> Tensor:
    """A difference of `value`, of 0..255, as the model sees it: `c 1 1`, on the device of `images`."""
    return value / 255 / images.new_tensor(preprocessing.std)[:, None, None]


def pixel_ball(preprocessing: Preprocessing, epsilon: float, images: Tensor) -> Ball:
    """Pictures of which no pixel differs by more than `epsilon`, of 0..255, and none leaves that range.

    Raises:
        InputError: A negative `epsilon`.
    """
    if not epsilon >= 0:
        raise InputError(f"an attack changes pixels by at least 0 of 255, not by {epsilon}")
    mean, std = (images.new_tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return Ball(pixel_units(preprocessing, epsilon, images), (0 - mean) / std, (1 - mean) / std)


def projected_gradient(
    objective: Objective,
    images: Tensor,
    ball: Ball,
    *,
    step: Tensor | float,
    iterations: int,
    start: Tensor | None = None,
    is_free: Tensor | None = None,
) -> Tensor:
    """`images` (b c h w) after `iterations` steps of the gradient's sign, each back into the `ball` around them.

    Args:
        objective: Called with gradients enabled; a model behind it must be in eval mode.
        images: Where the ball is.
        ball: What may be reached.
        step: Of an iteration, in the units of the image; broadcasts to `c h w`.
        iterations: Steps.
        start: Where the first step begins, `b c h w`; None: at the images themselves.
        is_free: The pixels that may change, broadcasts to `b c h w` bool; None: all.
    """
    changed = images if start is None else start
    for _ in range(iterations):
        direction = ascent(objective, changed)
        changed = ball.project(changed + step * (direction if is_free is None else direction * is_free), images)
    return changed.detach()


def ascent(objective: Objective, images: Tensor) -> Tensor:
    """The sign of the gradient of the objective at `images`, like them."""
    with torch.enable_grad():
        at = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(at).sum(), at)
    return gradient.sign()
