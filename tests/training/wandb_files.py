"""Reads what an offline run of W&B wrote: its .wandb file, and the files beside it."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEAD = 1 << 15, 7  # a log of LevelDB: blocks, and the head of a piece (checksum, length, kind)


class Logged:
    """The records of one offline run folder; the run is over, and what it wrote is waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (file,) = folder.glob("*.wandb")
        deadline = time.monotonic() + 60
        while True:
            self.records = list(_records(file.read_bytes()))
            if self.of("exit"):
                return
            # The client's own process can still be writing when `finish` returns.
            assert time.monotonic() < deadline, f"{file} has no end"
            time.sleep(0.05)

    def of(self, kind: str) -> list[Any]:
        """All records of a kind: "run", "history", "metric", "artifact", "exit"."""
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, row by row; the parts of media joined by "." to the key."""
        return [
            {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
            for row in self.of("history")
        ]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for record in self.of("summary"):
            found |= {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.update}
        return found

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for record in [*(run.config for run in self.of("run")), *self.of("config")]:
            for item in record.update:
                inner = found
                *path, last = item.nested_key or [item.key]
                for name in path:
                    inner = inner.setdefault(name, {})
                inner[last] = json.loads(item.value_json)
        return found

    @property
    def metrics(self) -> dict[str, Any]:
        return {metric.name: metric for metric in self.of("metric")}

    def artifacts(self, kind: str) -> list[Any]:
        return [artifact for artifact in self.of("artifact") if artifact.type == kind]

    def file(self, path: str) -> Path:
        """A file of the run, which its records list."""
        listed = {file.path for record in self.of("files") for file in record.files}
        assert path in listed
        return self.folder / "files" / path

    def table(self, row: dict[str, Any], key: str) -> list[dict[str, Any]]:
        """The rows of a table that `row` of the history holds, by column; pictures as paths.

        The run holds the table without its pictures; the artifact beside it, which is what a viewer shows, has both.
        """
        client, _, name = row[f"{key}.artifact_path"].removeprefix("wandb-client-artifact://").partition("/")
        (artifact,) = [found for found in self.artifacts("run_table") if found.client_id == client]
        files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        content = json.loads(files[name].read_text())
        return [
            {
                column: files[cell["path"]] if isinstance(cell, dict) else cell
                for column, cell in zip(content["columns"], cells, strict=True)
            }
            for cells in content["data"]
        ]


def offline_runs(folder: Path) -> list[Logged]:
    """The runs below a run's folder, in the order in which they were begun."""
    return [Logged(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


def _records(content: bytes) -> Iterator[Any]:
    assert content[:4] == b":W&B"
    place, whole = _HEAD, b""
    while place + _HEAD <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        begins, ends = kind in (1, 2), kind in (1, 4)  # whole, first, middle or last piece
        piece = content[place + _HEAD : place + _HEAD + length]
        if len(piece) < length:
            return  # a killed client wrote no further
        whole = piece if begins else whole + piece
        place += _HEAD + length
        if ends:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
