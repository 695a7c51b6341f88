"""The same few validation images every time, with what the model sees in them: how evidence grows over a run, for W&B.

Ground truth comes as W&B's own overlays, which a viewer can switch on and off.
"""

from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.seeds import mixed_seed
from ..data.loading import Loader
from ..data.samples import Batch, ImageDataset
from ..data.subsets import Subset
from ..evaluation.pictures import blended, displayed
from ..evaluation.scoring import EVIDENCE
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode

IMAGES = 16
_OBJECT = 128  # of a mask: the rest of the object


class Showcase:
    """`count` images of `dataset`, spread over its classes and chosen by `seed`; unreadable ones are left out."""

    def __init__(self, dataset: ImageDataset, seed: int, count: int = IMAGES) -> None:
        self._dataset = dataset
        self.places = spread_over_classes(dataset.labels, count, seed)
        self._batch: Batch | None = None

    @torch.no_grad()
    def explanations(self, model: ImageClassifier) -> dict[str, Any]:
        """`explanations`: a `wandb.Image` each, with the evidence for the predicted class; all on one scale.

        Of a black box the bare photographs. The model is left in the mode that it was found in.
        """
        import wandb

        if (batch := self._read(model)) is None:
            return {}
        with eval_mode(model):
            explained = model(batch.images.to(next(model.parameters()).device), 1)
        logits, maps = explained.logits.float().cpu(), explained.maps.float().cpu()
        names = model.class_names
        limit = maps.abs().max().item() if maps.numel() else 0.0
        # W&B keeps one list of names for all images of a key.
        labels = {label: names[label] for label in sorted(set(batch.labels.tolist()))}
        images = []
        for place, label in enumerate(batch.labels.tolist()):
            # Of several classes all that are there; "none" where none is.
            told = " + ".join(compress(names, batch.targets[place].tolist())) or "none"
            truly = told if model.config.multi_label else names[label]
            picture = displayed(batch.images[place], model.config.preprocessing)
            if maps.shape[1]:
                picture = (255 * blended(picture, maps[place, 0], limit)).round().astype(np.uint8)
            probability, predicted = model.probabilities(logits[place]).max(0)
            images.append(
                wandb.Image(
                    picture,
                    caption=f"{names[int(predicted)]} {probability:.1%}, truly {truly} · {batch.ids[place]}",
                    boxes=_boxes(batch.boxes[place], label, labels),
                    masks=_masks(batch.masks[place]) if batch.has_mask[place] else None,
                )
            )
        return {"explanations": images}

    def _read(self, model: ImageClassifier) -> Batch | None:
        """Read once; None where none of them can be read."""
        if self._batch is None:
            chosen = Subset(self._dataset, self.places)
            self._batch = next(iter(Loader(chosen, model.preprocess, len(chosen), on_error="skip")), None)
        return self._batch


def spread_over_classes(labels: Tensor, count: int, seed: int) -> list[int]:
    """Places of `count` images, ascending: of each class in turn one, until there are enough; labels `n`.

    Which image of a class, and which classes where there are more than `count`, a generator of `seed` draws.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(mixed_seed(seed)))
    turns: dict[int, int] = {}
    keyed = []
    for rank, place in enumerate(order.tolist()):
        label = int(labels[place])
        turns[label] = turns.get(label, -1) + 1
        keyed.append((turns[label], rank, place))
    return sorted(place for _, _, place in sorted(keyed)[:count])


def _boxes(boxes: Tensor, label: int, labels: dict[int, str]) -> dict[str, Any] | None:
    """Boxes (`n 4`, x1 y1 x2 y2 in pixels) as W&B takes them."""
    if not len(boxes):
        return None
    corners = ("minX", "minY", "maxX", "maxY")
    data = [
        {
            "position": dict(zip(corners, box, strict=True)),
            "domain": "pixel",
            "class_id": label,
            "box_caption": labels[label],
        }
        for box in boxes.tolist()
    ]
    return {"truth": {"box_data": data, "class_labels": labels}}


def _masks(mask: Tensor) -> dict[str, Any]:
    """A mask (`h w`, uint8) as W&B takes it, by our values: 255 the evidence, 128 the rest of the object."""
    names = {EVIDENCE: "evidence", _OBJECT: "rest of the object"}
    return {"truth": {"mask_data": mask.numpy(), "class_labels": names}}
