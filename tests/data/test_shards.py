"""Shards: sample for sample what was written, as WebDataset has them both ways; what is broken is named."""

import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_image

from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.folder import ImageFolder
from glasszoo.data.loading import Loader
from glasszoo.data.order import Order
from glasszoo.data.samples import Sample, Unreadable
from glasszoo.data.shard_index import INDEX
from glasszoo.data.shard_writing import write_shards
from glasszoo.data.shards import Shards, is_shards
from glasszoo.data.subsets import Subset, split_validation


@pytest.fixture
def critters() -> Any:
    return create_dataset("critters", "train", count=24, size=32)


@pytest.fixture
def root(critters: Any, tmp_path: Path) -> Path:
    write_shards(critters, tmp_path / "shards", "train", images_per_shard=7, seed=1)
    return tmp_path / "shards"


def read(dataset: Any, index: int) -> Sample:
    sample = dataset[index]
    assert not isinstance(sample, Unreadable), sample
    return sample


def test_what_was_written_comes_back(critters: Any, root: Path) -> None:
    shards = create_dataset(str(root), "train")
    assert isinstance(shards, Shards) and is_shards(root) and shards.shard_sizes == [7, 7, 7, 3]
    assert (shards.classes, shards.part_names) == (critters.classes, critters.part_names)
    assert (shards.license, shards.description) == (critters.license, critters.description)
    before = {critters[index]["id"]: index for index in range(len(critters))}
    samples = [read(shards, index) for index in range(len(shards))]
    order = [before[sample["id"]] for sample in samples]
    assert sorted(order) == list(range(24)) and order != sorted(order), "all of them, shuffled"
    assert shards.labels.tolist() == critters.labels[order].tolist()
    assert shards.groups.tolist() == critters.groups[order].tolist()
    for sample, index in zip(samples, order, strict=True):
        original = critters[index]
        assert torch.equal(pil_to_tensor(sample["image"]), original["image"])
        assert torch.equal(sample["mask"], original["mask"]) and sample["label"] == original["label"]
        assert torch.equal(sample["boxes"], original["boxes"])
        assert sample["boxes"].canvas_size == original["boxes"].canvas_size
        assert torch.equal(sample["points"], original["points"])


def test_points_that_are_not_visible_and_no_boxes(critters: Any, tmp_path: Path) -> None:
    class Hidden(Subset):
        def __getitem__(self, index: int) -> Any:
            sample: Any = super().__getitem__(index)
            sample["points"][index] = torch.nan
            return {**sample, "boxes": sample["boxes"][:0]}

    hidden = Hidden(critters, range(3))
    write_shards(hidden, tmp_path, "train")
    shards = Shards(tmp_path)
    for sample in (read(shards, index) for index in range(3)):
        original = next(one for one in (hidden[index] for index in range(3)) if one["id"] == sample["id"])
        assert sample["points"].isnan().sum() == 2 and sample["boxes"].shape == (0, 4)
        assert torch.equal(sample["points"].nan_to_num(-1), original["points"].nan_to_num(-1))
    with tarfile.open(tmp_path / "train/shard-000000.tar") as tar:
        assert "NaN" not in tar.extractfile("000000000.json").read().decode()  # type: ignore[union-attr]


def test_the_files_are_those_of_the_seed(critters: Any, root: Path, tmp_path: Path) -> None:
    write_shards(critters, tmp_path / "again", "train", images_per_shard=7, seed=1)
    write_shards(critters, tmp_path / "other", "train", images_per_shard=7, seed=2)
    name = "train/shard-000001.tar"
    assert (root / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (root / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_bytes_of_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "plain/train/owl").mkdir(parents=True)
    file = tmp_path / "plain/train/owl/a.jpg"
    Image.effect_noise((30, 20), 80).convert("RGB").save(file, quality=50)
    Image.new("RGB", (9, 9), "red").save(file.with_name("b.bmp"))
    write_shards(ImageFolder(tmp_path / "plain"), tmp_path / "shards", "train")
    with tarfile.open(tmp_path / "shards/train/shard-000000.tar") as tar:
        contents = {Path(member.name).suffix: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert contents[".jpg"] == file.read_bytes() and contents[".png"].startswith(b"\x89PNG")


def test_what_an_image_shows_besides_its_label(root: Path, critters: Any, tmp_path: Path) -> None:
    class Several(Subset):
        def __getitem__(self, index: int) -> Any:
            assert self.targets is not None
            return {**super().__getitem__(index), "targets": self.targets[index]}

    several = Several(critters, range(24))
    several.targets = torch.eye(8, dtype=torch.uint8)[torch.arange(24) % 8]
    write_shards(several, tmp_path / "several", "train")
    shards: Any = Shards(tmp_path / "several")
    assert shards.targets.sum() == 24 and not hasattr(Shards(root), "targets")
    for index in range(24):
        assert torch.equal(shards[index]["targets"], shards.targets[index])


def test_workers_read_the_same(root: Path) -> None:
    shards = Shards(root)
    workers_read_the_same(shards)
    copy = pickle.dumps(shards)
    assert read(pickle.loads(copy), 9)["id"] == read(shards, 9)["id"] and len(copy) < 1000, "without the index"


def test_threads_read_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.data.shard_folder._OPEN", 2)
    shards = Shards(root)
    expected = [read(shards, index)["id"] for index in range(24)]
    indices = list(range(24)) * 40
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda index: read(shards, index)["id"], indices))
    assert ids == [expected[index] for index in indices]


