"""How much each prototype counts for each class, where prototypes belong to classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .options import check_choice

KINDS = ("fixed", "signed", "non_negative")


class Connection(nn.Module):
    """Weights `c p` of prototypes for classes.

    "fixed": 1 for the prototype's own class, 0 for others, not learned. "signed": starts at 1 and −0.5, as the original
    ProtoPNet, so that a class can be argued for by what is not there. "non_negative": starts at 1 and 0 and is never
    below 0: prototypes speak for classes only.
    """

    own: Tensor

    def __init__(self, owners: Tensor, num_classes: int, kind: str) -> None:
        super().__init__()
        check_choice("connection", kind, KINDS)
        own = functional.one_hot(owners, num_classes).T.to(torch.get_default_dtype()).contiguous()
        self.register_buffer("own", own)
        self.is_non_negative = kind == "non_negative"
        start = own - 0.5 * (1 - own) if kind == "signed" else own.clone()
        self.weight = None if kind == "fixed" else nn.Parameter(start)

    def forward(self) -> Tensor:
        """The weights `c p`."""
        if self.weight is None:
            return self.own
        if not self.is_non_negative:
            return self.weight
        # Only the value is clamped: with the gradient clamped too, a weight at 0 could not rise again.
        return self.weight + (self.weight.clamp(min=0) - self.weight).detach()

    def of_others(self) -> Tensor:
        """Sum of the magnitudes of weights between prototypes and classes that do not own them: a scalar."""
        return (self() * (1 - self.own)).abs().sum()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring non-negative weights back, where a step took them below 0, so that they need not come all the way."""
        if self.is_non_negative and self.weight is not None:
            self.weight.clamp_(min=0)
