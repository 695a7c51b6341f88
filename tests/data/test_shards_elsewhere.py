"""Shards behind a URL, and what is kept of others' shards; a real server on this machine answers, part by part."""

import functools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_shards import workers_read_the_same

from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
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

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    assert sum(parts.values()) == 24 + 9, "a request for a sample, and none for a whole shard"
    lists = server.asked["/train/index.npy"]
    Shards(server.url)
    assert server.asked["/train/index.npy"] == lists == 1, "the index is in the cache"


def test_processes_that_read_from_a_url(server: Server) -> None:
    workers_read_the_same(Shards(server.url))


def test_an_index_that_was_written_anew_is_fetched_again(server: Server, root: Path) -> None:
    before = Shards(server.url)
    critters = create_dataset("critters", "train", count=30, size=32)
    for path in [*(root / "train").iterdir(), root / "train"]:
        path.unlink() if path.is_file() else path.rmdir()
    write_shards(critters, root, "train", images_per_shard=10)
    assert len(before) == 24 and len(Shards(server.url)) == 30


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


def test_a_cache_that_cannot_be_written(root: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train/index.npy").unlink()
    cache.write_text("a file")
    assert len(Shards(root)) == 24 and "cannot be kept in the cache" in capsys.readouterr().err


def test_a_connection_that_breaks_is_tried_again(server: Server) -> None:
    shards = Shards(server.url)
    server.broken = 2
    assert isinstance(shards[3], dict) and server.broken == 0
    server.broken = 9
    lost = shards[3]
    assert isinstance(lost, Unreadable) and f"{server.url}/train/shard-000000.tar, sample" in lost.reason


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
    lost = shards[0]
    assert isinstance(lost, Unreadable) and "whole files only" in lost.reason
    (root / "info.json").write_text("{}")
    with pytest.raises(InputError, match=r"info.json does not list the files of splits"):
        Shards(server.url)


def test_urls_that_cannot_be_opened() -> None:
    with pytest.raises(InputError, match="nothing://a/b cannot be opened: .*nothing"):
        Shards("nothing://a/b")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/.* cannot be"):
        Shards("http://127.0.0.1:9/shards")


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
