"""The layout of Oxford-IIIT Pet, built by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.pets import OxfordPets
from glasszoo.data.samples import Sample, Unreadable

FILES = {
    "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\nBirman_1 4 1 3\nBirman_2 4 1 3\nbasset_hound_10 2 2 1\n",
    "annotations/trainval.txt": "Birman_1 4 1 3\nbasset_hound_10 2 2 1\n",
    "annotations/test.txt": "Birman_2 4 1 3\n",
    "annotations/xmls/Birman_1.xml": "<annotation><object><name>cat</name><bndbox>"
    "<xmin>3</xmin><ymin>2</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object></annotation>",
}
TRIMAP = np.full((16, 20), 2, dtype=np.uint8)
TRIMAP[1:9, 1:11] = 3
TRIMAP[2:8, 2:10] = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/trimaps").mkdir()
    for name in ("Birman_1", "Birman_2", "basset_hound_10"):
        Image.new("RGB", (20, 16), "grey").save(tmp_path / f"images/{name}.jpg")
    Image.fromarray(TRIMAP).save(tmp_path / "annotations/trimaps/Birman_1.png")
    return tmp_path


def sample_of(dataset: OxfordPets, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_reads_labels_masks_and_heads(folder: Path) -> None:
    dataset = create_dataset(str(folder), "train")
    assert isinstance(dataset, OxfordPets)
    # In the order of CLASS-ID, which has gaps here.
    assert dataset.classes == ("basset_hound", "Birman") and dataset.labels.tolist() == [1, 0]
    cat, dog = sample_of(dataset, 0), sample_of(dataset, 1)
    assert cat["id"] == "images/Birman_1.jpg" and cat["boxes"].tolist() == [[2, 1, 10, 8]]
    mask = torch.as_tensor(cat["mask"])
    assert mask.dtype == torch.uint8 and mask.shape == (16, 20)
    for trimap, value in ((1, 255), (3, 128), (2, 0)):
        assert (mask[torch.from_numpy(trimap == TRIMAP)] == value).all()
    assert set(dog) == {"image", "label", "id"}


def test_splits(folder: Path) -> None:
    assert [sample_of(OxfordPets(folder, "test"), 0)["id"]] == ["images/Birman_2.jpg"]
    # One that lacks an image of its own keeps the classes.
    assert OxfordPets(folder, "test").classes == ("basset_hound", "Birman")
    assert OxfordPets(folder, "trainval").labels.equal(OxfordPets(folder, "train").labels)
    with pytest.raises(InputError, match="'val'"):
        OxfordPets(folder, "val")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trainval.txt", "Birman_1 four 1 3\n", "line 1: 'Birman_1 four 1 3' is not 'Name CLASS-ID SPECIES BREED-ID'"),
        ("trainval.txt", "Birman_1 4\n", "line 1: 'Birman_1 4' is not"),
        ("trainval.txt", "# none\n", "no images of the split 'train'"),
        ("list.txt", "Birman_1 2 1 3\n", "CLASS-ID 2 is both 'Birman' and 'basset_hound'"),
    ],
)
def test_says_which_line_is_wrong(folder: Path, name: str, text: str, message: str) -> None:
    (folder / "annotations" / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        OxfordPets(folder)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("images/Birman_1.jpg", "Birman_1.jpg is no image"),
        ("annotations/trimaps/Birman_1.png", "Birman_1.png is no image"),
        ("annotations/xmls/Birman_1.xml", "Birman_1.xml is not readable as XML"),
    ],
)
def test_broken_files_are_named(folder: Path, broken: str, message: str) -> None:
    (folder / broken).write_bytes(b"<neither")
    missing = OxfordPets(folder)[0]
    assert isinstance(missing, Unreadable) and missing.id == "images/Birman_1.jpg" and message in missing.reason
    assert not isinstance(OxfordPets(folder)[1], Unreadable)


def test_a_mask_that_is_no_trimap_is_named(folder: Path) -> None:
    path = folder / "annotations/trimaps/Birman_1.png"
    for trimap, message in ((TRIMAP * 60, "values from 60 to 180"), (TRIMAP[1:], r"is (20, 15), but")):
        Image.fromarray(np.ascontiguousarray(trimap)).save(path)
        missing = OxfordPets(folder)[0]
        assert isinstance(missing, Unreadable) and str(path) in missing.reason and message in missing.reason
    (folder / "annotations/list.txt").unlink()
    with pytest.raises(InputError, match="list.txt does not exist"):
        OxfordPets(folder)
