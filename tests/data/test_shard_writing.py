"""Shards that are written in several goes, by one process at a time, with or without images that cannot be read."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.samples import Unreadable
from glasszoo.data.shard_writing import write_shards
from glasszoo.data.shards import Shards
from glasszoo.data.subsets import Subset


class Watched(Subset):
    """Counts what is read; one image may break off the work, others cannot be read."""

    def __init__(self, dataset: Any, breaks_at: int | None = None, unreadable: tuple[int, ...] = ()) -> None:
        super().__init__(dataset, range(len(dataset)))
        self.read: list[int] = []
        self._breaks_at, self._unreadable = breaks_at, unreadable

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        if len(self.read) - 1 == self._breaks_at:
            raise KeyboardInterrupt
        if index in self._unreadable:
            return Unreadable(f"{index}.png", f"{index}.png is broken")
        return super().__getitem__(index)


@pytest.fixture
def critters() -> Any:
    return create_dataset("critters", "train", count=24, size=32)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_broken_off_goes_on(critters: Any, tmp_path: Path) -> None:
    write_shards(Watched(critters), tmp_path / "whole", "train", images_per_shard=7)
    broken = Watched(critters, breaks_at=17)
    with pytest.raises(KeyboardInterrupt):
        write_shards(broken, tmp_path / "again", "train", images_per_shard=7)
    assert not (tmp_path / "again/train").exists(), "what is not complete does not appear"
    (tmp_path / "again/.train.partial/.shard-000002.tar.xyz.tmp").write_text("left by a kill")
    again = Watched(critters)
    written = write_shards(again, tmp_path / "again", "train", images_per_shard=7)
    assert (written.images, written.shards, written.left_out) == (24, 4, 0)
    # The first image tells whether these are the same data.
    assert again.read[0] == broken.read[0] == 0
    assert len(again.read) == 1 + 10 and not set(again.read[1:]) & set(broken.read[1:15]), "two shards were whole"
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_a_beginning_of_other_data_is_refused(critters: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_shards(Watched(critters, breaks_at=17), tmp_path, "train", images_per_shard=7)
    other, larger = (create_dataset("critters", "train", **by) for by in ({"count": 23, "size": 32}, {"count": 24}))
    assert larger.labels.tolist() == critters.labels.tolist()
    for dataset, options in ((other, {}), (larger, {}), (critters, {"seed": 1}), (critters, {"images_per_shard": 8})):
        with pytest.raises(InputError, match=r"\.train\.partial was begun with other data or options"):
            write_shards(dataset, tmp_path, "train", **{"images_per_shard": 7, **options})
    assert write_shards(critters, tmp_path, "train", images_per_shard=7).shards == 4


def test_one_process_at_a_time(critters: Any, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".train.lock"),
        pytest.raises(InputError, match=r"another process is writing .*train"),
    ):
        write_shards(critters, tmp_path, "train")
    assert write_shards(critters, tmp_path, "train").images == 24


def test_a_full_disk_loses_no_shard(critters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("glasszoo.data.shard_writing._list_shards", full)
        with pytest.raises(OSError, match="No space left"):
            write_shards(critters, tmp_path, "train", images_per_shard=7)
    again = Watched(critters)
    write_shards(again, tmp_path, "train", images_per_shard=7)
    assert again.read == [0] and len(Shards(tmp_path)) == 24
    assert not list((tmp_path / "train").glob("*.npz")) and not (tmp_path / "train/plan.json").exists()


def test_splits_that_are_written_at_the_same_time(critters: Any, tmp_path: Path) -> None:
    splits = [f"part{number}" for number in range(6)]
    with ThreadPoolExecutor(len(splits)) as pool:
        list(pool.map(lambda split: write_shards(critters, tmp_path, split, images_per_shard=12), splits))
    assert sorted(json.loads((tmp_path / "info.json").read_text())["splits"]) == splits


def test_images_that_cannot_be_read(critters: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(critters, unreadable=(3, 11))
    watched.targets = torch.eye(24, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\d+.png is broken \(--skip-unreadable"):
        write_shards(watched, tmp_path, "train", images_per_shard=2)
    assert not (tmp_path / "train").exists()
    written = write_shards(watched, tmp_path, "train", images_per_shard=2, skip_unreadable=True)
    assert (written.images, written.left_out) == (22, 2)
    assert capsys.readouterr().err.count("left out: ") == 2
    shards = Shards(tmp_path)
    places = {str(critters[index]["id"]): index for index in range(24)}
    own = [places[dict(shards[index])["id"]] for index in range(22)]
    assert sorted({*range(24)} - {*own}) == [3, 11]
    assert shards.targets.argmax(1).tolist() == own
    assert sum(json.loads((tmp_path / "info.json").read_text())["splits"]["train"]["shard_lengths"]) == 22


def test_the_command_leaves_them_out_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "plain/owl"
    data.mkdir(parents=True)
    (data / "a.png").write_text("no image")
    Image.new("RGB", (9, 9), "red").save(data / "b.png")
    asked = ["shard", str(tmp_path / "plain"), "--out", str(tmp_path / "out")]
    assert main(asked) == 2 and "--skip-unreadable" in capsys.readouterr().err
    assert main([*asked, "--skip-unreadable"]) == 0
    assert "1 images of 1 classes in 1 shards" in (printed := capsys.readouterr().out)
    assert "1 left out as unreadable" in printed
