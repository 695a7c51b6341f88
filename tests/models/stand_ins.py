"""Servers on loopback in the place of the Hugging Face hub, of any web server, and of where W&B keeps files."""

import base64
import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import wandb
from wandb.sdk.artifacts.artifact_state import ArtifactState

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import ImageClassifier

REPO = "zoo/leaf"


class Server(ThreadingHTTPServer):
    """Serves `files` below /web/, and `commits` of one repository by the hub's own routes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # of the plain web server
        self.commits: dict[str, dict[str, bytes]] = {}  # of the repository: commit → name → content
        self.refs: dict[str, str] = {}
        self.lies: dict[str, bytes] = {}  # content that is sent in another's place, by the end of its path
        self.breaks: dict[str, int] = {}  # how often the connection is cut in the middle of a file, by its path's end
        self.resets = False  # whether it is cut by a reset
        self.is_gated = False
        self.tokens: set[str | None] = set()  # that were sent along
        self.log: list[tuple[str, str, str]] = []  # method, path, range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        number = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[number], self.refs[branch] = files, number
        return number

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.log.append((self.command, path, self.headers.get("Range", "")))
        self.server.tokens.add(self.headers.get("Authorization"))
        if path.startswith("/web/"):
            content = self.server.files.get(path.removeprefix("/web/"))
            return self.send_file(path, content) if content is not None else self.send(404)
        if not path.removeprefix("/api/models").startswith(f"/{REPO}/"):
            return self.send(401, {}, {"X-Error-Code": "RepoNotFound"})
        if self.server.is_gated:
            return self.send(403, {}, {"X-Error-Code": "GatedRepo"})
        kind, revision, *name = path.removeprefix("/api/models").removeprefix(f"/{REPO}/").split("/", 2)
        commit = self.server.refs.get(revision, revision)
        if (files := self.server.commits.get(commit)) is None:
            return self.send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if kind == "revision":
            return self.send(200, {"id": REPO, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if kind == "tree":
            return self.send(200, [entry(name, content) for name, content in files.items()])
        if name[0] not in files:
            return self.send(404, {}, {"X-Error-Code": "EntryNotFound"})
        return self.send_file(path, files[name[0]], {"X-Repo-Commit": commit, "ETag": f'"{etag(files[name[0]])}"'})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.log.append(("POST", self.path, ""))
        if self.headers.get("Authorization") != "Bearer hf_writer" and "validate" not in self.path:
            return self.send(403, {"error": "you have no rights here"})
        if self.path.startswith("/api/repos/create"):
            if not self.server.commits:
                self.server.commit({".gitattributes": b""})
            return self.send(200, {"url": f"{self.server.address}/{REPO}"})
        if "/preupload/" in self.path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            return self.send(200, {"files": [upload_mode(path) for path in asked]})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.send(
                200, {"transfer": "basic", "objects": [self.upload(o) for o in json.loads(body)["objects"]]}
            )
        if "/commit/" in self.path:
            oid = self.commit([json.loads(line) for line in body.splitlines()])
            return self.send(200, {"commitUrl": f"{self.server.address}/{REPO}/commit/{oid}", "commitOid": oid})
        return self.send(200, {})  # validate-yaml

    def do_PUT(self) -> None:
        self.server.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send(200)

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}}

    def commit(self, lines: list[dict[str, Any]]) -> str:
        files = dict(self.server.commits.get(self.server.refs.get("main", ""), {}))
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.files[f"/lfs/{value['oid']}"]
            elif key == "deletedFile":
                del files[value["path"]]
        return self.server.commit(files)

    def send_file(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        whole = content
        for end, lie in self.server.lies.items():
            whole = lie if path.endswith(end) else whole
        given = self.headers.get("Range")
        start = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        told = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if given else {}
        self.send_response(206 if given else 200)
        for key, value in {**(headers or {}), **told, "Content-Length": str(len(whole) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = whole[start:]
        for end, times in self.server.breaks.items():
            if path.endswith(end) and times:
                self.server.breaks[end] -= 1
                self.close_connection = True
                part = part[: len(part) // 2]
                if self.server.resets:
                    self.wfile.write(part)
                    return self.reset()
        self.wfile.write(part)

    def reset(self) -> None:
        """End the connection as a router does that forgot it: with RST in the place of FIN."""
        time.sleep(0.1)  # what was sent may arrive before
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def send(self, status: int, answer: object = None, headers: dict[str, str] | None = None) -> None:
        body = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def upload_mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def etag(content: bytes) -> str:
    """The hub's: a large file's SHA-256, a small one's git hash."""
    if len(content) > 10_000:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, Any]:
    lfs = {"lfs": {"oid": etag(content), "size": len(content), "pointerSize": 130}} if len(content) > 10_000 else {}
    return {"type": "file", "path": name, "size": len(content), "oid": etag(content), **lfs}


def made(seed: int = 0) -> ImageClassifier:
    torch.manual_seed(seed)
    classes = ("leaf", "stone", "water")
    return glasszoo.create_model("test_resnet", num_classes=len(classes), class_names=classes).eval()


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Logged(wandb.Artifact):
    """W&B's own artifact, made of a folder, as if it had been logged: its files are fetched from `server`."""

    def __init__(self, name: str, folder: Path, server: Server, version: str) -> None:
        super().__init__(name, type="model")
        self.add_dir(str(folder))
        self.finalize()
        self._state, self._version, self._name = ArtifactState.COMMITTED, version, f"{name}:{version}"
        self.server = server
        for path in self.manifest.entries:
            server.files[f"wandb/{version}/{path}"] = (folder / path).read_bytes()

    def _fetch_file_urls(self, cursor: str | None, per_page: int = 5000) -> Any:
        """What W&B's server says: where each file is."""
        address = f"{self.server.address}/web/wandb/{self._version}"
        nodes = [SimpleNamespace(name=path, direct_url=f"{address}/{path}") for path in self.manifest.entries]
        page = SimpleNamespace(has_next_page=False, end_cursor=None)
        return SimpleNamespace(page_info=page, edges=[SimpleNamespace(node=node) for node in nodes])


def same(one: ImageClassifier, other: ImageClassifier) -> bool:
    images = torch.randn(2, 3, 64, 64)
    return all(torch.equal(a, b) for a, b in zip(one(images, "all"), other(images, "all"), strict=True))


def refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        glasszoo.load_pretrained(name)
