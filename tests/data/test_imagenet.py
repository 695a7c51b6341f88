"""The layout of ImageNet's localization challenge, built by hand."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.imagenet import ImageNet
from glasszoo.data.samples import Sample, Unreadable


def described(*objects: tuple[str, int, int, int, int], size: tuple[int, int] = (20, 16)) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>0</difficult>"
        f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{rows}</annotation>"


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


def boxes_of_xml(folder: Path, text: str) -> list[list[float]]:
    (folder / "ILSVRC/Annotations/CLS-LOC/train/n01/n01_7.xml").write_text(text)
    return sample_of(ImageNet(folder), 1)["boxes"].tolist()


def test_boxes_as_they_were_published(folder: Path) -> None:
    # Drawn on an image of twice the width and half the height; the last pixel belongs to the box.
    drawn = described(("n01", 4, 2, 19, 5), size=(40, 8))
    assert boxes_of_xml(folder, drawn) == [[2, 4, 10, 12]]
    assert boxes_of_xml(folder, described(("n01", 19, 15, 4, 2))) == [[4, 2, 20, 16]]
    assert boxes_of_xml(folder, described(("n01", -3, 2, 25, 5), size=(0, 0))) == [[0, 2, 20, 6]]
    # Words are the image's own class, another WNID is not.
    named = described(("Scottish_deerhound", 1, 1, 2, 2), ("n03", 3, 3, 4, 4), ("n01", 5, 5, 6, 6))
    assert boxes_of_xml(folder, named) == [[1, 1, 3, 3], [5, 5, 7, 7]]


def test_classes_of_val_from_xml(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = folder / "ILSVRC/Annotations/CLS-LOC/val"
    (folder / "LOC_val_solution.csv").unlink()
    with pytest.raises(InputError, match=r"val_2.JPEG has no class: .*LOC_val_solution.csv nor .*val_2.xml"):
        ImageNet(folder, "val")
    (xml / "val_2.xml").write_text(described(("n03", 1, 1, 2, 2), ("n03", 5, 5, 6, 6)))
    capsys.readouterr()
    dataset = ImageNet(folder, "val")
    assert dataset.labels.tolist() == [2, 0]
    assert sample_of(dataset, 1)["boxes"].tolist() == [[1, 1, 3, 3], [5, 5, 7, 7]]
    assert "no LOC_val_solution.csv: reading the classes of 2 images from their XML files" in capsys.readouterr().err
    for objects, message in (
        ([("n03", 1, 1, 2, 2), ("n01", 1, 1, 2, 2)], r"val_2.xml names 2 known classes.*'n01', 'n03'"),
        ([("crane", 1, 1, 2, 2)], r"val_2.xml names 0 known classes.*'crane'"),
    ):
        (xml / "val_2.xml").write_text(described(*objects))
        with pytest.raises(InputError, match=message):
            ImageNet(folder, "val")


def into_class_folders(folder: Path) -> Path:
    """Moves the validation images into folders of their classes."""
    val = folder / "ILSVRC" / TOP / "val"
    for name, wnid in (("val_1", "n02"), ("val_2", "n01")):
        (val / wnid).mkdir()
        (val / f"{name}.JPEG").rename(val / wnid / f"{name}.JPEG")
    return val


def test_val_in_class_folders(folder: Path) -> None:
    val, xml = into_class_folders(folder), folder / "ILSVRC/Annotations/CLS-LOC/val"
    dataset = ImageNet(folder, "val")
    assert dataset.labels.tolist() == [1, 2]
    assert [sample_of(dataset, index)["id"] for index in (0, 1)] == [
        f"{TOP}/val/n01/val_2.JPEG",
        f"{TOP}/val/n02/val_1.JPEG",
    ]
    # Of the list, and of the XML file.
    boxes = [[[2, 1, 10, 8], [5, 5, 7, 7]], [[3, 4, 6, 7]]]
    assert [sample_of(dataset, index)["boxes"].tolist() for index in (0, 1)] == boxes
    (folder / "LOC_val_solution.csv").unlink()
    (xml / "n02").mkdir()
    (xml / "val_1.xml").rename(xml / "n02/val_1.xml")
    dataset = ImageNet(folder, "val")
    assert dataset.labels.tolist() == [1, 2] and "boxes" not in sample_of(dataset, 0)
    assert sample_of(dataset, 1)["boxes"].tolist() == boxes[1]
    Image.new("RGB", (20, 16)).save(val / "val_9.JPEG")
    with pytest.raises(InputError, match=r"both by themselves and in class folders \(n01\)"):
        ImageNet(folder, "val")


def test_class_folder_and_list_disagree(folder: Path) -> None:
    val = into_class_folders(folder)
    (val / "n01/val_2.JPEG").rename(val / "n02/val_2.JPEG")
    with pytest.raises(InputError, match=r"n02/val_2.JPEG is of another class in .*LOC_val_solution.csv"):
        ImageNet(folder, "val")


def test_without_the_mapping(folder: Path) -> None:
    (folder / "LOC_synset_mapping.txt").unlink()
    into_class_folders(folder)
    # A class of validation images alone: both splits number classes alike. timm knows this WNID.
    (folder / "ILSVRC" / TOP / "val/n01440764").mkdir()
    (folder / "LOC_val_solution.csv").unlink()
    for split, labels in (("train", [0, 0, 2]), ("val", [0, 2])):
        dataset = ImageNet(folder, split)
        assert dataset.classes == ("n01", "tench, Tinca tinca", "n02") and dataset.labels.tolist() == labels


def test_names_what_lacks(folder: Path) -> None:
    (folder / "ILSVRC" / TOP / "train/n09").mkdir()
    with pytest.raises(InputError, match="n09 is the folder of no class"):
        ImageNet(folder)
    (folder / "LOC_synset_mapping.txt").unlink()
    shutil.rmtree(folder / "ILSVRC" / TOP / "train")
    with pytest.raises(InputError, match="LOC_synset_mapping.txt is neither in .* no class folders"):
        ImageNet(folder, "val")
    with pytest.raises(InputError, match="does not hold the folder Data/CLS-LOC"):
        ImageNet(folder / "ILSVRC/Data")
