"""Data sets that timm opens by a name: torchvision's and Hugging Face's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset as create_timm_dataset
from torch import Tensor
from torchvision.datasets import DatasetFolder

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, decode_image
from .samples import ImageDataset, Sample, Unreadable
from .shard_folder import is_url
from .shards import Shards

_BY_NUMBER = ("torch", "hfds")
_STREAMS = ("hfids", "tfds")
_FOLDERS = ("folder", "image_folder")


class TimmImages:
    """A map-style data set of timm's `create_dataset`, as a data set (`ImageDataset`).

    Labels are read from its lists, never by decoding images. An image's id is its path where timm knows one of its own,
    else "SPLIT/number"; each image is a group of its own.

    Raises:
        InputError: It has no such split, no list of labels, images without a label, or several labels for each.
    """

    def __init__(self, dataset: Any, name: str, split: str) -> None:
        # timm takes every other split for "test" where there are two.
        if hasattr(dataset, "train") and split not in ("train", "test"):
            raise unknown_name(f"split of {name}", split, ("train", "test"))
        # Where a folder has none of the split timm hands out all of it; that is "train".
        if isinstance(dataset, DatasetFolder) and split != "train" and Path(dataset.root).name != split:
            raise unknown_name(f"split of {name}", split, ("train",))
        kinds = _kinds(dataset)
        if len(kinds) > 1:
            raise InputError(f"{name} would give an image several labels ({', '.join(kinds)}) in {split!r}: name one")
        self._dataset, self._name, self._split = dataset, name, split
        self._reader = getattr(dataset, "reader", None)
        labels = _labels(dataset if self._reader is None else self._reader)
        if labels is None:
            raise InputError(f"data set {name} does not list its labels, so it cannot be used")
        self.labels = labels
        if not len(labels):
            raise InputError(f"data set {name} holds no images of the split {split!r}")
        if int(labels.min()) < 0:
            raise InputError(f"data set {name} has images without a label in the split {split!r}")
        self.groups = torch.arange(len(labels))
        self.classes = _classes(dataset if self._reader is None else self._reader, int(labels.max()) + 1)
        self.description = f"{name}, as timm opens it"
        self.license: str | None = None
        # Hugging Face's data sets know their licence; their images have no path, or one that is not theirs alone.
        self._columns = getattr(self._reader, "dataset", None)
        if self._columns is not None:
            self.license = self._columns.info.license or None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The image (PIL, RGB) with its label, or `Unreadable` naming it."""
        identifier = f"{self._split}/{index}"
        if self._reader is not None and self._columns is None:
            identifier = str(self._reader.filename(index))
        name = f"{self._name}: {identifier}"
        try:
            if self._reader is not None:
                # timm's own data set would hand out another image in place of one that it cannot read.
                with self._reader[index][0] as file:
                    image = decode_image(file, "RGB", name)
            else:
                image = self._dataset[index][0].convert("RGB")
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return Unreadable(identifier, f"{name} is not readable ({error})")
        return Sample(image=image, label=int(self.labels[index]), id=identifier)


def is_timm_name(name: str) -> bool:
    """Whether a name is one of timm's that say what opens it, as torch/cifar10; a folder of that name goes first."""
    prefix, slash, _ = name.partition("/")
    return bool(slash) and prefix.lower() in ("wds", *_BY_NUMBER, *_STREAMS) and not Path(name).exists()


def timm_folder(name: str, root: str | None = None) -> str | None:
    """The folder that folder/PATH or image_folder/PATH stands for, names of timm's; None for any other name.

    As in timm, `root` is the folder where it is given. A folder of that very name goes first.

    Raises:
        InputError: No path follows, and no `root` is given.
    """
    prefix, slash, path = name.partition("/")
    if not slash or prefix.lower() not in _FOLDERS or Path(name).exists():
        return None
    if not (root or path):
        raise InputError(f"data set {name} names no folder: write {prefix}/PATH")
    return root or path


