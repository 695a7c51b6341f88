"""What a training step minimises, in one module, so that DDP sees forward and loss as one."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..common.errors import unknown_name
from ..models import ImageClassifier


class Losses(NamedTuple):
    """A step's losses, and the logits they came from."""

    total: Tensor  # what is minimised
    terms: dict[str, Tensor]  # unweighted, "classification" among them
    logits: Tensor  # b c, detached


class Objective(nn.Module):
    """Cross entropy, and the head's own terms by their weights (1 where the recipe names none)."""

    def __init__(self, model: ImageClassifier, label_smoothing: float, loss_weights: dict[str, float]) -> None:
        super().__init__()
        self.model = model
        self.loss_weights = loss_weights
        self.classification = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Losses of normalised images `b c h w` and labels `b`.

        Raises:
            InputError: A weight for a term that the head does not have.
        """
        explained, terms = self.model.forward_with_losses(images, labels)
        terms = {"classification": self.classification(explained.logits.float(), labels), **terms}
        for name in self.loss_weights:
            if name not in terms:
                raise unknown_name("loss term", name, terms)
        total = torch.stack([self.loss_weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return Losses(total, {name: term.detach() for name, term in terms.items()}, explained.logits.detach())
