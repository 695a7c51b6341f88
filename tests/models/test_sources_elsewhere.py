"""Checkpoints of any web server and of W&B: pinned, verified, cached, and refused with a reason."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import wandb
from huggingface_hub import constants
from stand_ins import Logged, Server, made, refused, same, serving

import glasszoo
from glasszoo.models import ImageClassifier, open_model, pin, save_pretrained

WANDB = "wandb:zoo/leaves/leaf"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server, and an empty cache."""
    with serving() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # its client fetches from the web as well
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def serve(server: Server, folder: Path) -> str:
    """Serve a folder; returns its address, not pinned."""
    for path in folder.rglob("*"):
        if path.is_file():
            server.files[f"leaf/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return f"{server.address}/web/leaf"


def served(server: Server, folder: Path) -> str:
    hashes = pin(folder)
    return serve(server, folder) + hashes


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}


def test_a_web_server_gives_the_model_to_the_bit_and_offline_again(
    server: Server, saved: Path, model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved / "training.pt").write_bytes(b"never fetched")
    (saved / "prototypes").mkdir()
    (saved / "prototypes" / "0.png").write_bytes(b"picture")
    (saved / "explanation.png").write_bytes(b"picture")
    name = served(server, saved)
    assert same(glasszoo.load_pretrained(name), model)
    assert cached(tmp_path) == {
        "README.md", "card.json", "config.json", "model.safetensors", "explanation.png", "0.png", "SHA256SUMS",
    }  # fmt: skip
    assert server.tokens == {None}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.log.clear()
    assert same(glasszoo.load_pretrained(name), model) and same(open_model(name), model) and not server.log
    refused(name.replace("=", "=0")[:-1], "SHA256SUMS cannot be fetched: .*offline mode is enabled")


