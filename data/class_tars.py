"""Tar files of images in class folders, and folders with one tar file a class, as timm reads them."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageDataset as TimmDataset
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..common.errors import InputError, unknown_name
from .samples import ImageDataset
from .shard_index import INDEX_FILE, SPLITS
from .timm_data import TimmImages, told_as_input_errors


class _Tars(ReaderImageInTar):
    """timm's reader, where an image has the path through all tar files as its name: its own may occur in each."""

    def __init__(self, root: Path) -> None:
        # A file that timm keeps open would be shared by the loader's processes, each of which moves its place. The list
        # of headers that timm keeps beside large tar files is taken for theirs whatever became of them.
        super().__init__(str(root), cache_tarfiles=False, cache_tarinfo=False)
        names = [self._filename(index) for index in range(len(self))]
        # timm leaves images of one name in the order in which the disk lists their tar files.
        order = sorted(range(len(self)), key=lambda index: (natural_key(names[index]), names[index]))
        self.samples, self.targets = self.samples[order], self.targets[order]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        image, tar_file, inner = self.samples[index]
        return "/".join(filter(None, (tar_file, inner and inner.name, image.name)))

    def number_as(self, names: Sequence[str]) -> None:
        """Make a class's label its place in `names`; raises InputError where there is another class."""
        numbers = {name: number for number, name in enumerate(names)}
        others = self.class_name_to_idx.keys() - numbers
        if others:
            raise InputError(
                f"{self.root} has the class folder {min(others)!r} inside a tar file: "
                "where there are several splits, a class is a tar file"
            )
        self.targets = np.array([numbers[name] for name in self.class_name_to_idx])[self.targets]
        self.class_name_to_idx = numbers


def open_tar(root: str | Path, split: str = "train") -> ImageDataset:
    """One tar file with a folder, or a tar file, for each class, as timm reads it; all of it is the split "train".

    Raises:
        InputError: Another split, no tar file, or no class folders in it.
    """
    path = Path(root).expanduser()
    if split != "train":
        raise unknown_name(f"split of {path}", split, ("train",))
    with told_as_input_errors(str(path)):
        images = TimmImages(TimmDataset(str(path), reader=_Tars(path)), str(path), split)
    if not all(images.classes):
        raise InputError(f"{path} has images outside of class folders; of shards the folder is the data set's name")
    return images


def open_class_tars(root: str | Path, split: str = "train") -> ImageDataset:
    """A folder with a tar file of images for each class, which bears its name, as timm reads it.

    They lie in `root/SPLIT/`, and then classes are those of all splits, or in `root`, for the split "train". Where a
    tar file has folders, these are the classes, as in timm.

    Raises:
        InputError: Another split, a tar file that cannot be read, no images, or folders inside a tar file where there
            are several splits.
    """
    path = Path(root).expanduser()
    folders = {name: path / name for name in SPLITS if any((path / name).glob("*.tar"))}
    if any(path.glob("*.tar")):
        folders.setdefault("train", path)
    if split not in folders:
        raise unknown_name(f"split of {path}", split, folders)
    with told_as_input_errors(str(folders[split])):
        try:
            reader = _Tars(folders[split])
        except tarfile.TarError as error:
            raise InputError(f"{_broken(folders[split])} is cut off or no tar file ({error})") from None
        if len(folders) > 1:
            names = {tar_file.stem for folder in folders.values() for tar_file in folder.glob("*.tar")}
            reader.number_as(sorted(names, key=natural_key))
        return TimmImages(TimmDataset(str(folders[split]), reader=reader), str(folders[split]), split)


def _broken(folder: Path) -> Path:
    """The first tar file of a folder whose headers cannot all be read; the folder itself where they can."""
    for path in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                tar.getmembers()
        except tarfile.TarError:
            return path
    return folder


def holds_class_tars(root: Path) -> bool:
    """Whether the tar files of a folder are classes, not shards: the first has images and nothing else."""
    if not root.is_dir():
        return False
    folders = (root, *(root / split for split in SPLITS))
    first = next((tar_file for folder in folders for tar_file in sorted(folder.glob("*.tar"))), None)
    if first is None or any(root.glob(f"*/{INDEX_FILE}")):
        return False
    images, has_images = get_img_extensions(as_set=True), False
    try:
        with tarfile.open(first) as tar:
            for member in tar:
                path = Path(member.name)
                # Hidden files are left by a desktop (.DS_Store), not by who made the data set.
                if not member.isfile() or path.name.startswith("."):
                    continue
                if path.suffix.lower() not in images:
                    return False
                has_images = True
    except (tarfile.TarError, OSError):
        return False  # those who read shards say what is wrong with it
    return has_images
