"""What a training step minimises, in one module, so that DDP sees forward and loss as one."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ..common.errors import InputError, unknown_name
from ..heads import Contract, Explain, Explained, Features
from ..heads.similarity import widened
from ..models import ImageClassifier
from .evidence_losses import EVIDENCE_LOSSES, evidence_terms, label_and_runner_up


class Losses(NamedTuple):
    """A step's losses, and the logits they came from."""

    total: Tensor  # what is minimised
    terms: dict[str, Tensor]  # unweighted, detached, "classification" among them
    counts: dict[str, Tensor]  # of terms that are a mean over some of the images only: over how many
    logits: Tensor  # b c, detached
    images: Tensor | float = 0.0  # over how many images the other terms are a mean


class Objective(nn.Module):
    """Cross entropy, the head's own terms, and terms over the evidence.

    `multi_label`: binary cross entropy, the mean over classes and images, in place of cross entropy; smoothing moves
    0 and 1 towards a half (timm's).

    Weights: the recipe's, else the head's default, else 1. Terms over the evidence (`evidence_losses.py`) are computed,
    and the label class explained, only where the recipe names them; a head's own term of the same name goes first.

    Raises:
        InputError: A term over the evidence for a model that has none, or `class_contrast` with a single class; with
            `multi_label`, a head whose classes exclude each other, or a term over the evidence of the label.
    """

    def __init__(
        self,
        model: ImageClassifier,
        label_smoothing: float,
        loss_weights: dict[str, float],
        on_features: bool = False,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._predict: Callable[..., tuple[Explained, dict[str, Tensor]]] = (
            model.forward_head if on_features else model.forward_with_losses
        )
        self.chosen_weights = loss_weights
        own = model.loss_weights()
        self.loss_weights = own | loss_weights
        self.phase_weights: Mapping[str, float] = {}  # of the phase that runs; these count first
        self.evidence_names = [name for name in loss_weights if name in EVIDENCE_LOSSES and name not in own]
        self.classification: nn.Module = (
            BinaryCrossEntropy(label_smoothing, smooth_dense=True)
            if multi_label
            else nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        )
        chosen = [EVIDENCE_LOSSES[name] for name in self.evidence_names]
        self.needs_region = any(loss.needs_region for loss in chosen)
        self._needs_contrast = any(loss.needs_contrast for loss in chosen)
        if chosen and model.contract is Contract.NONE:
            raise InputError(
                f"loss_weights.{self.evidence_names[0]}: head {model.config.head!r} has no evidence to train; "
                "leave the term out or choose a head that explains"
            )
        if multi_label and not model.allows_multi_label():
            raise InputError(
                f"multi_label: head {model.config.head!r} learns one class an image; choose one that judges each class "
                "by itself, such as cam, gem, lse or noisy_or"
            )
        if multi_label and chosen:
            raise InputError(
                f"loss_weights.{self.evidence_names[0]}: with multi_label an image has no one label whose evidence "
                "could be trained; leave the term out"
            )
        if self._needs_contrast and model.num_classes < 2:
            raise InputError("loss_weights.class_contrast: there is no second class to contrast with")

    def forward(
        self, images: Tensor | Features, labels: Tensor, region: Tensor | None = None, share: Tensor | float = 1.0
    ) -> Losses:
        """Losses of normalised images `b c h w` (or, `on_features`, of what the backbone made of them), labels `b`.

        With `multi_label`, labels are 0 or 1 for each class, `b c` float.
        With several views of each image, the first of all come first, then the second (`Head.views`); labels and region
        stand for all views of their image, and the logits returned are those of the first.
        `region`: where the label's cause lies, as `evidence_region` gives it; asked for by `needs_region`.
        `share`: of several processes, this one's number of images over the mean number; its means count for so much.

        Raises:
            InputError: A weight for a term that neither the head nor `EVIDENCE_LOSSES` has.
        """
        num_images, targets = len(labels), labels
        views = len(images if isinstance(images, Tensor) else images[0]) // num_images
        if views > 1:
            labels = torch.cat([labels] * views)
            region = None if region is None else region.repeat(views, 1, 1)
        explain: Explain = 0
        if self.evidence_names:
            explain = label_and_runner_up(labels) if self._needs_contrast else labels
        explained, head_terms = self._predict(images, targets, explain)
        is_real = isinstance(share, Tensor) or share > 0  # a number that is 0: of images that stand in for none
        evidence = evidence_terms(self.evidence_names, explained, region, is_real) if self.evidence_names else {}
        terms = {
            "classification": share * self.classification(widened(explained.logits), labels),
            **{name: mean for name, (mean, _) in evidence.items()},
            **{name: share * term for name, term in head_terms.items()},
        }
        weights = {**self.loss_weights, **self.phase_weights}
        for name in (*self.chosen_weights, *self.phase_weights):
            if name not in terms:
                raise unknown_name("loss term", name, terms.keys() | EVIDENCE_LOSSES.keys())
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return Losses(
            total,
            {name: term.detach() for name, term in terms.items()},
            {name: count for name, (_, count) in evidence.items()},
            explained.logits[:num_images].detach(),
        )