def test_sums_are_those_of_sha256sum(saved: Path) -> None:
    """Nothing of ours is needed to publish: `sha256sum *` writes the same."""
    pin(saved)
    lines = (saved / "SHA256SUMS").read_text().splitlines()
    assert [line[64:] for line in lines] == [
        "  README.md", "  card.json", "  config.json", "  model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["SHA256SUMS", "config.json", "model.safetensors"])
def test_a_file_that_was_changed_is_refused(
    file: str, server: Server, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    name = served(server, saved)
    right = server.files[f"leaf/{file}"]
    server.files[f"leaf/{file}"] = right.replace(b"e", b"a", 1)
    refused(name, f"/web/leaf/{file} has the SHA-256 [0-9a-f]{{64}}, not [0-9a-f]{{64}}: it was changed")
    assert file not in cached(tmp_path)
    server.files[f"leaf/{file}"] = right
    assert same(glasszoo.load_pretrained(name), model)


@pytest.mark.parametrize(("resets", "breaks"), [(False, 1), (True, 2)])
def test_a_download_from_the_web_that_breaks_off_is_continued_or_tried_again(
    resets: bool, breaks: int, server: Server, saved: Path, model: ImageClassifier
) -> None:
    name = served(server, saved)
    server.resets, server.breaks["model.safetensors"] = resets, breaks
    assert same(glasszoo.load_pretrained(name), model) and not server.breaks["model.safetensors"]
    ranges = [given for _, path, given in server.log if path.endswith("model.safetensors")]
    assert len(ranges) == breaks + 1 and (resets or ranges[-1].startswith("bytes="))


def test_half_a_file_from_the_web_is_not_kept(
    server: Server, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    name = served(server, saved)
    server.resets, server.breaks["model.safetensors"] = True, 3
    refused(name, "/web/leaf/model.safetensors cannot be fetched: ")
    assert cached(tmp_path) == {"README.md", "card.json", "config.json", "SHA256SUMS"}
    assert same(glasszoo.load_pretrained(name), model)


def test_a_file_that_is_not_there_is_named(server: Server, saved: Path) -> None:
    name = served(server, saved)
    del server.files["leaf/model.safetensors"]
    refused(name, "/web/leaf/model.safetensors cannot be fetched: .*404")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("", "needs the SHA-256 of its SHA256SUMS behind it, as https://HOST/FOLDER#sha256=HEX"),
        ("#sha256=12ab", "needs the SHA-256 of its SHA256SUMS behind it"),
        ("/model.pth#sha256=12ab", "is refused: .*model.pth is a pickle, which can run any code"),
        ("/leaf.zip#sha256=12ab", "is refused: .*leaf.zip is an archive, and none is ever unpacked"),
        ("/leaf.tar.gz", "leaf.tar.gz is an archive"),
        ("/../secret#sha256=12ab", "https://HOST/FOLDER#sha256=HEX expected"),
    ],
)
def test_an_address_that_is_not_pinned_or_no_folder_is_never_asked(
    ending: str, message: str, server: Server, saved: Path
) -> None:
    refused(serve(server, saved) + ending, message)
    assert not server.log


def test_other_hosts_need_encryption_and_an_address() -> None:
    refused(f"http://example.org/leaf#sha256={'0' * 64}", "http://example.org/leaf is not encrypted")
    refused("https://[leaf", "'https://.leaf' is no address")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sums: sums + "0" * 64 + "  prototypes/../../evil.png\n", "lists 'prototypes/../../evil.png', a name"),
        (lambda sums: sums + "0" * 64 + "  /etc/evil.png\n", "lists '/etc/evil.png', a name that leads out"),
        (lambda sums: sums.replace("config.json", "..\\\\config.json"), "a name that leads out of its folder"),
        (lambda sums: sums.replace("model.safetensors", "model.pth"), "model.safetensors is missing; model.pth is a p"),
        (lambda sums: sums.replace("model.safetensors", "model.tar"), "model.tar is an archive"),
        (lambda sums: "<html>not found</html>", "'<html>not found</html>' is no line of sha256sum's"),
    ],
)
def test_a_listing_that_leads_elsewhere_is_refused(
    change: Callable[[str], str], message: str, server: Server, saved: Path, tmp_path: Path
) -> None:
    pin(saved)
    content = change((saved / "SHA256SUMS").read_text())
    (saved / "SHA256SUMS").write_text(content)
    refused(f"{serve(server, saved)}#sha256={sha256(content.encode()).hexdigest()}", message)
    assert cached(tmp_path) == {"SHA256SUMS"} and not list(tmp_path.rglob("evil*"))


class Weave:
    """What W&B's server knows: artifacts by "ENTITY/PROJECT/NAME:ALIAS"."""

    def __init__(self, server: Server) -> None:
        self.server, self.artifacts = server, dict[str, wandb.Artifact]()
        self.is_reachable = True
        self.asked: list[str] = []

    def log(self, folder: Path, version: str) -> wandb.Artifact:
        artifact = Logged("leaf", folder, self.server, version)
        self.artifacts |= {f"zoo/leaves/leaf:{alias}": artifact for alias in (version, "latest")}
        return artifact

    def artifact(self, name: str) -> wandb.Artifact:
        self.asked.append(name)
        if not self.is_reachable:
            raise wandb.errors.CommError("Network error (ConnectTimeout)")
        if name not in self.artifacts:
            raise wandb.errors.CommError(f"artifact {name!r} not found")
        return self.artifacts[name]


@pytest.fixture
def weave(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weave:
    weave = Weave(server)
    monkeypatch.setattr(wandb, "Api", lambda: weave)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for folder in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / f"wandb_{folder}"))
    return weave


