"""A folder in the layout of Stanford Cars: cars by make, model and year, with boxes."""

from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, open_image, stated_license
from .samples import Sample, Unreadable
from .voc_xml import Box, boxes_within, inclusive_box

_META = "devkit/cars_meta.mat"
_LISTS = {
    "train": ("devkit/cars_train_annos.mat",),
    "test": ("devkit/cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat"),
}
_EDGES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class StanfordCars:
    """Images of one split of a folder in the layout of Stanford Cars (Krause et al., 2013), as a data set.

    `root` holds devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (in devkit/ or in
    `root`), cars_train/ and cars_test/, whose images may lie one folder deeper, in cars_train/cars_train/ and
    cars_test/cars_test/, as Kaggle packs them. Classes are in the published order; an image's id is its path below
    `root`. Samples have the car's box.

    Raises:
        InputError: No such folder, a file that lacks or cannot be read, an unknown split, no images, or no scipy,
            which reads the lists.
    """

    description = "cars by make, model and year (Stanford Cars, Krause et al. 2013), with boxes"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        if split not in _LISTS:
            raise unknown_name(f"split of {self.root}", split, _LISTS)
        self.classes = tuple(str(name) for name in _rows(self.root / _META, "class_names"))
        lists = [self.root / name for name in _LISTS[split]]
        path = next((path for path in lists if path.is_file()), lists[0])
        rows = _rows(path, "annotations")
        if not rows:
            raise InputError(f"{self.root} holds no images of the split {split!r}")
        records = [_record(row, path, number, len(self.classes)) for number, row in enumerate(rows, 1)]
        nested = f"cars_{split}/cars_{split}"
        folder = nested if (self.root / nested).is_dir() else f"cars_{split}"
        self._files = [f"{folder}/{name}" for name, _, _ in records]
        self._boxes = [box for _, _, box in records]
        self.labels = torch.tensor([label for _, label, _ in records], dtype=torch.int64)
        self.groups = torch.arange(len(records))
        self.license = stated_license(self.root)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and its box, or `Unreadable` naming the file that is at fault."""
        identifier = self._files[index]
        try:
            image = open_image(self.root / identifier, "RGB")
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        sample = Sample(image=image, label=int(self.labels[index]), id=identifier)
        boxes = boxes_within([self._boxes[index]], image)
        if boxes is not None:
            sample["boxes"] = boxes
        return sample


def is_cars(root: Path) -> bool:
    """Whether a folder has the list of classes and one of the folders of images of that layout."""
    return (root / _META).is_file() and any((root / f"cars_{split}").is_dir() for split in _LISTS)


def _rows(path: Path, field: str) -> list[Any]:
    """What a MATLAB file holds under `field`: a list of texts or of dicts."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(f"reading {path} needs scipy: pip install scipy") from None
    if not path.is_file():
        raise InputError(f"{path} does not exist: the layout of Stanford Cars has it")
    try:
        value = loadmat(path, simplify_cells=True)[field]
    except KeyError:
        raise InputError(f"{path} lacks the field {field!r}") from None
    except Exception as error:  # scipy meets a broken file with whatever its bytes lead to
        raise InputError(f"{path} is not readable as a MATLAB file ({error})") from None
    # One row comes without its list.
    return [value] if isinstance(value, (dict, str)) else list(value)


def _record(row: Any, path: Path, number: int, count: int) -> tuple[str, int, Box]:
    """File, label and box of one row; classes and pixels are published from 1, the last pixel inside."""
    try:
        label = int(row["class"]) - 1
        box = inclusive_box([row[edge] for edge in _EDGES], first_pixel=1)
        name = str(row["fname"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}, row {number}: no fname, class and box can be read ({error})") from None
    if not 0 <= label < count:
        raise InputError(f"{path}, row {number}: class {label + 1} is not among the {count} classes")
    return name, label, box
