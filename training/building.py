"""From a recipe to what a run works with: the model and the loaders."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torchvision.transforms import v2

from ..common.errors import InputError
from ..common.processes import joint_list, own_place
from ..data import create_dataset
from ..data.augmentation import Views
from ..data.loading import Loader
from ..data.samples import ImageDataset, are_numbers, targets_of
from ..data.subsets import Cached, split_validation
from ..models import ImageClassifier, create_model
from ..models.card import VALIDATION
from ..models.preprocessing import interpolation_mode
from .recipe import DataRecipe, ModelRecipe, Recipe

_TRAINING = "train"
_WITH_TRAINING = (_TRAINING, "training", "trainval")  # timm's other word; as in Pascal VOC


class Loaders(NamedTuple):
    """The batches of a run."""

    training: Loader  # shuffled and augmented
    validation: Loader  # preprocessed as for evaluation
    projection: Loader  # the training images, preprocessed as for evaluation

    def unreadable(self) -> dict[str, dict[str, str]]:
        """Reasons by id of the images that any process left out so far, of "train" and of "validation"."""
        of_training = self.training.unreadable | self.projection.unreadable
        own = {_TRAINING: of_training, VALIDATION: self.validation.unreadable}
        return {
            part: {identifier: missing.reason for some in joint_list(lost) for identifier, missing in some.items()}
            for part, lost in own.items()
        }


def build_data(recipe: DataRecipe, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation images: these are carved from those, or a split of the data set; never the test split.

    Raises:
        InputError: No such data set, split or option, a share that cannot be carved, or a validation split that is the
            test split, holds training images or has other classes.
    """
    split = recipe.validation_split
    if split is not None:
        _check_apart(split)
    training = create_dataset(recipe.name, _TRAINING, **recipe.options)
    if split is None:
        return split_validation(training, recipe.validation, seed)
    validation = create_dataset(recipe.name, split, **recipe.options)
    _check_alike(training, validation, split)
    return training, validation


def _check_apart(split: str) -> None:
    """Refuse to choose a model on images that it learns from, or that are to judge it."""
    # Hugging Face's "test[:10%]" and "train+test", iNaturalist's "genus/2021_train_mini"
    parts = re.split(r"[+\[/_]", split)
    if "test" in parts:
        raise InputError(
            f"data.validation_split is {split!r}, but the test split is read once, after training: a model chosen on "
            "it would look better there than it is"
        )
    if not {*_WITH_TRAINING}.isdisjoint(parts):
        raise InputError(
            f"data.validation_split is {split!r}, but the model learns from these images: name another split, or leave "
            "it out, and data.validation says which share of the training images is held out"
        )


def _check_alike(training: ImageDataset, validation: ImageDataset, split: str) -> None:
    """Refuse a validation split whose labels mean something else than the training split's."""
    ours, theirs = training.classes, validation.classes
    if are_numbers(ours) and are_numbers(theirs) and targets_of(training) is targets_of(validation) is None:
        highest = int(validation.labels.max())
        if highest >= len(ours):
            raise InputError(
                f"the split {split!r} has an image of class {highest}, but {_TRAINING!r} has {len(ours)} classes"
            )
        return
    if len(ours) != len(theirs):
        raise InputError(f"the split {split!r} has {len(theirs)} classes, but {_TRAINING!r} has {len(ours)}")
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            raise InputError(f"class {number} of the split {split!r} is {other!r}, but {one!r} of {_TRAINING!r}")
    if (targets_of(training) is None) != (targets_of(validation) is None):
        knows, lacks = (_TRAINING, split) if targets_of(validation) is None else (split, _TRAINING)
        raise InputError(f"the split {knows!r} says of each image which classes are in it, but {lacks!r} does not")


def build_model(recipe: ModelRecipe, classes: tuple[str, ...]) -> ImageClassifier:
    """The model to train on `classes`, with the recipe's image size in its preprocessing.

    Raises:
        InputError: Names or arguments that timm or the head do not know, weights of another architecture, or images
            smaller than one cell of the map.
    """
    model = create_model(
        recipe.weights or recipe.backbone,
        head=recipe.head,
        pretrained=recipe.pretrained or recipe.weights is not None,
        num_classes=len(classes),
        output_stride=recipe.output_stride,
        head_kwargs=recipe.head_kwargs,
        backbone_kwargs=recipe.backbone_kwargs,
        class_names=classes,
    )
    wanted = recipe.backbone.partition(".")[0]
    if recipe.weights is not None and model.config.architecture != wanted:
        raise InputError(
            f"{recipe.weights} holds weights of {model.config.architecture}, but the recipe wants {wanted}"
        )
    preprocessing = model.config.preprocessing
    if recipe.image_size is not None:
        size = recipe.image_size
        height, width = (size, size) if isinstance(size, int) else size
        preprocessing = replace(preprocessing, input_size=(preprocessing.input_size[0], height, width))
    if recipe.crop_mode is not None:
        preprocessing = replace(preprocessing, crop_mode=recipe.crop_mode)
    if recipe.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=recipe.crop_pct)
    if min(preprocessing.input_size[1:]) < model.backbone.reduction:
        raise InputError(
            f"images of {preprocessing.input_size[1]} × {preprocessing.input_size[2]} are smaller than one cell of the "
            f"map of {model.config.architecture} ({model.backbone.reduction} pixels): raise model.image_size"
        )
    model.config = replace(model.config, preprocessing=preprocessing)
    return model


def build_loaders(
    recipe: Recipe,
    model: ImageClassifier,
    training: ImageDataset,
    validation: ImageDataset,
    needs_region: bool = False,
) -> Loaders:
    """The loaders of a run, for the images that `model` expects; images to be kept in memory are read now.

    `needs_region`: masks and boxes come along with the training images, moved by the same augmentation.

    Raises:
        InputError: A batch of fewer images than there are processes.
    """
    preprocessing = model.config.preprocessing
    _, height, width = preprocessing.input_size
    interpolation = interpolation_mode(preprocessing.interpolation)
    augmentation = recipe.augmentation
    if model.views == 1:
        augmented = v2.Compose([augmentation.transform((height, width), interpolation), preprocessing.to_tensor()])
    else:
        geometric = augmentation.geometric((height, width), interpolation)
        augmented = Views(geometric, augmentation.photometric(), preprocessing.to_tensor(), model.views)
    augmented = v2.Compose([augmented, augmentation.deletion()])
    data, size = recipe.data, recipe.data.batch_size
    if size < own_place().size:
        raise InputError(
            f"data.batch_size is {size}, of all {own_place().size} processes together: some would have no image"
        )
    if data.keep_in_memory:
        training = Cached(training, "reading training images")
        validation = Cached(validation, "reading validation images")
    shared: dict[str, Any] = {
        "num_workers": data.num_workers,
        "on_error": data.on_error,
        "seed": recipe.seed,
        "place": own_place(),
    }
    return Loaders(
        training=Loader(training, augmented, size, shuffle=True, drop_last=True, with_truth=needs_region, **shared),
        validation=Loader(validation, model.preprocess, size, with_truth=False, **shared),
        # A probe learns from these, and keeps what is known of them for other runs.
        projection=Loader(training, model.preprocess, size, with_truth=recipe.probe, **shared),
    )


def chosen_device(name: str | None) -> torch.device:
    """Torch's device of that name; by default the GPU if there is one.

    Raises:
        InputError: No such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).partition(chr(10))[0]}") from None
    return device
