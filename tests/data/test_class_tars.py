"""Folders with a tar file a class, apart from those whose tar files are shards."""

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.class_tars import holds_class_tars
from glasszoo.data.folder import ImageFolder
from glasszoo.data.samples import Unreadable
from glasszoo.data.shard_writing import write_shards
from glasszoo.data.shards import Shards
from glasszoo.data.timm_data import TimmImages


def picture(red: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 5), (red, 7, 9)).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


def write_classes(folder: Path, counts: dict[str, int]) -> None:
    """A tar file for each class; images are called alike in all, and their red is ten times the class's number."""
    for number, (name, count) in enumerate(counts.items()):
        write_tar(folder / f"{name}.tar", {f"{index}.png": picture(10 * number + index) for index in range(count)})


def reds(dataset: Any) -> list[int]:
    return [dataset[index]["image"].getpixel((0, 0))[0] for index in range(len(dataset))]


def test_a_tar_file_is_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"jay": 2, "owl": 3, "wren": 1})
    dataset: Any = create_dataset(str(tmp_path), "train")
    assert isinstance(dataset, TimmImages) and dataset.classes == ("jay", "owl", "wren")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2] and reds(dataset) == [0, 1, 10, 11, 12, 20]
    ids = [dataset[index]["id"] for index in range(6)]
    assert ids == [
        "jay.tar/0.png",
        "jay.tar/1.png",
        *(f"owl.tar/{number}.png" for number in range(3)),
        "wren.tar/0.png",
    ]
    with pytest.raises(InputError, match=r"unknown split of .* 'test': known: train"):
        create_dataset(str(tmp_path), "test")


def test_splits_number_classes_alike(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"jay": 1, "owl": 2, "wren": 1})
    write_classes(tmp_path / "val", {"owl": 1, "sparrow": 1})
    training, judged = (create_dataset(str(tmp_path), split) for split in ("train", "val"))
    assert training.classes == judged.classes == ("jay", "owl", "sparrow", "wren")
    assert training.labels.tolist() == [0, 1, 1, 3] and judged.labels.tolist() == [1, 2]
    assert reds(judged) == [0, 10]
    write_tar(tmp_path / "val/more.tar", {"finch/0.png": picture(3)})
    with pytest.raises(InputError, match="val has the class folder 'finch' inside a tar file"):
        create_dataset(str(tmp_path), "val")


def test_tar_files_in_a_tar_file(tmp_path: Path) -> None:
    write_classes(tmp_path, {"jay": 2, "owl": 1})
    inner = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("*.tar"))}
    write_tar(tmp_path / "all/images.tar", inner)
    dataset: Any = create_dataset(str(tmp_path / "all/images.tar"), "train")
    assert dataset.classes == ("jay", "owl") and dataset.labels.tolist() == [0, 0, 1]
    assert [dataset[index]["id"] for index in range(3)] == ["jay.tar/0.png", "jay.tar/1.png", "owl.tar/0.png"]
    assert reds(dataset) == [0, 1, 10]


@pytest.mark.parametrize("label", [{"0.cls": b"2"}, {"0.json": b'{"label": 2}'}])
def test_shards_are_no_classes(tmp_path: Path, label: dict[str, bytes]) -> None:
    write_tar(tmp_path / "train/00.tar", {"0.png": picture(3), **label})
    dataset = create_dataset(str(tmp_path), "train")
    assert isinstance(dataset, Shards) and dataset.labels.tolist() == [2]


def test_written_shards_are_no_classes(tmp_path: Path) -> None:
    write_shards(create_dataset("critters", "train", count=8, size=32), tmp_path, "train")
    assert isinstance(create_dataset(str(tmp_path), "train"), Shards)
    # An index knows the labels of its tar files, whatever these hold.
    write_classes(tmp_path / "other/train", {"jay": 1})
    assert holds_class_tars(tmp_path / "other")
    (tmp_path / "other/train/index.npy").touch()
    assert not holds_class_tars(tmp_path / "other")


@pytest.mark.parametrize("left", [b"cut off", None])
def test_timms_list_of_headers_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    write_classes(tmp_path, {"jay": 2, "owl": 1})
    if left is not None:
        (tmp_path / f"_{tmp_path.name}_tarinfos.pickle").write_bytes(left)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os.path, "getsize", lambda path: 11 * 1024**3)
    assert len(create_dataset(str(tmp_path), "train")) == 3
    assert sorted(tmp_path.iterdir()) == before


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(100 + number))


