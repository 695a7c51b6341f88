"""A copy of a model that has learned nothing: every parameter drawn anew."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..common.seeds import mixed_seed
from ..models import ImageClassifier

ModelT = TypeVar("ModelT", bound=nn.Module)

_START = 0.02  # standard deviation where a parameter is zero throughout: timm's own for weights without a layer


def randomised(model: ModelT, seed: int = 0) -> ModelT:
    """A copy of `model` in eval mode, on its device, with all parameters drawn anew by `seed`; `model` is untouched.

    Layers start over as torch starts them (`reset_parameters`), norms with their running statistics. Parameters that no
    layer resets (prototypes, queries, scales) are drawn from a normal of their own mean and standard deviation: so they
    keep the order of magnitude that the computation around them expects, and nothing that was learned of single
    entries. A permutation would do that too, but leave a single number, or equal ones, as they are; these are drawn
    with their own size as deviation. The head then brings its weights back into their range, as after a training step.
    Buffers that are no statistics of a norm stay: they hold a head's structure, such as which class a prototype belongs
    to, and the few things it counts (leaves, priors).

    The same seed gives the same copy on every device; the global random state is left as it was.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    fresh = copy.deepcopy(model).cpu().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(mixed_seed(seed))
        learned = {name: parameter.clone() for name, parameter in fresh.named_parameters()}
        # NaN first, so that what a layer's reset forgets (the gain of timm's standardised convolutions) is seen.
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        for name, parameter in fresh.named_parameters():
            if not parameter.isfinite().all():
                parameter.copy_(_like(learned[name]))
        if isinstance(fresh, ImageClassifier):
            fresh.after_step()
    return fresh.to(device)


def _like(learned: Tensor) -> Tensor:
    """A normal draw of the mean and deviation of `learned`."""
    values = learned.double()
    deviation = values.std(correction=0)
    if not deviation > 1e-6 * values.abs().max():  # one number, or equal ones up to rounding
        deviation = values.abs().max() or values.new_tensor(_START)
    return values.mean() + deviation * torch.randn(learned.shape, dtype=torch.float64)
