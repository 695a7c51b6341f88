"""The layout of Pascal VOC: built by hand, with objects that are difficult, and the published blood cells."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.samples import Sample, Unreadable
from glasszoo.data.voc import PascalVOC


def described(*objects: tuple[str, int, int, int, int, int]) -> str:
    """An XML file with objects (name, xmin, ymin, xmax, ymax, difficult), each with a part that is to be passed by."""
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, difficult in objects
    )
    return f"<annotation><size><width>20</width><height>16</height></size>{rows}</annotation>"


FILES = {
    # Two small dogs (4×5 and 6×5 pixels, 50 in sum) outweigh one cat (7×7, 49); the horse is difficult.
    "Annotations/a.xml": described(
        ("cat", 1, 1, 7, 7, 0), ("dog", 11, 3, 14, 7, 0), ("horse", 1, 1, 20, 16, 1), ("dog", 15, 12, 20, 16, 0)
    ),
    "Annotations/b.xml": described(("cat", 1, 1, 20, 16, 1)),
    "Annotations/c.xml": described(("bird", 5, 5, 25, 12, 0)),
    "ImageSets/Main/train.txt": "a\nb\n",
    "ImageSets/Main/val.txt": "c  1\n",
    "ImageSets/Main/trainval.txt": "a\nb\nc\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "JPEGImages").mkdir()
    for name in "abc":
        image = Image.new("RGB", (20, 16), "black")
        image.paste("white", (10, 2, 14, 7))  # the first dog of a
        image.save(root / f"JPEGImages/{name}.jpg", quality=100, subsampling=0)
    return root


def sample_of(dataset: PascalVOC, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_class_is_the_one_with_the_largest_area(folder: Path) -> None:
    dataset = create_dataset(str(folder), "train")
    assert isinstance(dataset, PascalVOC)
    # The horse is a class of the folder, though this split has it as a difficult object only; heads are parts.
    assert dataset.classes == ("bird", "cat", "dog", "horse")
    assert dataset.labels.tolist() == [2] and dataset.targets.tolist() == [[0, 1, 1, 0]]
    assert dataset.targets.dtype == torch.uint8
    sample = sample_of(dataset, 0)
    assert sample["id"] == "JPEGImages/a.jpg" and sample["image"].size == (20, 16)
    assert sample["boxes"].tolist() == [[10, 2, 14, 7], [14, 11, 20, 16]]


def test_of_equal_areas_the_first_class(folder: Path) -> None:
    objects = (("dog", 1, 1, 4, 4, 0), ("cat", 5, 5, 8, 8, 0))
    (folder / "Annotations/a.xml").write_text(described(*objects))
    dataset = PascalVOC(folder)
    assert dataset.classes[dataset.labels[0]] == "cat"


def test_splits_and_boxes_beyond_the_image(folder: Path) -> None:
    assert sample_of(PascalVOC(folder, "val"), 0)["boxes"].tolist() == [[4, 4, 20, 12]]
    dataset = PascalVOC(folder, "trainval")
    assert [sample_of(dataset, index)["id"] for index in (0, 1)] == ["JPEGImages/a.jpg", "JPEGImages/c.jpg"]
    with pytest.raises(InputError, match="'test'"):
        PascalVOC(folder, "test")


def test_crops_are_the_pixels_of_the_boxes(folder: Path) -> None:
    dataset = create_dataset(str(folder), "trainval", objects="crop")
    assert isinstance(dataset, PascalVOC)
    assert dataset.labels.tolist() == [1, 2, 2, 0] and dataset.groups.tolist() == [0, 0, 0, 2]
    assert dataset.targets is None and dataset.labels.tolist() == [1, 2, 2, 0]
    samples = [sample_of(dataset, index) for index in range(4)]
    assert [sample["image"].size for sample in samples] == [(7, 7), (4, 5), (6, 5), (16, 8)]
    # The third object of the photograph is the difficult one.
    assert [sample["id"].partition("#")[2] for sample in samples] == ["1", "2", "4", "1"]
    assert all(low > 128 for low, _ in samples[1]["image"].getextrema())
    assert all("boxes" not in sample for sample in samples)
    with pytest.raises(InputError, match="'crops'.*crop"):
        PascalVOC(folder, "train", objects="crops")


def test_a_crop_outside_its_image_is_unreadable(folder: Path) -> None:
    (folder / "Annotations/c.xml").write_text(described(("bird", 21, 5, 25, 12, 0)))
    missing = PascalVOC(folder, "val", objects="crop")[0]
    assert isinstance(missing, Unreadable) and "object 1 of" in missing.reason and "c.jpg" in missing.reason
    assert "boxes" not in sample_of(PascalVOC(folder, "val"), 0)


def test_the_parent_will_do_while_there_is_one_folder(folder: Path) -> None:
    dataset = create_dataset(str(folder.parent), "train")
    assert isinstance(dataset, PascalVOC) and sample_of(dataset, 0)["id"] == "JPEGImages/a.jpg"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder.parent / "VOC2007" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="more than one .*VOC2007, VOC2012"):
        create_dataset(str(folder.parent), "train")
    with pytest.raises(InputError, match="does not hold the folders JPEGImages"):
        PascalVOC(folder / "JPEGImages")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "a.xml is not readable as XML"),
        (described(("", 1, 1, 2, 2, 0)), "a.xml: object 1 has no name"),
        (described(("cat", 5, 1, 2, 2, 0)), "a.xml: the box of object 1 is 5,1,2,2, not a box"),
        (described(("cat", 1, 1, 2, 2, 0)).replace("ymax", "ymux"), "a.xml: the box of object 1 is 1,1,2,, not a box"),
        (described(("cat", 1, 1, 2, 2, 1)), "no object, difficult ones aside, in the split 'train'"),
    ],
)
def test_says_which_file_is_wrong(folder: Path, text: str, message: str) -> None:
    (folder / "Annotations/a.xml").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        PascalVOC(folder)


def test_what_lacks_in_another_split_does_no_harm(folder: Path) -> None:
    (folder / "Annotations/c.xml").unlink()
    assert PascalVOC(folder, "train").classes == ("cat", "dog", "horse")
    with pytest.raises(InputError, match="c.xml does not exist"):
        PascalVOC(folder, "val")
    (folder / "JPEGImages/a.jpg").write_bytes(b"no image")
    missing = PascalVOC(folder)[0]
    assert isinstance(missing, Unreadable) and missing.id == "JPEGImages/a.jpg" and "no image" in missing.reason


def test_reads_the_published_blood_cells(shared: Callable[[str], Path]) -> None:
    root = shared("data/bccd_voc")
    datasets = {split: create_dataset(str(root), split) for split in ("train", "val", "trainval", "test")}
    assert [len(dataset) for dataset in datasets.values()] == [74, 24, 98, 24]
    test = datasets["test"]
    assert isinstance(test, PascalVOC) and test.classes == ("Platelets", "RBC", "WBC")
    assert test.license is not None and "MIT" in test.license
    crops = create_dataset(str(root), "test", objects="crop")
    assert isinstance(crops, PascalVOC) and len(crops.groups.unique()) == 24
    names = (Path(sample_of(test, index)["id"]).stem for index in range(24))
    texts = [(test.root / f"Annotations/{name}.xml").read_text() for name in names]
    assert len(crops) == sum(text.count("<bndbox>") for text in texts)
    # White cells are stained purple, red ones are pale: the crops are the cells that their labels name.
    green: dict[str, list[float]] = {name: [] for name in test.classes}
    for index in range(len(crops)):
        middle = sample_of(crops, index)["image"].resize((3, 3)).getpixel((1, 1))
        green[crops.classes[crops.labels[index]]].append(middle[1])
    mean = {name: sum(values) / len(values) for name, values in green.items()}
    assert mean["WBC"] < mean["Platelets"] < mean["RBC"]
