"""The layout of FunnyBirds: a folder written by hand, and all that can be wrong with one."""

import json
from pathlib import Path

import pytest
import torch
from funny_birds import CORNERS, OBJECT, PARTS, SIDE, VARIANTS, block, painted, write_birds
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.funnybirds import FunnyBirds
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Unreadable
from glasszoo.models import Preprocessing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_birds(tmp_path, (2, 0, 1))
    return write_birds(tmp_path, (3,), "train")


def test_it_is_opened_by_name_and_by_folder(root: Path) -> None:
    for dataset in (create_dataset("funnybirds", "test", root=str(root)), create_dataset(str(root), "test")):
        assert isinstance(dataset, FunnyBirds)
        assert dataset.labels.tolist() == [2, 0, 1] and dataset.classes == ("0", "1", "2", "3")
        assert dataset.part_names == PARTS and dataset.variants.tolist() == [list(own) for own in VARIANTS]
    assert create_dataset(str(root), "train").labels.tolist() == [3]
    with pytest.raises(InputError, match="data set funnybirds needs its folder: give the option root"):
        create_dataset("funnybirds", "test")
    with pytest.raises(InputError, match="unknown option of data set funnybirds 'rot': did you mean 'root'"):
        create_dataset("funnybirds", "test", rot="x")


def test_images_and_where_their_parts_are(root: Path) -> None:
    dataset = FunnyBirds(root, "test")
    sample = dataset[1]
    assert not isinstance(sample, Unreadable)
    assert sample["id"] == "test/0/000001.png" and sample["label"] == 0
    assert sample["image"].tobytes() == painted(0).tobytes()
    numbers = dataset.parts(1)
    expected = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    for number, part in enumerate(PARTS, 1):
        expected[block(CORNERS[part])] = number
    assert torch.equal(torch.as_tensor(numbers), expected)
    assert torch.equal(torch.as_tensor(sample["mask"]), (expected > 0).to(torch.uint8) * 255)
    preprocessing = Preprocessing((3, SIDE, SIDE), crop_pct=1.0)
    (batch,) = Loader(dataset, preprocessing.transform(), 4)
    assert batch.labels.tolist() == [2, 0, 1] and batch.has_mask.all()
    (root / "test_part_map/0/000001.png").unlink()
    assert "mask" not in dataset[1], "nothing is known, which is not the same as nothing there"


def test_changed_images(root: Path) -> None:
    dataset = FunnyBirds(root, "test")
    for kept in ((), ("wing", "eye"), PARTS):
        assert dataset.with_parts(0, kept).tobytes() == painted(2, kept).tobytes()
    folder = root / "test_interventions/2/000000"
    (folder / "body_eye_wing.png").rename(folder / "body_wing_eye.png")
    assert dataset.with_parts(0, ("eye", "wing")).tobytes() == painted(2, ("eye", "wing")).tobytes()
    (without,) = dataset.without_objects(0)
    assert without.getpixel(OBJECT) == (0, 0, 0) and dataset[0]["image"].getpixel(OBJECT) == (100, 100, 100)  # type: ignore[index]
    for number in (10, 2):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(folder / "background_interventions" / f"{number}.png")
    assert [picture.getpixel((0, 0)) for picture in dataset.without_objects(0)] == [(0, 0, 0), (2, 0, 0), (10, 0, 0)]
    with pytest.raises(InputError, match="000000 has no picture body_….png with beak, eye alone"):
        (folder / "body_beak_eye.png").unlink()
        dataset.with_parts(0, ("eye", "beak"))


def test_an_unreadable_image_is_named(root: Path) -> None:
    (root / "test/0/000001.png").write_bytes(b"no picture")
    found = FunnyBirds(root, "test")[1]
    assert isinstance(found, Unreadable) and "000001.png is no image" in found.reason


def test_what_is_wrong_is_said(root: Path) -> None:
    with pytest.raises(InputError, match="unknown split of .*: did you mean 'test'"):
        FunnyBirds(root, "tets")
    (root / "dataset_train.json").write_text("[]")
    with pytest.raises(InputError, match="holds no images of the split 'train'"):
        FunnyBirds(root, "train")
    (root / "dataset_train.json").write_text(json.dumps([{"class_idx": 7}]))
    with pytest.raises(InputError, match="not in the layout of FunnyBirds"):
        FunnyBirds(root, "train")
    (root / "dataset_train.json").write_text("{}")
    with pytest.raises(InputError, match="dataset_train.json holds a dict, not a list"):
        FunnyBirds(root, "train")
    (root / "dataset_train.json").write_text("[")
    with pytest.raises(InputError, match="dataset_train.json is no JSON"):
        FunnyBirds(root, "train")
    (root / "classes.json").unlink()
    with pytest.raises(InputError, match="classes.json does not exist: the layout of FunnyBirds has it"):
        FunnyBirds(root, "test")
