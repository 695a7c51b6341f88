"""Data sets by name, or by the path of a folder."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import InputError, unknown_name
from .cars import StanfordCars, is_cars
from .class_tars import holds_class_tars, open_class_tars, open_tar
from .critters import Critters
from .cub import CUB, is_cub
from .folder import ImageFolder, is_image_folder
from .funnybirds import FunnyBirds, is_funnybirds
from .imagenet import ImageNet, is_imagenet
from .pets import OxfordPets, is_pets
from .samples import ImageDataset
from .shard_folder import is_url
from .shards import Shards, is_shards
from .timm_data import is_timm_name, open_timm, timm_folder
from .voc import PascalVOC, is_voc

DATASETS: dict[str, Callable[..., ImageDataset]] = {"critters": Critters, "funnybirds": FunnyBirds}

# Layouts of folders, each with what knows it; of a folder in none of them ImageFolder says what it lacks.
_LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[..., ImageDataset]], ...] = (
    (is_cub, CUB),
    (is_funnybirds, FunnyBirds),
    (is_pets, OxfordPets),
    (is_cars, StanfordCars),
    (is_imagenet, ImageNet),
    (is_voc, PascalVOC),
    (is_image_folder, ImageFolder),  # before tar files, which may lie beside its images
    (holds_class_tars, open_class_tars),
    (is_shards, Shards),
)


def create_dataset(name: str, split: str, **options: Any) -> ImageDataset:
    """The images of one split of a known data set, or of a folder: of images, of tar files, or in a published layout.

    The layouts are those of CUB-200-2011, FunnyBirds, Oxford-IIIT Pet, Stanford Cars, ImageNet and Pascal VOC.

    Args:
        name: A name from `DATASETS`, or a path; the URL of shards (`Shards`); or a name of timm's, as torch/cifar10,
            hfds/NAME or wds/ (`open_timm`); folder/PATH and image_folder/PATH are what PATH is.
        split: "train", "test", or what else the data set has.
        options: Of the data set, as its class takes them.

    Raises:
        InputError: Neither such a name nor such a folder; an unknown split or option; zero classes or images.
    """
    known = DATASETS.get(name)
    if known is None and is_timm_name(name):
        return open_timm(name, split, **options)
    if known is None and (path := timm_folder(name, options.get("root"))) is not None:
        name = path
        options.pop("root", None)
    if known is None and not is_url(name) and not Path(name).expanduser().exists():
        looks_like_path = any(sign in name for sign in "/\\.")
        raise (
            InputError(f"data set folder {name} does not exist")
            if looks_like_path
            else unknown_name("data set (and no such folder)", name, DATASETS)
        )
    folder = _reader(name)
    build = known or folder
    given = ("split",) if known else ("root", "split")
    parameters = [key for key in inspect.signature(build).parameters if key not in given]
    for option in options:
        if option not in parameters:
            raise unknown_name(f"option of data set {name}", option, parameters)
    return build(split=split, **options) if known else folder(name, split, **options)


def _reader(name: str) -> Callable[..., ImageDataset]:
    """What reads a folder, a tar file, or what lies behind a URL."""
    if is_url(name):
        return Shards
    root = Path(name).expanduser()
    if root.suffix == ".tar" and root.is_file():
        return open_tar
    return next((reader for knows, reader in _LAYOUTS if knows(root)), ImageFolder)
