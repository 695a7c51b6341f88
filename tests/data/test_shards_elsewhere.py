"""Shards behind a URL, and what is kept of others' shards; a real server on this machine answers, part by part."""

import functools
import json
import os
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from test_shards import prepared, workers_read_the_same

from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset, remote_folder
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Sample, Unreadable
from glasszoo.data.shard_writing import write_shards
from glasszoo.data.shards import Shards


class Server(ThreadingHTTPServer):
    """Serves `root`; what was asked for is counted."""

    daemon_threads = True
    request_queue_size = 64  # requests come side by side

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.asked: Counter[str] = Counter()
        self.knows_parts = True
        self.broken = 0  # answers that are still to be cut off
        self.hangs, self.hanging, self.goes_on = False, 0, threading.Event()
        self.busy = 0  # and such that are still to be 503
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    """Python's own, which knows no parts of files, with parts."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        if self.server.broken:
            self.server.broken -= 1
            self.connection.close()
            return
        if self.server.hangs:
            self.server.hanging += 1
            self.server.goes_on.wait(20)
            self.server.hanging -= 1
            return
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not (asked and self.server.knows_parts and path.is_file()):
            super().do_GET()
            return
        first, last = asked.removeprefix("bytes=").split("-")
        content = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        if self.server.busy:
            self.send_error(503)
        else:
            super().do_HEAD()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "_FIRST_PAUSES", (0, 0))
    monkeypatch.setattr(remote_folder, "_PAUSES", (0, 0, 0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 24), ("test", 9)):
        critters = create_dataset("critters", split, count=count, size=32)
        write_shards(critters, tmp_path / "shards", split, images_per_shard=7)
    return tmp_path / "shards"


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    server = Server(root)
    yield server
    server.shutdown()
    server.server_close()


def same(first: Sample | Unreadable, second: Sample | Unreadable) -> bool:
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    return (
        first["id"] == second["id"]
        and np.array_equal(first["image"], second["image"])
        and all(torch.equal(dict(first)[key], dict(second)[key]) for key in ("mask", "boxes", "points"))
    )


def test_a_url_gives_what_the_folder_gives(server: Server, root: Path) -> None:
    for split in ("train", "test"):
        here, there = Shards(root, split), create_dataset(f"{server.url}/", split)
        assert (here.classes, here.shard_sizes) == (there.classes, there.shard_sizes)
        assert len(here) == len(there) and all(map(same, iter(here), iter(there)))
    parts = {path: count for path, count in server.asked.items() if path.endswith(".tar")}
    assert sum(parts.values()) == 1 + 24 + 1 + 9, "a request for a sample, one to try, and none for a whole shard"
    lists = server.asked["/train/index.npy"]
    Shards(server.url)
    assert server.asked["/train/index.npy"] == lists + 1, "the index is in the cache: one byte tells that it is there"


def test_an_index_comes_in_parts(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "_PART", 100)
    assert np.array_equal(Shards(server.url)._index, Shards(root)._index)
    assert server.asked["/train/index.npy"] == 1 + -(-(root / "train/index.npy").stat().st_size // 100)


class Buffered(AbstractFileSystem):
    """As fsspec's for hubs and drives: to read a part it opens a file, which reads ahead unless told otherwise."""

    protocol = "buffered"
    fetched = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        files = sorted(map(str, Path(path).iterdir())) if Path(path).is_dir() else []
        return list(map(self.info, filter(os.path.isfile, files))) if detail else files

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return BufferedFile(self, path, mode, cache_type=options.get("cache_type", "readahead"))


class BufferedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        content = Path(self.path).read_bytes()[start:end]
        Buffered.fetched += len(content)
        return content


def test_what_is_read_by_opening_a_file(root: Path) -> None:
    fsspec.register_implementation("buffered", Buffered, clobber=True)
    here, there = Shards(root), create_dataset(f"buffered://{root}", "train")
    Buffered.fetched = 0
    assert all(map(same, iter(here), iter(there)))
    assert Buffered.fetched == here._index["size"].sum(), "no byte more than asked for"
    (root / "train/index.npy").unlink()
    assert np.array_equal(Shards(f"buffered://{root}")._index, here._index)


