"""The probe protocol: the backbone is frozen, its features are computed once, and the head alone trains on them.

Minutes where fine-tuning takes hours, and a fair comparison of heads on the same features. No augmentation: every
epoch sees the images as evaluation does.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ..common.files import replacing
from ..common.processes import ALONE, Place, is_first, joint_list, own_place
from ..data.loading import Loader
from ..data.order import Order
from ..data.samples import targets_of
from ..heads import Features
from ..models import ImageClassifier
from .building import Loaders
from .evidence_losses import evidence_region
from .recipe import Recipe


class FeatureBatch(NamedTuple):
    """What a batch of images became."""

    features: list[Tensor]  # b d h w each, a tensor a stage
    labels: Tensor  # b
    region: Tensor  # b H W bool: where the cause of the label is known to lie
    targets: Tensor  # as in `Batch`

    def inputs(self, device: torch.device) -> Features:
        """The features as the head takes them."""
        stages = [stage.to(device, non_blocking=True) for stage in self.features]
        return stages if len(stages) > 1 else stages[0]


class ProbeLoaders(NamedTuple):
    """The batches of a run on features; those of `Loaders` where the names agree."""

    training: "FeatureLoader"
    validation: "FeatureLoader"
    projection: Loader


class FeatureLoader:
    """Batches of features held in memory, in the order in which `Loader` gives images; for the arguments see there."""

    def __init__(
        self,
        everything: FeatureBatch,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        place: Place = ALONE,
    ) -> None:
        self._everything = everything
        self._order = Order(
            len(everything.labels), batch_size, shuffle=shuffle, drop_last=shuffle, seed=seed, place=place
        )

    def __len__(self) -> int:
        """Batches an epoch, or rounds of dealing them out; a short last one is dropped while training."""
        return len(self._order)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch whose order the next passes draw, and the batch they begin with."""
        self._order.epoch, self._order.first = epoch, first

    def __iter__(self) -> Iterator[FeatureBatch]:
        """The epoch's batches."""
        return (batch for batch in self.batches() if len(batch.labels))

    def batches(self) -> Iterator[FeatureBatch]:
        """As when iterated over, but a round without images comes as well."""
        features, labels, region, targets = self._everything
        for keys in self._order:
            some = torch.tensor([index for _, index in keys], dtype=torch.int64)
            yield FeatureBatch([stage[some] for stage in features], labels[some], region[some], targets[some])


def probe_loaders(model: ImageClassifier, recipe: Recipe, loaders: Loaders, device: torch.device) -> ProbeLoaders:
    """Loaders of the features that `model` makes of the images of `loaders`."""
    training = cached_features(model, recipe, loaders.projection, device, "training")
    validation = cached_features(model, recipe, loaders.validation, device, "validation")
    size = recipe.data.batch_size
    return ProbeLoaders(
        FeatureLoader(training, size, shuffle=True, seed=recipe.seed, place=own_place()),
        FeatureLoader(validation, size, place=own_place()),
        loaders.projection,
    )


@torch.no_grad()
def computed_features(model: ImageClassifier, loader: Loader, device: torch.device, description: str) -> FeatureBatch:
    """All of `loader`'s images through the backbone of `model`, which is put into eval mode.

    With several processes each computes its share, and all get all.
    """
    model.eval()
    own: list[FeatureBatch | None] = []
    for batch in tqdm(loader.batches(), description, len(loader), leave=False, disable=not is_first()):
        if not batch.ids:
            own.append(None)
            continue
        features = model.backbone(batch.images.to(device))
        stages = [features] if isinstance(features, Tensor) else features
        kept = [stage.float().cpu().contiguous() for stage in stages]
        own.append(FeatureBatch(kept, batch.labels, evidence_region(batch), batch.targets))
    # Batches were dealt out in turn: one round of all processes after the other, they lie as they were.
    batches = [batch for a_round in zip(*joint_list(own), strict=True) for batch in a_round if batch is not None]
    return FeatureBatch(
        [torch.cat(parts).contiguous() for parts in zip(*(batch.features for batch in batches), strict=True)],
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.region for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
    )


def cached_features(
    model: ImageClassifier, recipe: Recipe, loader: Loader, device: torch.device, part: str
) -> FeatureBatch:
    """`computed_features`, kept in the recipe's `feature_cache`, if it names one, and taken from there if known.

    A file is known by the backbone's weights, the stages the head looks at, the preprocessing, and which images these
    are; not by the content of the images: remove the folder when they change.
    """
    if recipe.feature_cache is None:
        return computed_features(model, loader, device, f"features of {part} images")
    path = Path(recipe.feature_cache) / f"{_key(model, recipe, loader, part)}.safetensors"
    if all(joint_list(path.is_file())):
        known = safetensors.torch.load_file(path)
        stages = [known[name] for name in sorted(known) if name.startswith("stage_")]
        labels = known["labels"]
        return FeatureBatch(stages, labels, known["region"], known.get("targets", torch.zeros(len(labels), 0)))
    everything = computed_features(model, loader, device, f"features of {part} images")
    tensors = {f"stage_{place:02d}": stage for place, stage in enumerate(everything.features)}
    tensors |= {"labels": everything.labels, "region": everything.region}
    if everything.targets.numel():
        tensors["targets"] = everything.targets
    if is_first():
        with replacing(path) as temporary:
            safetensors.torch.save_file(tensors, temporary)
    return everything


def _which_images(recipe: Recipe, part: str) -> tuple[Any, ...]:
    """What decides which images of a data set `part` has."""
    split = recipe.data.validation_split
    if split is None:
        return part, recipe.data.validation, recipe.seed
    return ("all", split) if part == "validation" else ("all",)


def _key(model: ImageClassifier, recipe: Recipe, loader: Loader, part: str) -> str:
    about: dict[str, Any] = {
        "backbone": model.config.architecture,
        "options": [model.config.backbone_kwargs, model.config.output_stride, model.config.in_chans],
        "stages": [tuple(stage) for stage in model.backbone.stages],
        "preprocessing": asdict(model.config.preprocessing),
        "images": [recipe.data.name, recipe.data.options, *_which_images(recipe, part)],
        "labels": loader.dataset.labels.tolist(),
    }
    if (targets := targets_of(loader.dataset)) is not None:
        about["targets"] = targets.tolist()
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    used = {id(parameter) for parameter in model.get_classifier().parameters()}
    for name, tensor in model.backbone.state_dict(keep_vars=True).items():
        if id(tensor) not in used:  # a black box keeps its classifier in the backbone
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
