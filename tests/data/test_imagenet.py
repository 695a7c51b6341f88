"""The layout of ImageNet's localization challenge, built by hand."""

import re
from pathlib import Path

import pytest
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.imagenet import ImageNet
from glasszoo.data.samples import Sample, Unreadable


def described(*objects: tuple[str, int, int, int, int]) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>0</difficult>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    return f"<annotation>{rows}</annotation>"


FILES = {
    # Not in the order of WNIDs, so that one can tell whose order the labels have.
    "LOC_synset_mapping.txt": "n03 crane\nn01 tench, Tinca tinca\nn02 crane\n",
    "LOC_val_solution.csv": "ImageId,PredictionString\nval_2,n01 2 1 9 7 n03 0 0 1 1 n01 5 5 6 6 \n"
    "val_1,n02 0 0 19 15 \nval_9,n01 0 0 1 1 \n",
    "ILSVRC/Annotations/CLS-LOC/train/n01/n01_7.xml": described(("n01", 0, 0, 19, 15), ("n02", 1, 1, 2, 2)),
    "ILSVRC/Annotations/CLS-LOC/val/val_1.xml": described(("n02", 3, 4, 5, 6)),
}
IMAGES = ("train/n01/n01_7", "train/n01/n01_10", "train/n02/n02_1", "val/val_1", "val/val_2")
TOP = "Data/CLS-LOC"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in IMAGES:
        path = tmp_path / "ILSVRC" / TOP / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), "grey").save(path)
    (tmp_path / "ILSVRC" / TOP / "train/n01/notes.txt").write_text("no image")
    return tmp_path


def sample_of(dataset: ImageNet, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


@pytest.mark.parametrize("root", [".", "ILSVRC"])
def test_reads_the_training_images(folder: Path, root: str) -> None:
    dataset = create_dataset(str(folder / root), "train")
    assert isinstance(dataset, ImageNet)
    # Two classes of the same name are told apart.
    assert dataset.classes == ("crane (n03)", "tench, Tinca tinca", "crane (n02)")
    assert dataset.labels.tolist() == [1, 1, 2]
    samples = [sample_of(dataset, index) for index in range(3)]
    assert [sample["id"] for sample in samples] == [f"{TOP}/{name}.JPEG" for name in sorted(IMAGES[:3])]
    # Only the boxes of the image's own class, and none where there is no XML file.
    assert "boxes" not in samples[0] and samples[1]["boxes"].tolist() == [[0, 0, 20, 16]]


def test_reads_the_validation_images(folder: Path) -> None:
    dataset = create_dataset(str(folder), "val")
    assert isinstance(dataset, ImageNet) and dataset.labels.tolist() == [2, 1]
    # The first from its XML file, the second, which has none, from the list.
    assert sample_of(dataset, 0)["boxes"].tolist() == [[3, 4, 6, 7]]
    assert sample_of(dataset, 1)["boxes"].tolist() == [[2, 1, 10, 8], [5, 5, 7, 7]]
    assert sample_of(dataset, 1)["id"] == f"{TOP}/val/val_2.JPEG"
    with pytest.raises(InputError, match="'test'"):
        ImageNet(folder, "test")


def test_xml_is_read_when_its_image_is(folder: Path) -> None:
    (folder / "ILSVRC/Annotations/CLS-LOC/train/n01/n01_7.xml").write_text("<annotation>")
    (folder / "ILSVRC" / TOP / "train/n02/n02_1.JPEG").write_bytes(b"no image")
    dataset = ImageNet(folder)
    reasons = [item.reason for index in (1, 2) if isinstance(item := dataset[index], Unreadable)]
    assert "n01_7.xml is not readable as XML" in reasons[0] and "n02_1.JPEG is no image" in reasons[1]
    assert not isinstance(dataset[0], Unreadable)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("LOC_synset_mapping.txt", "n01 tench\nn02\n", "line 2: 'n02' is not a new WNID and its words"),
        ("LOC_synset_mapping.txt", "n01 tench\nn01 fish\n", "line 2: 'n01 fish' is not a new WNID"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nval_1,n02 0 0 1 1\n", "no line for"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nval_1,n02 0 0 1\n", "'val_1,n02 0 0 1' is not"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nval_1,n09 0 0 1 1\n", "'val_1,n09 0 0 1 1' is not"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nval_1\n", "'val_1,None' is not"),
    ],
)
def test_says_which_line_is_wrong(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        ImageNet(folder, "val")


def test_names_what_lacks(folder: Path) -> None:
    (folder / "ILSVRC" / TOP / "train/n09").mkdir()
    with pytest.raises(InputError, match="n09 is the folder of no class"):
        ImageNet(folder)
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (folder / name).unlink()
        with pytest.raises(InputError, match=f"{name} is neither in"):
            ImageNet(folder, "val")
    with pytest.raises(InputError, match="does not hold the folder Data/CLS-LOC"):
        ImageNet(folder / "ILSVRC/Data")
