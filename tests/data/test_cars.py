"""The layout of Stanford Cars, built by hand."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.cars import StanfordCars
from glasszoo.data.samples import Sample, Unreadable

savemat = pytest.importorskip("scipy.io").savemat
NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def write(path: Path, rows: list[tuple[Any, ...]], fields: tuple[str, ...] = FIELDS) -> None:
    """Rows as MATLAB's array of structs, 1 n, as published."""
    annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for column, row in enumerate(rows):
        annotations[0, column] = row
    savemat(path, {"annotations": annotations})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("devkit", "cars_train", "cars_test"):
        (tmp_path / name).mkdir()
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})
    rows = [(3, 2, 12, 9, 2, "00001.jpg"), (1, 1, 21, 16, 1, "00002.jpg")]
    write(tmp_path / "devkit/cars_train_annos.mat", rows)
    write(tmp_path / "cars_test_annos_withlabels.mat", [(5, 6, 7, 8, 2, "00001.jpg")])
    for name in ("cars_train/00001", "cars_train/00002", "cars_test/00001"):
        Image.new("RGB", (20, 16), "grey").save(tmp_path / f"{name}.jpg")
    return tmp_path


def sample_of(dataset: StanfordCars, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_reads_labels_and_boxes(folder: Path) -> None:
    dataset = create_dataset(str(folder), "train")
    assert isinstance(dataset, StanfordCars)
    assert dataset.classes == tuple(NAMES) and dataset.labels.tolist() == [1, 0]
    first, second = sample_of(dataset, 0), sample_of(dataset, 1)
    assert first["id"] == "cars_train/00001.jpg" and first["boxes"].tolist() == [[2, 1, 12, 9]]
    # A published box that ends a pixel after the image.
    assert second["label"] == 0 and second["boxes"].tolist() == [[0, 0, 20, 16]]


def test_the_test_list_may_lie_in_either_folder(folder: Path) -> None:
    for _ in range(2):
        dataset = StanfordCars(folder, "test")
        assert len(dataset) == 1 and dataset.labels.tolist() == [1]
        sample = sample_of(dataset, 0)
        assert sample["id"] == "cars_test/00001.jpg" and sample["boxes"].tolist() == [[4, 5, 7, 8]]
        if (folder / "cars_test_annos_withlabels.mat").is_file():
            (folder / "cars_test_annos_withlabels.mat").rename(folder / "devkit/cars_test_annos_withlabels.mat")
    with pytest.raises(InputError, match="'val'"):
        StanfordCars(folder, "val")


@pytest.mark.parametrize(("split", "labels"), [("train", [1, 0]), ("test", [1])])
def test_images_may_lie_one_folder_deeper(folder: Path, split: str, labels: list[int]) -> None:
    (folder / f"cars_{split}").rename(folder / "images")
    (folder / f"cars_{split}").mkdir()
    (folder / "images").rename(folder / f"cars_{split}/cars_{split}")
    dataset = create_dataset(str(folder), split)
    assert isinstance(dataset, StanfordCars) and dataset.labels.tolist() == labels
    assert sample_of(dataset, 0)["id"] == f"cars_{split}/cars_{split}/00001.jpg"


def test_one_class_alone(folder: Path) -> None:
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([NAMES[:1]], dtype=object)})
    write(folder / "devkit/cars_train_annos.mat", [(3, 2, 12, 9, 1, "00001.jpg")])
    assert StanfordCars(folder).classes == (NAMES[0],)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((3, 2, 12, 9, 3, "00001.jpg"), "row 1: class 3 is not among the 2 classes"),
        ((3, 2, 12, 9, 0, "00001.jpg"), "row 1: class 0 is not among the 2 classes"),
        ((13, 2, 12, 9, 1, "00001.jpg"), "row 1: no fname, class and box can be read"),
    ],
)
def test_says_which_row_is_wrong(folder: Path, row: tuple[Any, ...], message: str) -> None:
    write(folder / "devkit/cars_train_annos.mat", [row])
    with pytest.raises(InputError, match=message):
        StanfordCars(folder)


def test_names_what_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cars_train/00002.jpg").unlink()
    missing = StanfordCars(folder)[1]
    assert isinstance(missing, Unreadable) and missing.id == "cars_train/00002.jpg" and "not exist" in missing.reason
    path = folder / "devkit/cars_train_annos.mat"
    # As the test list is published without labels.
    write(path, [(3, 2, 12, 9, "00001.jpg")], (*FIELDS[:4], "fname"))
    with pytest.raises(InputError, match="row 1: no fname, class and box can be read .*class"):
        StanfordCars(folder)
    path.write_bytes(b"no matrix at all" * 20)
    with pytest.raises(InputError, match="cars_train_annos.mat is not readable as a MATLAB file"):
        StanfordCars(folder)
    savemat(path, {"other": [1]})
    with pytest.raises(InputError, match="lacks the field 'annotations'"):
        StanfordCars(folder)
    path.unlink()
    with pytest.raises(InputError, match="cars_train_annos.mat does not exist"):
        StanfordCars(folder)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match="pip install scipy"):
        StanfordCars(folder)