def workers_read_the_same(shards: Shards) -> None:
    """As the process itself reads."""
    shards[0]  # a file, or a connection, is open when the workers come
    epochs = []
    for workers in (0, 2):
        loader = Loader(shards, prepared, 5, shuffle=True, seed=3, num_workers=workers)
        epochs.append([(batch.ids, batch.images) for batch in loader])
    for (ids, images), (other_ids, other_images) in zip(*epochs, strict=True):
        assert ids == other_ids and torch.equal(images, other_images)


def prepared(sample: Any) -> Any:
    return {**sample, "image": to_image(sample["image"]).float()}


def test_what_is_known_of_all_images_stays_in_a_file(root: Path) -> None:
    for _ in range(2):  # first with the index that was written, then with one that was made
        shards = Shards(root)
        assert isinstance(shards._index, np.memmap)
        for column in (shards.labels, shards.groups):
            assert np.shares_memory(column.numpy(), shards._index)
        (root / "train/index.npy").unlink(missing_ok=True)


def test_few_files_stay_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.data.shard_folder._OPEN", 2)
    shards = Shards(root)
    ids = [read(shards, index)["id"] for index in (0, 8, 15, 22, 1)]
    assert len(set(ids)) == 5 and len(shards._folder._open) == 2  # type: ignore[attr-defined]


def test_webdataset_reads_ours(root: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = Shards(root)
    files = [str(path) for path in sorted((root / "train").glob("*.tar"))]
    theirs = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert len(theirs) == len(shards)
    for index, sample in enumerate(theirs):
        ours = read(shards, index)
        assert sample["cls"] == ours["label"] and sample["json"]["id"] == ours["id"]
        assert np.array_equal(sample["png"], ours["image"])
        assert np.array_equal(np.asarray(sample["mask.png"])[..., 0], ours["mask"])


def test_what_webdataset_writes_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    webdataset = pytest.importorskip("webdataset")
    pictures = [Image.effect_noise((12, 10), 60 + number).convert("RGB") for number in range(5)]
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"birds-train-{shard}.tar")) as writer:
            for number in range(shard * 3, min(5, shard * 3 + 3)):
                about = {"boxes": [[1, 2, 3.5, 4]], "group": number // 2}
                writer.write({"__key__": f"in/{number}", "png": pictures[number], "cls": number % 2, "json": about})
    dataset: Any = create_dataset(str(tmp_path), "train")
    assert "looking through 2 tar files" in capsys.readouterr().err
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0] and dataset.groups.tolist() == [0, 0, 1, 1, 2]
    assert dataset.classes == ("0", "1") and dataset.shard_sizes == [3, 2]
    for number, picture in enumerate(pictures):
        sample = read(dataset, number)
        assert sample["id"] == f"in/{number}" and np.array_equal(sample["image"], picture)
        assert sample["boxes"].tolist() == [[1, 2, 3.5, 4]]
    (tmp_path / "classes.txt").write_text("owl\njay\nwren\n")
    assert Shards(tmp_path).classes == ("owl", "jay", "wren")
    (tmp_path / "classes.txt").write_text("owl\n")
    with pytest.raises(InputError, match="names 1 classes, but an image has the label 1"):
        Shards(tmp_path)
    with pytest.raises(InputError, match="unknown split"):
        Shards(tmp_path, "test")


def test_the_index_is_found_again(root: Path) -> None:
    written = np.load(root / "train/index.npy")
    (root / "train/index.npy").unlink()
    assert np.array_equal(Shards(root)._index, written) and written.dtype == INDEX