def open_timm(name: str, split: str, root: str | None = None, **options: Any) -> ImageDataset:
    """A data set by a name of timm's.

    Args:
        name: "torch/NAME" (torchvision's), "hfds/NAME" (Hugging Face's), or "wds/PLACE" (the folder or URL of shards).
        split: As the data set calls it.
        root: The folder it lies in; for hfds the cache. The shards of "wds/" may be named in either place.
        options: As timm's `create_dataset` takes them, such as download or target_key.

    Raises:
        InputError: timm cannot open it, or it can be read in one order only.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix == "wds":
        place = root or rest
        if not is_url(place) and not Path(place).expanduser().is_dir():
            raise InputError(f"{name}: {place!r} is neither a folder nor a URL; name the one that holds the shards")
        if options:
            raise unknown_name(f"option of data set {name}", next(iter(options)), ("root",))
        return Shards(place, split)
    if prefix in _STREAMS:
        raise InputError(
            f"{name} is read as a stream, in which no image can be looked up by its number: write shards of it, with "
            "'glasszoo shard' or WebDataset's TarWriter, and give their folder as the data set"
        )
    if prefix == "torch" and root is None:
        raise InputError(f"data set {name} needs the option root, the folder it lies in")
    options["root"] = None if root is None else str(Path(root).expanduser())
    with told_as_input_errors(name):
        return TimmImages(create_timm_dataset(name, split=split, **options), name, split)


@contextmanager
def told_as_input_errors(name: str) -> Iterator[None]:
    """Tells what timm refuses to open under `name` as an InputError."""
    try:
        yield
    except InputError:
        raise
    # All that timm, torchvision and Hugging Face's datasets raise for a name, folder, split or option that is wrong.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"timm cannot open {name}: {reason}") from error


def _labels(source: Any) -> Tensor | None:
    """The labels that a data set of torchvision or a reader of timm lists, n."""
    if hasattr(source, "iter_targets"):  # Hugging Face's
        if source.remap_class or source.target_keys or source.label_key not in source.dataset.column_names:
            return torch.tensor(list(source.iter_targets()), dtype=torch.int64)
        column = source.dataset.select_columns([source.label_key]).with_format("numpy")[:][source.label_key]
        return torch.from_numpy(np.array(column, dtype=np.int64))
    for key in ("targets", "_labels", "labels"):
        if (labels := getattr(source, key, None)) is not None:
            listed = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
            # QMNIST lists more about each digit; which it is comes first.
            return listed[:, 0] if listed.ndim == 2 else listed
    if hasattr(source, "all_categories"):  # iNaturalist: pairs of species and file
        (kind,) = _kinds(source)
        species = [number for number, _ in source.index]
        own = species if kind == "full" else [source.categories_map[number][kind] for number in species]
        return torch.tensor(own, dtype=torch.int64)
    if (samples := getattr(source, "samples", None)) is not None:
        return torch.tensor([sample[1] for sample in samples], dtype=torch.int64)
    return None


def _kinds(source: Any) -> list[str]:
    """What the labels of iNaturalist tell, "full" (the species) or ranks above it; of other data sets "full"."""
    return list(getattr(source, "target_type", ["full"]))


def _classes(source: Any, at_least: int) -> tuple[str, ...]:
    """Names of classes in the order of labels; one without a name is called by its number."""
    (kind,) = _kinds(source)
    if kind != "full":
        ranks: dict[str, int] = source.categories_index[kind]
        return tuple(sorted(ranks, key=ranks.__getitem__))
    listed: Iterable[Any] | None = getattr(source, "classes", None) or getattr(source, "all_categories", None)
    if listed is not None:
        # ImageNet's are several names each.
        names = dict(enumerate(one if isinstance(one, str) else ", ".join(map(str, one)) for one in listed))
    else:
        numbers: dict[str, int] = (
            getattr(source, "class_to_idx", None) or getattr(source, "class_name_to_idx", None) or {}
        )
        names = {number: str(name) for name, number in numbers.items()}
    return tuple(names.get(label, str(label)) for label in range(max(at_least, *[key + 1 for key in names], 0)))
