"""A checkpoint from W&B by its real client, of a server on this machine that knows one artifact."""

import base64
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import made

from glasszoo.models import save_pretrained

# An ID of W&B's: it says in base64 what it is of.
ARTIFACT = base64.b64encode(b"Artifact:1").decode()
SEQUENCE = {
    "__typename": "ArtifactSequence",
    "name": "leaf",
    "project": {"id": "1", "internalId": "1", "name": "leaves", "entity": {"name": "zoo"}},
}
ALIASES = [{"__typename": "ArtifactAlias", "id": "1", "alias": "best", "artifactCollection": SEQUENCE}]


class Server(ThreadingHTTPServer):
    """The artifact zoo/leaves/leaf:best, whose files lie in `folder`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self.keys: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, question: str, about: dict[str, Any]) -> dict[str, Any]:
        if "viewer" in question:
            viewer = {"id": "1", "entity": "zoo", "username": "me", "email": "me@zoo", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if "serverInfo" in question:
            return {"serverInfo": {"features": []}}
        if "ArtifactMembershipByName" in question:
            known = about["entity"], about["project"], about["name"]
            return {
                "project": {"artifactCollectionMembership": membership(len(self.files)) if known == KNOWN else None}
            }
        if "FetchArtifactManifest" in question:
            return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/manifest"}}}}
        nodes = [{"__typename": "File", "name": name, "directUrl": f"{self.address}/{name}"} for name in self.files]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"pageInfo": page, "edges": [{"node": node} for node in nodes]}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    def manifest(self) -> dict[str, Any]:
        contents = {
            name: {
                "digest": base64.b64encode(hashlib.md5(content).digest()).decode(),
                "birthArtifactID": ARTIFACT,
                "size": len(content),
            }
            for name, content in self.files.items()
        }
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return {"version": 1, **policy, "contents": contents}


KNOWN = ("zoo", "leaves", "leaf:best")


def membership(count: int) -> dict[str, Any]:
    """The artifact as a member of its collection."""
    when = "2026-11-29T00:00:00Z"
    artifact = {
        "__typename": "Artifact", "id": ARTIFACT, "artifactSequence": SEQUENCE, "versionIndex": 3,
        "artifactType": {"name": "model"}, "description": None, "metadata": "{}", "ttlDurationSeconds": -1,
        "ttlIsInherited": False, "tags": [], "historyStep": None, "state": "COMMITTED", "size": 1, "digest": "0",
        "commitHash": "0", "fileCount": count, "createdAt": when, "updatedAt": None, "aliases": ALIASES,
    }  # fmt: skip
    place = {"__typename": "ArtifactCollectionMembership", "id": "1", "versionIndex": 3, "createdAt": when}
    return place | {"aliases": ALIASES, "artifactCollection": SEQUENCE, "artifact": artifact}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        known = self.server.files | {"manifest": json.dumps(self.server.manifest()).encode()}
        self.send(known.get(name))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":  # what the client tells about itself
            self.send(None)
            return
        self.server.keys.add(self.headers.get("Authorization"))
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send(json.dumps({"data": self.server.answer(asked["query"], asked.get("variables") or {})}).encode())

    def send(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    save_pretrained(made(), tmp_path / "saved")
    server = Server(tmp_path / "saved")
    yield server
    server.shutdown()
    server.server_close()


def asked(code: str, server: Server, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose client knows of no other server."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    own |= {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    own |= {"HOME": str(tmp_path), "GLASSZOO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import torch, glasszoo; {code}"]
    return subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=100)


def test_the_real_client_fetches_a_checkpoint(server: Server, tmp_path: Path) -> None:
    done = asked(
        "model = glasszoo.load_pretrained('wandb:zoo/leaves/leaf:best');"
        "torch.save(model.state_dict(), 'fetched.pt'); print(model.class_names)",
        server,
        tmp_path,
    )
    assert done.returncode == 0 and "('leaf', 'stone', 'water')" in done.stdout, done.stderr
    fetched = torch.load(tmp_path / "fetched.pt", weights_only=True)
    expected = made().state_dict()
    assert fetched.keys() == expected.keys() and all(torch.equal(fetched[name], expected[name]) for name in expected)
    assert all(key and key.startswith("Basic ") for key in server.keys), "with the key that it was given"
    assert (tmp_path / "cache/wandb/zoo/leaves/leaf/v3/model.safetensors").is_file()


def test_an_alias_that_is_not_there(server: Server, tmp_path: Path) -> None:
    done = asked("glasszoo.load_pretrained('wandb:zoo/leaves/leaf:worst')", server, tmp_path)
    assert "InputError: wandb:zoo/leaves/leaf:worst cannot be found" in done.stderr, done.stderr


def test_content_that_was_changed_on_the_way(server: Server, tmp_path: Path) -> None:
    manifest = server.manifest()
    server.manifest = lambda: manifest  # type: ignore[method-assign]
    server.files["model.safetensors"] = server.files["model.safetensors"][:-1] + b"?"
    done = asked("glasszoo.load_pretrained('wandb:zoo/leaves/leaf:best')", server, tmp_path)
    assert "InputError: wandb:zoo/leaves/leaf:best cannot be fetched" in done.stderr, done.stderr
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