def test_tar_files_beside_a_data_set_do_not_take_its_place(tmp_path: Path) -> None:
    copy = {f"{number}.png": picture(number) for number in range(3)}
    listed, split, plain = tmp_path / "listed", tmp_path / "split", tmp_path / "plain"
    write_images(listed, "images/0.png", "images/1.png")
    (listed / "index.csv").write_text("split,class,image\ntrain,jay,images/0.png\ntest,owl,images/1.png\n")
    write_images(split, "train/jay/0.png", "test/jay/1.png")
    write_images(plain, "jay/0.png", "owl/1.png")
    for root in (listed, split, plain):
        write_tar(root / "images.tar", copy)
        dataset = create_dataset(str(root), "train")
        assert isinstance(dataset, ImageFolder), root
        assert dataset.classes == (("jay",) if root == split else ("jay", "owl"))
        assert reds(dataset) == ([100, 101] if root == plain else [100])
    # Also in the folder of a split, and with labels.
    write_tar(split / "train/jay.tar", copy)
    write_tar(split / "test/jay.tar", {"0.png": picture(3), "0.cls": b"2"})
    assert isinstance(create_dataset(str(split), "test"), ImageFolder)
    (split / "test/jay/1.png").unlink()
    with pytest.raises(InputError, match="test holds no images in its folders, beside which tar files are left aside"):
        create_dataset(str(split), "test")
    # An index says that the tar files are what is meant.
    (split / "train/index.npy").touch()
    with pytest.raises(InputError, match=r"index.npy cannot be read"):
        create_dataset(str(split), "train")


def test_what_a_desktop_leaves_is_no_data(tmp_path: Path) -> None:
    write_tar(tmp_path / "jay.tar", {"jay/.DS_Store": b"x", "jay/0.png": picture(3)})
    (tmp_path / ".cache").mkdir()
    assert isinstance(create_dataset(str(tmp_path), "train"), TimmImages)


def test_images_with_captions_are_no_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"0.png": picture(3), "0.txt": b"a jay"})
    with pytest.raises(InputError, match="sample '0' has no label"):
        create_dataset(str(tmp_path), "train")


def test_what_is_neither(tmp_path: Path) -> None:
    assert not holds_class_tars(tmp_path) and not holds_class_tars(tmp_path / "none")
    (tmp_path / "a.tar").write_text("no tar file")
    write_classes(tmp_path, {"owl": 1})
    assert not holds_class_tars(tmp_path)
    with pytest.raises(InputError, match=r"a.tar is cut off or no tar file"):
        create_dataset(str(tmp_path), "train")
    (tmp_path / "a.tar").rename(tmp_path / "z.tar")
    with pytest.raises(InputError, match=r"/z.tar is cut off or no tar file \(truncated header\)"):
        create_dataset(str(tmp_path), "train")
    write_classes(tmp_path, {"z": 3})
    (tmp_path / "z.tar").write_bytes((tmp_path / "z.tar").read_bytes()[:1600])
    with pytest.raises(InputError, match=r"/z.tar is cut off or no tar file \(unexpected end of data\)"):
        create_dataset(str(tmp_path), "train")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"jay": 1})
    write_tar(tmp_path / "owl.tar", {"0.png": b"no image", "1.png": picture(1)})
    lost = create_dataset(str(tmp_path), "train")[1]
    assert lost == Unreadable("owl.tar/0.png", f"{tmp_path}: owl.tar/0.png is no image")
    dataset = create_dataset(str(tmp_path), "train")
    assert torch.equal(dataset.groups, torch.arange(3))


def test_folders_without_images_do_not_hide_tar_files(tmp_path: Path) -> None:
    copy = {f"{number}.png": picture(number) for number in range(2)}
    for name in ("jay", "owl"):
        write_tar(tmp_path / f"{name}.tar", copy)
    for folder in ("lost+found", "val"):
        (tmp_path / folder).mkdir()
        assert create_dataset(str(tmp_path), "train").classes == ("jay", "owl")
    (tmp_path / "val").rmdir()
    write_images(tmp_path, "jay/0.png")  # half unpacked
    assert create_dataset(str(tmp_path), "train").classes == ("jay", "owl")
