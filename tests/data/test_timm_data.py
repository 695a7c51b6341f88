"""Data sets that timm opens, each in files that the test writes: labels, names and images are those of the files."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.folder import ImageFolder
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Unreadable
from glasszoo.data.shard_writing import write_shards
from glasszoo.data.shards import Shards
from glasszoo.data.timm_data import TimmImages


def as_tar(folder: Path, tar_file: Path) -> Path:
    with tarfile.open(tar_file, "w") as tar:
        for path in sorted(folder.rglob("*.png")):
            tar.add(path, path.relative_to(folder))
    return tar_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of flat colours, whose red is ten times the place of the class, plus the number."""
    for label, name in enumerate(("jay", "owl", "wren")):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for number in range(2 + label):
            colour = (10 * label + number, 7, 9)
            Image.new("RGB", (6, 5), colour).save(tmp_path / "plain" / name / f"{number}.png")
    return tmp_path / "plain"


def as_floats(sample: Any) -> Any:
    return {**sample, "image": to_image(sample["image"]).float()}


def check_colours(dataset: Any) -> None:
    assert dataset.classes == ("jay", "owl", "wren") and dataset.labels.bincount().tolist() == [2, 3, 4]
    assert dataset.groups.unique().numel() == len(dataset) == 9
    samples = [dataset[index] for index in range(9)]
    reds = [sample["image"].getpixel((0, 0))[0] for sample in samples]
    assert sorted(reds) == [0, 1, 10, 11, 12, 20, 21, 22, 23]
    assert [red // 10 for red in reds] == dataset.labels.tolist() == [sample["label"] for sample in samples]
    assert len({sample["id"] for sample in samples}) == 9


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    # The published files are known by their sums; these are others.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    files = tmp_path / CIFAR10.base_folder
    files.mkdir()
    generator = np.random.default_rng(0)
    for name in (f"data_batch_{number}" for number in range(1, 6)):
        content = {"data": generator.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [int(name[-1]), 0]}
        (files / name).write_bytes(pickle.dumps(content))
    test = {"data": generator.integers(0, 256, (3, 3072), dtype=np.uint8), "labels": [3, 9, 1]}
    (files / "test_batch").write_bytes(pickle.dumps(test))
    names = ["aeroplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry"]
    (files / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    training = create_dataset("torch/cifar10", "train", root=str(tmp_path))
    assert training.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0] and training.classes == tuple(names)
    with pytest.raises(InputError, match="unknown split of torch/cifar10 'val'"):
        create_dataset("torch/cifar10", "val", root=str(tmp_path))  # timm would hand out the test images
    tested: Any = create_dataset("torch/cifar10", "test", root=str(tmp_path))
    assert tested.labels.tolist() == [3, 9, 1] and tested[1]["id"] == "test/1"
    assert np.array_equal(np.asarray(tested[1]["image"]), test["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))
    write_shards(tested, tmp_path / "shards", "test")
    assert sorted(Shards(tmp_path / "shards", "test").labels.tolist()) == [1, 3, 9]


def test_a_tar_of_class_folders(folder: Path, tmp_path: Path) -> None:
    tar_file = as_tar(folder, tmp_path / "birds.tar")
    dataset: Any = create_dataset(str(tar_file), "train")
    check_colours(dataset)
    assert dataset[0]["id"] == "jay/0.png"
    # Workers are copies of this process: one place in one open file would be moved by all of them.
    assert dataset._dataset.reader.tar_state.tf is None, "no file stays open"
    alone, shared = (
        [(batch.ids, batch.images[:, 0, 0, 0].tolist()) for batch in Loader(dataset, as_floats, 2, num_workers=workers)]
        for workers in (0, 2)
    )
    assert alone == shared
    with pytest.raises(InputError, match=r"unknown split of .*birds.tar 'test'"):
        create_dataset(str(tar_file), "test")


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar file")
    with pytest.raises(InputError, match=r"timm cannot open .*text.tar: "):
        create_dataset(str(tmp_path / "text.tar"), "train")
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="outside of class folders"):
        create_dataset(str(as_tar(tmp_path, tmp_path / "flat.tar")), "train")


def test_torchvisions_folder(folder: Path) -> None:
    dataset = create_dataset("torch/image_folder", "train", root=str(folder))
    check_colours(dataset)
    with pytest.raises(InputError, match="unknown split of torch/image_folder 'test'"):
        create_dataset("torch/image_folder", "test", root=str(folder))  # timm would hand out the same images
    (folder / "owl/1.png").write_text("no image")
    lost = [sample for sample in (dataset[index] for index in range(9)) if isinstance(sample, Unreadable)]
    assert len(lost) == 1 and "cannot identify image file" in lost[0].reason


@pytest.mark.parametrize("prefix", ["folder", "image_folder", "Folder"])
def test_timms_names_for_folders(folder: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in ((f"{prefix}/{folder}", {}), (f"{prefix}/birds", {"root": str(folder)})):
        dataset: Any = create_dataset(name, "train", **options)
        check_colours(dataset)
        assert isinstance(dataset, ImageFolder) and dataset[0]["id"] == "jay/0.png"
    monkeypatch.chdir(folder.parent)
    check_colours(create_dataset(f"{prefix}/plain", "train"))
    # A folder is meant, also where a data set has its name.
    folder.rename(folder.parent / "critters")
    check_colours(create_dataset(f"{prefix}/critters", "train"))
    with pytest.raises(InputError, match="folder /none/x does not exist"):
        create_dataset(f"{prefix}//none/x", "train")
    with pytest.raises(InputError, match=f"{prefix}/ names no folder: write {prefix}/PATH"):
        create_dataset(f"{prefix}/", "train")
    # A folder of that very name goes first.
    (folder.parent / prefix).mkdir()
    (folder.parent / "critters").rename(folder.parent / prefix / "own")
    check_colours(create_dataset(f"{prefix}/own", "train"))


SPECIES = (
    "00000_Plantae_Tracheophyta_Magnoliopsida_Rosales_Rosaceae_Rosa_canina",
    "00001_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax",
    "00002_Animalia_Chordata_Aves_Passeriformes_Corvidae_Pica_pica",
)


@pytest.mark.parametrize(
    ("split", "labels", "classes"),
    [
        ("train", [0, 1, 2], SPECIES),
        ("full/train", [0, 1, 2], SPECIES),
        ("kingdom/train", [0, 1, 1], ("Plantae", "Animalia")),
        ("genus/2021_train", [0, 1, 2], ("Rosa", "Corvus", "Pica")),
        ("super/2018", [1, 0, 0], ("Birds", "Plants")),
    ],
)
def test_ranks_of_inaturalist(tmp_path: Path, split: str, labels: list[int], classes: tuple[str, ...]) -> None:
    for number, name in enumerate(SPECIES):
        older = f"2018/{'Birds' if number else 'Plants'}/{number}"
        for place in (tmp_path / f"2021_train/{name}", tmp_path / older):
            place.mkdir(parents=True)
            Image.new("RGB", (6, 5), (number, 0, 0)).save(place / "a.png")
    dataset: Any = create_dataset("torch/inaturalist", split, root=str(tmp_path))
    assert dataset.labels.tolist() == labels and dataset.classes == classes
    samples = [dataset[index] for index in range(3)]
    assert [sample["label"] for sample in samples] == labels
    assert [sample["image"].getpixel((0, 0))[0] for sample in samples] == [0, 1, 2]
    with pytest.raises(
        InputError, match=r"torch/inaturalist would give .* \(kingdom, genus\) in 'kingdom_genus/train'"
    ):
        create_dataset("torch/inaturalist", "kingdom_genus/train", root=str(tmp_path))
    with pytest.raises(InputError, match="timm cannot open torch/inaturalist: .*'colour'"):
        create_dataset("torch/inaturalist", "colour/train", root=str(tmp_path))


def test_an_unreadable_image_is_not_replaced_by_another(folder: Path, tmp_path: Path) -> None:
    (folder / "owl/1.png").write_text("no image")
    dataset = create_dataset(str(as_tar(folder, tmp_path / "birds.tar")), "train")
    lost = dataset[3]
    assert isinstance(lost, Unreadable) and lost.id == "owl/1.png"
    assert lost.reason == f"{tmp_path}/birds.tar: owl/1.png is no image"


def test_hugging_face(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    dataset: Any = create_dataset(f"hfds/{folder}", "train", root=cache)
    check_colours(dataset)
    assert dataset[4]["id"] == "train/4"
    with pytest.raises(InputError, match="timm cannot open hfds/"):
        create_dataset(f"hfds/{folder}", "tset", root=cache)


def test_shards_by_timms_name(tmp_path: Path) -> None:
    write_shards(create_dataset("critters", "train", count=8, size=32), tmp_path, "train")
    for dataset in (
        create_dataset(f"wds/{tmp_path}", "train"),
        create_dataset("wds/critters", "train", root=str(tmp_path)),
    ):
        assert isinstance(dataset, Shards) and len(dataset) == 8
    with pytest.raises(InputError, match="unknown option of data set wds/ 'siz'"):
        create_dataset("wds/", "train", root=str(tmp_path), siz=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tfds/cifar10", {}, "tfds/cifar10 is read as a stream.*'glasszoo shard'"),
        ("hfids/some/name", {}, "is read as a stream"),
        ("wds/nowhere", {}, "wds/nowhere: 'nowhere' is neither a folder nor a URL"),
        ("torch/cifar10", {}, "needs the option root"),
        ("torch/cifar10", {"root": "/none"}, "timm cannot open torch/cifar10: Dataset not found"),
        ("torch/cifar11", {"root": "/none"}, "timm cannot open torch/cifar11: Unknown torchvision dataset"),
        ("torch/cifar10", {"root": "/none", "siz": 3}, "unexpected keyword argument 'siz'"),
    ],
)
def test_what_cannot_be_opened(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_dataset(name, "train", **options)


def test_lists_of_labels() -> None:
    class Source:
        def __init__(self, **known: Any) -> None:
            self.__dict__.update(known)

    digits = TimmImages(Source(targets=torch.tensor([[7, 0], [2, 5]]), classes=["0", "1"]), "qmnist", "test")
    assert digits.labels.tolist() == [7, 2] and digits.classes == tuple("01234567")
    species = TimmImages(Source(index=[(1, "a"), (0, "b")], all_categories=["owl", "jay"]), "inat", "train")
    assert species.labels.tolist() == [1, 0] and species.classes == ("owl", "jay")
    photographs = TimmImages(Source(targets=[0], classes=[("tench", "Tinca tinca")]), "imagenet", "train")
    assert photographs.classes == ("tench, Tinca tinca",)
    for source, message in ((Source(), "does not list its labels"), (Source(targets=[-1]), "without a label")):
        with pytest.raises(InputError, match=message):
            TimmImages(source, "x", "train")
