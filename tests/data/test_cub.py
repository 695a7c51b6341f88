"""The layout of CUB-200-2011: built by hand, with ids that have gaps and all that can be wrong, and for real."""

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.cub import CUB
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Sample, Unreadable

FILES = {
    "images.txt": "3 010.Jay/b.png\n7 002.Owl/a.png\n12 010.Jay/c.png\n",
    "image_class_labels.txt": "3 10\n7 2\n12 10\n",
    "classes.txt": "10 010.Jay\n2 002.Owl\n",
    "train_test_split.txt": "3 1\n7 1\n12 0\n",
    "bounding_boxes.txt": "3 1.0 2.0 10.0 5.0\n7 0.0 0.0 20.0 16.0\n12 0.0 0.0 20.0 16.0\n",
    "parts/parts.txt": "1 beak\n2 left eye\n",
    "parts/part_locs.txt": "3 1 4.5 6.0 1\n3 2 0.0 0.0 0\n7 1 1.0 2.0 1\n7 2 3.0 4.0 1\n12 1 0 0 0\n12 2 9.0 8.0 1\n",
}
SHARED = Path(__file__).parents[3] / "shared/data"
REAL, WHOLE = SHARED / "cub_cropped/CUB_200_2011", SHARED / "cub_original_layout/CUB_200_2011"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, colour in (("010.Jay/b", "blue"), ("002.Owl/a", "brown"), ("010.Jay/c", "navy")):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), colour).save(path)
    return tmp_path


def sample_of(dataset: CUB, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_reads_ids_with_gaps(folder: Path) -> None:
    dataset = create_dataset(str(folder), "train")
    assert isinstance(dataset, CUB)
    # Classes in the order of their ids, which is not that of the file nor that of text.
    assert dataset.classes == ("002.Owl", "010.Jay") and dataset.labels.tolist() == [1, 0]
    assert dataset.part_names == ("beak", "left eye")
    first = sample_of(dataset, 0)
    assert first["id"] == "010.Jay/b.png" and first["image"].getpixel((0, 0)) == (0, 0, 255)
    assert first["boxes"].tolist() == [[1, 2, 11, 7]]
    assert first["points"][0].tolist() == [4.5, 6] and first["points"][1].isnan().all()
    assert [sample_of(CUB(folder, "test"), 0)["id"]] == ["010.Jay/c.png"]
    assert dataset.image_file(0) == folder / "images" / "010.Jay/b.png" and dataset.ids[0] == first["id"]


def test_points_move_with_the_image(folder: Path) -> None:
    model = glasszoo.create_model("test_resnet", num_classes=2)
    config = model.config.preprocessing
    (batch,) = Loader(create_dataset(str(folder), "train"), model.preprocess, 2)
    # The shorter side of 20×16 becomes the input's size by crop_pct, of which the middle is cut out.
    size = config.input_size[1]
    scale = size / config.crop_pct / 16
    expected = torch.tensor([4.5, 6.0]) * scale - (torch.tensor([20.0, 16.0]) * scale - size) / 2
    assert torch.allclose(batch.points[0][0], expected, atol=1.5)
    assert batch.points[0][1].isnan().all() and batch.points[1].shape == (2, 2)


def test_without_parts_and_boxes(folder: Path) -> None:
    (folder / "bounding_boxes.txt").unlink()
    (folder / "parts/parts.txt").unlink()
    (folder / "parts/part_locs.txt").unlink()
    (folder / "parts").rmdir()
    dataset = CUB(folder)
    assert dataset.part_names == () and set(sample_of(dataset, 0)) == {"image", "label", "id"}


def test_a_sample_is_not_shared(folder: Path) -> None:
    dataset = CUB(folder)
    sample_of(dataset, 0)["points"].fill_(math.inf)
    sample_of(dataset, 0)["boxes"].fill_(math.inf)
    again = sample_of(dataset, 0)
    assert again["points"][0].tolist() == [4.5, 6] and again["boxes"].isfinite().all()
    assert isinstance(again["points"], tv_tensors.KeyPoints)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("image_class_labels.txt", "3 10\n7 2\n", ""),
        ("image_class_labels.txt", "7 2\n12 10\n", "'3' has a line in one list and none in another"),
        ("train_test_split.txt", "3 0\n7 0\n12 0\n", "no images of the split 'train'"),
        ("bounding_boxes.txt", "3 1.0 2.0 10.0\n7 0 0 1 1\n", "no 4 numbers for each image"),
        ("parts/part_locs.txt", "3 1 4.5 6.0\n", "line 1: '3 1 4.5 6.0' is not 'image part x y visible'"),
        ("parts/part_locs.txt", "3 9 4.5 6.0 1\n", "line 1: '3 9 4.5 6.0 1' is not"),
    ],
)
def test_says_which_line_is_wrong(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    if not message:  # what lacks belongs to the other split
        assert len(CUB(folder)) == 2
        return
    with pytest.raises(InputError, match=re.escape(message)):
        CUB(folder)


def test_names_what_lacks(folder: Path) -> None:
    with pytest.raises(InputError, match="'val'"):
        CUB(folder, "val")
    (folder / "images/002.Owl/a.png").write_bytes(b"no image")
    missing = CUB(folder)[1]
    assert isinstance(missing, Unreadable) and missing.id == "002.Owl/a.png" and "no image" in missing.reason
    (folder / "parts/part_locs.txt").unlink()
    with pytest.raises(InputError, match="part_locs.txt does not exist"):
        CUB(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(InputError, match="classes.txt does not exist"):
        CUB(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/cub_cropped, which users do not have")
def test_reads_the_published_files() -> None:
    training, test = CUB(REAL, "train"), CUB(REAL, "test")
    assert (len(training), len(test), len(test.classes)) == (1499, 1466, 50)
    assert len(test.part_names) == 15 and test.part_names[6] == "left eye"
    points = torch.stack([torch.as_tensor(sample_of(test, index)["points"]) for index in range(0, 1466, 50)])
    seen = ~points.isnan().any(-1)
    assert 0.5 < seen.float().mean() < 0.95
    # The crown is above the belly in nearly all photographs.
    both = seen[:, 4] & seen[:, 2]
    assert (points[both, 4, 1] < points[both, 2, 1]).float().mean() > 0.8


@pytest.mark.skipif(not WHOLE.is_dir(), reason="needs ../shared/data/cub_original_layout, which users do not have")
def test_reads_whole_photographs_as_published() -> None:
    """Each bird's parts lie in its box, and that in the photograph."""
    training, test = create_dataset(str(WHOLE), "train"), create_dataset(str(WHOLE), "test")
    assert isinstance(training, CUB) and (len(training), len(test), len(test.classes)) == (77, 85, 23)
    for index in range(0, 77, 7):
        sample = sample_of(training, index)
        ((x1, y1, x2, y2),) = sample["boxes"].tolist()
        assert 0 <= x1 < x2 <= sample["image"].width and 0 <= y1 < y2 <= sample["image"].height
        points = torch.as_tensor(sample["points"])
        seen = points[~points.isnan().any(1)]
        inside = (seen >= torch.tensor([x1, y1]) - 1) & (seen <= torch.tensor([x2, y2]) + 1)
        assert len(points) == 15 and len(seen) >= 5 and inside.all()