def test_wandb_gives_the_model_to_the_bit_and_offline_again(
    weave: Weave, saved: Path, model: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    weave.log(saved, "v0")
    assert same(glasszoo.load_pretrained(f"{WANDB}:latest"), model)
    weave.asked.clear()
    assert same(glasszoo.load_pretrained(f"{WANDB}:v0"), model) and not weave.asked
    weave.is_reachable = False
    assert same(open_model(f"{WANDB}:latest"), model) and weave.asked
    refused(f"{WANDB}:v1", "wandb:zoo/leaves/leaf:v1 cannot be found: Network error")
    weave.asked.clear()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert same(glasszoo.load_pretrained(f"{WANDB}:latest"), model)
    refused(f"{WANDB}:v1", "wandb:zoo/leaves/leaf:v1 is not in the cache, and WANDB_MODE=offline")
    assert not weave.asked


def test_an_alias_of_wandb_moves(weave: Weave, saved: Path, model: ImageClassifier) -> None:
    weave.log(saved, "v0")
    assert same(glasszoo.load_pretrained(f"{WANDB}:latest"), model)
    other = made(seed=1)
    save_pretrained(other, saved)
    weave.log(saved, "v1")
    assert same(glasszoo.load_pretrained(f"{WANDB}:latest"), other)
    assert same(glasszoo.load_pretrained(f"{WANDB}:v0"), model)


@pytest.mark.parametrize("resets", [False, True])
def test_a_download_from_wandb_that_breaks_off_is_tried_again(
    resets: bool, weave: Weave, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    weave.log(saved, "v0")
    weave.server.resets, weave.server.breaks["model.safetensors"] = resets, 3
    refused(f"{WANDB}:v0", "wandb:zoo/leaves/leaf:v0 cannot be fetched: ")
    assert not cached(tmp_path) and not weave.server.breaks["model.safetensors"]
    weave.server.breaks["model.safetensors"] = 2
    assert same(glasszoo.load_pretrained(f"{WANDB}:v0"), model)


def test_content_that_is_not_what_wandb_says_is_refused(
    weave: Weave, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    weave.log(saved, "v0")
    right = (saved / "model.safetensors").read_bytes()
    weave.server.lies["model.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])
    refused(f"{WANDB}:v0", "cannot be fetched: Digest mismatch for file: model.safetensors")
    assert not cached(tmp_path)
    weave.server.lies.clear()
    assert same(glasszoo.load_pretrained(f"{WANDB}:v0"), model)


@pytest.mark.parametrize("name", ["wandb:leaf", "wandb:zoo/leaves/leaf", "wandb:zoo/../leaf:v0", "wandb:a/b/c:../v0"])
def test_a_name_that_wandb_cannot_have_is_never_asked_for(name: str, weave: Weave) -> None:
    refused(name, "wandb:ENTITY/PROJECT/NAME:ALIAS expected")
    assert not weave.asked


def test_an_artifact_that_is_no_safe_checkpoint_is_not_fetched(weave: Weave, saved: Path) -> None:
    entries = weave.log(saved, "v0").manifest.entries
    entries["../evil"] = entries["README.md"]
    refused(f"{WANDB}:v0", "lists '../evil', a name that leads out of its folder")
    del entries["../evil"]
    entries["README.md"].ref = "file:///etc/hostname"
    refused(f"{WANDB}:v0", "holds README.md as a reference to file:///etc/hostname, which is not followed")
    entries["model.pth"] = entries.pop("model.safetensors")
    refused(f"{WANDB}:v0", "model.safetensors is missing; model.pth is a pickle")
    refused(f"{WANDB}:v9", "wandb:zoo/leaves/leaf:v9 cannot be found: artifact .* not found")
    assert not weave.server.log


def test_wandb_is_never_asked_for_a_key_at_a_terminal(tmp_path: Path) -> None:
    """Where none is known its client would ask, and wait."""
    pty = pytest.importorskip("pty", reason="terminals of Unix")
    screen, terminal = pty.openpty()
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    own |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "GLASSZOO_CACHE": str(tmp_path / "cache")}
    code = f"import glasszoo; glasszoo.load_pretrained({f'{WANDB}:best'!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=own, timeout=100
    )
    os.close(terminal), os.close(screen)
    assert b"InputError" in done.stderr and b"no API key of W&B is known" in done.stderr, done.stderr