def test_processes_that_read_from_a_url(server: Server) -> None:
    workers_read_the_same(Shards(server.url))


def test_an_index_that_was_written_anew_is_fetched_again(server: Server, root: Path, cache: Path) -> None:
    before = Shards(server.url)
    critters = create_dataset("critters", "train", count=30, size=32)
    for seed in (0, 1):
        shutil.rmtree(root / "train")
        write_shards(critters, root, "train", images_per_shard=10, seed=seed)
        os.utime(root / "train/index.npy", (seed, seed))  # servers tell whole seconds
        assert Shards(server.url).labels.tolist() == Shards(root).labels.tolist()
    assert len(before) == 24 and len(list(cache.glob("shards/*/*/index.npy"))) == 3
    for path in cache.glob("shards/*/*/"):
        os.utime(path, (1, 1))
    shutil.rmtree(root / "train")
    write_shards(critters, root, "train", seed=2)
    assert len(Shards(server.url)) == 30 and len(list(cache.glob("shards/*/*/index.npy"))) == 1, "old ones are removed"


def test_others_shards_are_looked_through_once(server: Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Shards(root)
    (root / "train/index.npy").unlink()
    for name in (server.url, str(root)):
        for _ in range(2):
            assert np.array_equal(create_dataset(name, "train")._index, whole._index)  # type: ignore[attr-defined]
        assert capsys.readouterr().err.count("looking through 4 tar files") == 1
    (root / "info.json").unlink()
    assert len(Shards(server.url)) == 24, "the server lists its files"
    shard = root / "train/shard-000003.tar"
    Shards(root), capsys.readouterr()
    os.utime(shard, ns=(1, 1))
    Shards(root)
    assert "looking through" in capsys.readouterr().err, "a file was written anew"


def test_where_a_folder_lies_counts_not_what_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = []
    for place, seed in (("one", 0), ("other", 1)):
        root = tmp_path / place / "data"
        write_shards(create_dataset("critters", "train", count=24, size=32), root, "train", seed=seed)
        labels.append(Shards(root).labels.tolist())
        (root / "train/index.npy").unlink()
        os.utime(root / "train/shard-000000.tar", (1, 1))
    sizes = [(tmp_path / place / "data/train/shard-000000.tar").stat().st_size for place in ("one", "other")]
    assert sizes[0] == sizes[1] and labels[0] != labels[1]
    for place, expected in zip(("one", "other"), labels, strict=True):
        monkeypatch.chdir(tmp_path / place)
        assert Shards("data").labels.tolist() == expected


def test_an_info_json_of_something_else(root: Path) -> None:
    (root / "info.json").write_text('{"name": "mine"}')
    assert len(Shards(root)) == 24
    write_shards(create_dataset("critters", "train", count=8, size=32), root, "more")
    assert len(Shards(root, "more")) == 8 and json.loads((root / "info.json").read_text())["name"] == "mine"


def test_a_cache_that_cannot_be_written(
    server: Server, root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train/index.npy").unlink()
    cache.write_text("a file")
    with pytest.raises(InputError, match=r"test/index.npy cannot be kept in the cache"):
        Shards(server.url, "test")
    assert len(Shards(root)) == 24 and "cannot be kept in the cache" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["broken", "busy"])
def test_a_server_in_trouble_is_asked_again(server: Server, trouble: str) -> None:
    shards = Shards(server.url)
    setattr(server, trouble, 4)
    assert isinstance(shards[3], dict) and getattr(server, trouble) == 0
    setattr(server, trouble, 99)
    with pytest.raises(InputError, match=r"http://.*/train/shard-000000.tar gives no answer"):
        shards[3]


def test_an_outage_ends_a_run_whatever_is_done_about_unreadable_images(server: Server) -> None:
    loader = Loader(Shards(server.url), prepared, 5, num_workers=2, on_error="skip")
    server.busy = 9999
    with pytest.raises(InputError) as raised:
        list(loader)
    assert str(raised.value).startswith("http://") and "\n" not in str(raised.value)


def test_trouble_at_the_start_hides_no_file(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.busy = 2
    assert len(Shards(server.url)) == 24 and "looking through" not in capsys.readouterr().err


def test_a_server_that_hangs_gives_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_folder, "_SILENCE", 1.0)
    shards = Shards(server.url)
    server.hangs = True
    with pytest.raises(InputError, match="gives no answer"):
        shards[3]
    assert server.hanging > 1, "it was asked again while the server still held the first question"
    server.goes_on.set()


def test_an_index_that_is_older_than_its_shards(server: Server, root: Path) -> None:
    (root / "train/index.npy").unlink()
    Shards(server.url)
    for path in (root / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member, content in members:
                tar.addfile(member, BytesIO(b"9" if member.name.endswith(".cls") else content))
    lost = Shards(server.url)[0]
    assert isinstance(lost, Unreadable) and "the label 9, but" in lost.reason and "older" in lost.reason


def test_info_says_what_a_split_is_wherever_it_lies(server: Server, root: Path) -> None:
    (root / "train/index.npy").unlink()
    info = json.loads((root / "info.json").read_text())
    names = info["splits"]["train"]["filenames"]
    info["splits"] = {"train": {"filenames": names[:3]}, "rest": {"filenames": names[3:]}}
    (root / "info.json").write_text(json.dumps(info))
    for place in (root, server.url):
        assert (len(Shards(place)), len(Shards(place, "rest"))) == (21, 3)


def test_what_a_server_lacks_is_named(server: Server, root: Path) -> None:
    with pytest.raises(InputError, match=r"unknown split of http://.* 'tset'.*test"):
        Shards(server.url, "tset")
    with pytest.raises(InputError, match=r"unknown split of http://.*/nowhere 'train'"):
        Shards(f"{server.url}/nowhere")
    shards = Shards(server.url)
    (root / "train/shard-000001.tar").unlink()
    lost = shards[8]
    assert isinstance(lost, Unreadable) and "shard-000001.tar" in lost.reason
    server.knows_parts = False
    with pytest.raises(InputError, match="hands out whole files only"):
        Shards(server.url)
    server.knows_parts = True
    (root / "info.json").write_text('{"splits": {"train": 3}}')
    with pytest.raises(InputError, match=r"info.json does not list the files of splits"):
        Shards(server.url)


def test_urls_that_cannot_be_opened() -> None:
    with pytest.raises(InputError, match="nothing://a/b cannot be opened: .*nothing"):
        Shards("nothing://a/b")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/.* gives no answer"):
        Shards("http://127.0.0.1:9/shards")
    for url in ("https://me:secret@host/shards", "https://token@host/shards", "s3://key:secret@bucket/shards"):
        with pytest.raises(InputError, match="a URL with a password would stand in") as raised:
            Shards(url)
        assert "secret" not in str(raised.value) and "token" not in str(raised.value)
    with pytest.raises(InputError, match=r"http://\[::1/x is no URL"):
        Shards("http://[::1/x")
    assert str(remote_folder.RemoteFolder("abfss://box@account.host/x")) == "abfss://box@account.host/x"


def test_timms_reader_opens_ours(root: Path) -> None:
    pytest.importorskip("webdataset")
    from timm.data import create_dataset as create_timm_dataset

    theirs = create_timm_dataset("wds/", root=str(root), split="test", batch_size=1)
    labels = [label for _, label in theirs]
    assert len(theirs) == 9 and labels == Shards(root, "test").labels.tolist()
    info = json.loads((root / "info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [7, 7, 7, 3] and info["splits"]["test"]["num_samples"] == 9


def test_training_from_a_url(server: Server, tmp_path: Path) -> None:
    settings = ["model.backbone=test_resnet", "data.batch_size=8", "epochs=1", "model.image_size=32"]
    runs = []
    for name, data in (("there", server.url), ("here", str(tmp_path / "shards"))):
        out = tmp_path / name
        told = ["train", "critters", "--data", data, "data.options={}", *settings, "--out", str(out)]
        assert main([*told, "--device", "cpu"]) == 0
        lines = (out / "metrics.csv").read_text().splitlines()
        runs.append(dict(zip(*(line.split(",") for line in lines), strict=True))["val_loss"])
    assert runs[0] == runs[1]
