"""Folders of images: with an index, with class folders, and with everything that can be wrong with them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.folder import ImageFolder, read_image
from glasszoo.data.samples import Sample, Unreadable

INDEX = """split,class,image,mask,x1,y1,x2,y2,group
train,oak,a.png,a_mask.png,2,3,10,12,g1
train,elm,b.png,,,,,,
test,oak,c.png,,,,,,g2
"""


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (20, 16), 0)
    mask.paste(255, (2, 3, 10, 12))
    mask.save(tmp_path / "a_mask.png")
    (tmp_path / "index.csv").write_text(INDEX)
    return tmp_path


def sample_of(dataset: ImageFolder, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_reads_an_index(indexed: Path) -> None:
    dataset = ImageFolder(indexed, "train")
    assert dataset.classes == ("elm", "oak") and dataset.labels.tolist() == [1, 0] and len(dataset) == 2
    assert len(dataset.groups.unique()) == 2
    first, second = sample_of(dataset, 0), sample_of(dataset, 1)
    assert first["id"] == "a.png" and first["image"].getpixel((0, 0)) == (255, 0, 0)
    assert first["mask"].shape == (16, 20) and int((first["mask"] == 255).sum()) == 8 * 9
    assert first["boxes"].tolist() == [[2, 3, 10, 12]]
    assert "mask" not in second and "boxes" not in second
    assert [sample_of(ImageFolder(indexed, "test"), 0)["label"]] == [1]


def test_reads_class_folders(tmp_path: Path) -> None:
    for name in ("train/elm/x.png", "train/oak/deep/y.JPG", "test/oak/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "train/oak/notes.txt").touch()
    dataset = ImageFolder(tmp_path, "train")
    assert dataset.classes == ("elm", "oak") and dataset.labels.tolist() == [0, 1]
    assert sample_of(dataset, 1)["id"] == "train/oak/deep/y.JPG"
    assert ImageFolder(tmp_path, "test").labels.tolist() == [1]
    assert ImageFolder(tmp_path / "train", "train").classes == ("elm", "oak")


def test_the_real_folder(shared: Callable[[str], Path]) -> None:
    dataset = create_dataset(str(shared("data/coffee_leaf")), "test")
    assert dataset.classes == ("cercospora", "healthy", "miner", "phoma", "rust")
    assert torch.bincount(dataset.labels).tolist() == [10, 32, 38, 38, 38]
    sample = dataset[0]
    assert not isinstance(sample, Unreadable) and set(torch.as_tensor(sample["mask"]).unique().tolist()) <= {
        0,
        128,
        255,
    }
    train = create_dataset(str(shared("data/coffee_leaf")), "train")
    assert len(train) == 1431


def broken(name: str, indexed: Path) -> None:
    path = indexed / name
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "a.png").unlink(), r"image .*a\.png does not exist"),
        (lambda root: (root / "a.png").write_text("no"), r"a\.png is no image"),
        (lambda root: broken("a.png", root), r"a\.png is not readable \("),
        (lambda root: (root / "a_mask.png").unlink(), r"a_mask\.png does not exist"),
        (
            lambda root: Image.new("L", (3, 3)).save(root / "a_mask.png"),
            r"a_mask\.png is \(3, 3\), but its image is \(20, 16\)",
        ),
    ],
)
def test_unreadable_files_are_named(indexed: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(indexed)
    sample = ImageFolder(indexed, "train")[0]
    assert isinstance(sample, Unreadable) and sample.id == "a.png"
    assert re.search(message, sample.reason), sample.reason


def test_read_image_raises(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no image at all")
    with pytest.raises(InputError, match=r"x\.jpg is no image"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: (root / "index.csv").write_text("split,image\n"), "index.csv lacks the column 'class'"),
        (
            lambda root: (root / "index.csv").write_text("split,class,image,x1,y1,x2,y2\ntrain,a,b.png,1,2,x,4\n"),
            "the box of b.png is 1,2,x,4, not four numbers",
        ),
        (lambda root: (root / "index.csv").unlink(), "no class folders and no index.csv: zero classes"),
    ],
)
def test_bad_folders_are_named(indexed: Path, prepare: Callable[[Path], object], message: str) -> None:
    prepare(indexed)
    with pytest.raises(InputError, match=message):
        ImageFolder(indexed, "train")


def test_unknown_names_are_named(indexed: Path) -> None:
    with pytest.raises(InputError, match="unknown split of .*index.csv 'tset': did you mean 'test'"):
        ImageFolder(indexed, "tset")
    with pytest.raises(InputError, match=r"data set folder /no/folder does not exist"):
        create_dataset("/no/folder", "train")
    with pytest.raises(InputError, match="unknown data set .* 'criters': did you mean 'critters'"):
        create_dataset("criters", "train")
    with pytest.raises(InputError, match="unknown option of data set critters 'sizes': did you mean 'size'"):
        create_dataset("critters", "train", sizes=3)