def test_what_is_broken_is_named(root: Path) -> None:
    path = root / "train/shard-000001.tar"
    whole = path.read_bytes()
    shards = Shards(root)
    begin, size = int(shards._index["offset"][11]), int(shards._index["size"][11])
    path.write_bytes(whole[: begin + 700])
    assert isinstance(shards[10], dict)
    for index, name in ((11, "shard-000001.tar/4"), (13, "shard-000001.tar/6")):
        lost = shards[index]
        assert isinstance(lost, Unreadable) and lost.id == name
        assert f"{path} is truncated: it ends within sample {name}" in lost.reason
    path.write_bytes(whole[:begin] + b"x" * size + whole[begin + size :])
    lost = shards[11]
    assert isinstance(lost, Unreadable) and f"{path}, sample {lost.id}, is broken" in lost.reason
    # The image's own bytes: the tar is whole.
    path.write_bytes(whole[: begin + 600] + b"x" * 100 + whole[begin + 700 :])
    lost = shards[11]
    assert isinstance(lost, Unreadable) and "shard-000001.tar: 000000011.png is not readable" in lost.reason
    (root / "train/index.npy").unlink()
    path.write_bytes(whole[: begin + 700])
    with pytest.raises(InputError, match=r"shard-000001.tar is cut off"):
        Shards(root)
    path.write_bytes(whole[:begin] + b"x" * size + whole[begin + size :])
    with pytest.raises(InputError, match=r"shard-000001.tar is broken after sample '000000010'"):
        Shards(root)


def test_a_list_that_does_not_fit(root: Path) -> None:
    (root / "train/shard-000003.tar").unlink()
    with pytest.raises(InputError, match=r"index.npy does not fit the 3 tar files"):
        Shards(root)
    (root / "train/index.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"index.npy cannot be read"):
        Shards(root)


def test_groups_and_folders_in_a_tar(tmp_path: Path) -> None:
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")

    def write(group: str) -> None:
        members = {
            "in": None,
            "in/1.png": picture.getvalue(),
            "in/1.json": f'{{"label": 2, "group": {group}}}'.encode(),
            "out": None,
        }
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.type, member.size = (tarfile.REGTYPE, len(content)) if content else (tarfile.DIRTYPE, 0)
                tar.addfile(member, BytesIO(content or b""))

    write("7")
    shards = Shards(tmp_path)
    assert shards.groups.tolist() == [7] and read(shards, 0)["id"] == "in/1"
    write('"plant 7"')
    with pytest.raises(InputError, match="the group of sample 'in/1' is 'plant 7', where a number is expected"):
        Shards(tmp_path)


def test_samples_without_labels(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("7.png"), BytesIO())
    with pytest.raises(InputError, match="a.tar: sample '7' has no label"):
        Shards(tmp_path)


def test_writing_refuses(critters: Any, root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train is not empty"):
        write_shards(critters, root, "train")
    other = create_dataset("critters", "test", count=8, size=32)
    write_shards(other, root, "test")
    assert len(Shards(root, "test")) == 8 and len(Shards(root)) == 24
    other.classes = ("a", "b")
    with pytest.raises(InputError, match="names other classes"):
        write_shards(other, root, "third")
    (tmp_path / "plain/owl").mkdir(parents=True)
    (tmp_path / "plain/owl/a.png").write_text("no image")
    with pytest.raises(InputError, match="a.png is no image"):
        write_shards(ImageFolder(tmp_path / "plain"), tmp_path / "none", "train")
    assert not list((tmp_path / "none").iterdir()), "nothing half done is left"


def test_order_and_subset_know_the_shards(root: Path) -> None:
    shards = Shards(root)
    order = Order(len(shards), 5, shuffle=True, seed=0, shard_sizes=shards.shard_sizes)
    assert sorted(index for batch in order for _, index in batch) == list(range(24))
    training, held_out = split_validation(shards, 0.34, seed=0)
    assert training.shard_sizes and held_out.shard_sizes
    for part in (training, held_out):
        counts = np.bincount(shards._index["shard"][part.indices], minlength=4)
        assert part.shard_sizes == counts.tolist() and sum(counts) == len(part)
    assert Subset(shards, [5, 3]).shard_sizes is None and Subset(training, [0, 1]).shard_sizes is not None
    seen = [name for batch in Loader(training, prepared, 4, shuffle=True) for name in batch.ids]
    assert sorted(seen) == sorted(read(training, index)["id"] for index in range(len(training)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    asked = ["shard", "critters", "--split", "test", "--data-option", "count=10", "--data-option", "size=32"]
    assert main([*asked, "--images-per-shard", "4", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "10 images of 8 classes in 3 shards" in printed and f"→ {out}/test" in printed
    assert len(create_dataset(out, "test")) == 10
    assert json.loads((tmp_path / "out/classes.json").read_text())["classes"][0]
    assert main([*asked, "--out", out]) == 2 and "is not empty" in capsys.readouterr().err
