"""Data sets by name, or by the path of a folder."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import InputError, unknown_name
from .critters import Critters
from .cub import CUB, is_cub
from .folder import ImageFolder
from .funnybirds import FunnyBirds, is_funnybirds
from .samples import ImageDataset

DATASETS: dict[str, Callable[..., ImageDataset]] = {"critters": Critters, "funnybirds": FunnyBirds}


def create_dataset(name: str, split: str, **options: Any) -> ImageDataset:
    """The images of one split of a known data set, or of a folder: of images, or as CUB-200-2011 or FunnyBirds are.

    Args:
        name: A name from `DATASETS`, or a path.
        split: "train", "test", or what else the data set has.
        options: Of the data set, as its class takes them.

    Raises:
        InputError: Neither such a name nor such a folder; an unknown split or option; zero classes or images.
    """
    known = DATASETS.get(name)
    if known is None and not Path(name).expanduser().exists():
        looks_like_path = any(sign in name for sign in "/\\.")
        raise (
            InputError(f"data set folder {name} does not exist")
            if looks_like_path
            else unknown_name("data set (and no such folder)", name, DATASETS)
        )
    folder = _reader(Path(name).expanduser())
    build = known or folder
    given = ("split",) if known else ("root", "split")
    parameters = [key for key in inspect.signature(build).parameters if key not in given]
    for option in options:
        if option not in parameters:
            raise unknown_name(f"option of data set {name}", option, parameters)
    return build(split=split, **options) if known else folder(name, split, **options)


def _reader(root: Path) -> Callable[..., ImageDataset]:
    """What reads a folder."""
    if is_cub(root):
        return CUB
    return FunnyBirds if is_funnybirds(root) else ImageFolder
