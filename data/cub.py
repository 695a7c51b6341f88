"""A folder in the layout of CUB-200-2011: birds with the points of their parts."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors

from ..common.errors import InputError, unknown_name
from .folder import UnfitFile, open_image, stated_license
from .samples import Sample, Unreadable

_NEEDED = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")


class CUB:
    """Images of one split of a folder in the layout of CUB-200-2011 (Wah et al., 2011), as a data set.

    `root` holds images.txt, image_class_labels.txt, classes.txt, train_test_split.txt and the folder images/; where
    there, bounding_boxes.txt and parts/. Ids of images and classes need not be contiguous: a label is the place of the
    class in the order of ids, and its name is the one published, number and all. An image's id is its path below
    images/. Samples have the bird's box, and `points`, the place of each of `part_names`, NaN where it is not visible.

    Raises:
        InputError: No such folder, a file that lacks or has a line that cannot be read, an unknown split, no images.
    """

    description = "birds by species (CUB-200-2011, Wah et al. 2011), with boxes and the points of parts"

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root).expanduser()
        if split not in ("train", "test"):
            raise unknown_name(f"split of {self.root}", split, ("train", "test"))
        files, labels, names, is_training = (_table(self.root / name) for name in _NEEDED)
        places = {class_id: label for label, class_id in enumerate(sorted(names, key=int))}
        self.classes = tuple(names[class_id][0] for class_id in places)
        wanted = "1" if split == "train" else "0"
        try:
            own = [image for image in files if is_training[image][0] == wanted]
            self.labels = torch.tensor([places[labels[image][0]] for image in own], dtype=torch.int64)
        except KeyError as error:
            raise InputError(f"{self.root}: {error} has a line in one list and none in another") from None
        if not own:
            raise InputError(f"{self.root} holds no images of the split {split!r}")
        self.groups = torch.arange(len(own))
        self.ids = [files[image][0] for image in own]
        boxes = self.root / "bounding_boxes.txt"
        self._boxes = _numbers(boxes, own, 4) if boxes.is_file() else None
        if self._boxes is not None:
            self._boxes[:, 2:] += self._boxes[:, :2]
        self.license = stated_license(self.root)
        parts = self.root / "parts"
        self.part_names: tuple[str, ...] = ()
        if parts.is_dir():
            self.part_names = tuple(" ".join(name) for name in _table(parts / "parts.txt").values())
            self._points = _part_points(parts / "part_locs.txt", own, len(self.part_names))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        """The stored image (PIL, RGB) and what is known of it, or `Unreadable` naming the file that is at fault."""
        identifier = self.ids[index]
        try:
            image = open_image(self.root / "images" / identifier, "RGB")
        except UnfitFile as error:
            return Unreadable(identifier, str(error))
        sample = Sample(image=image, label=int(self.labels[index]), id=identifier)
        canvas = (image.height, image.width)
        if self._boxes is not None:
            box = self._boxes[index : index + 1].clone()
            sample["boxes"] = tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=canvas)
        if self.part_names:
            sample["points"] = tv_tensors.KeyPoints(self._points[index].clone(), canvas_size=canvas)
        return sample

    def image_file(self, index: int) -> Path:
        """The file of an image."""
        return self.root / "images" / self.ids[index]


def is_cub(root: Path) -> bool:
    """Whether a folder has the lists of that layout."""
    return all((root / name).is_file() for name in _NEEDED)


def _table(path: Path) -> dict[str, list[str]]:
    """Lines "id value …" by id, in the order of the file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the layout of CUB-200-2011 has it")
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {row[0]: row[1:] for row in rows}


def _numbers(path: Path, images: list[str], width: int) -> Tensor:
    table = _table(path)
    try:
        return torch.tensor([[float(value) for value in table[image][:width]] for image in images]).reshape(-1, width)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} has no {width} numbers for each image ({error})") from None


def _part_points(path: Path, images: list[str], count: int) -> Tensor:
    """`n part 2` from lines "image part x y visible"; NaN where a part is not visible or not listed."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the layout of CUB-200-2011 has it")
    rows = {image: row for row, image in enumerate(images)}
    points = torch.full((len(images), count, 2), torch.nan)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            image, part, x, y, is_visible = line.split()
            if image in rows and is_visible == "1":
                points[rows[image], int(part) - 1] = torch.tensor([float(x), float(y)])
        except (ValueError, IndexError):
            raise InputError(f"{path}, line {number}: {line!r} is not 'image part x y visible'") from None
    return points
