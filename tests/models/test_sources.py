"""Checkpoints in a folder and on the hub: fetched, cached, pushed, and refused with a reason."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants
from stand_ins import REPO, Server, made, refused, same, serving

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import ImageClassifier, open_model, push_to_hub, save_pretrained

HUB = f"hf-hub:{REPO}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The only hub that huggingface_hub knows, and an empty cache."""
    with serving() as server:
        # Read from the environment when the hub's client is imported, which is before this.
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which has its own servers
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 50_000]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cam_resnet18.r1_butterfly", "the nearest that come with glasszoo are"),
        ("hfhub:org/name", "did you mean hf-hub:ORG/NAME@REVISION"),
        ("localdir:runs", "did you mean local-dir:PATH"),
        ("resnet50.a1_in1k", "a name of timm's, for create_model"),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_all_sources(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint) as told:
        glasszoo.load_pretrained(name)
    for form in ("local-dir:PATH", "hf-hub:ORG/", "wandb:ENTITY/PROJECT/NAME:ALIAS", "https://HOST/FOLDER#sha256=HEX"):
        assert form in str(told.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "last.pt", "model.PKL", "epoch.ckpt"])
def test_a_pickle_is_refused_with_the_reason(name: str, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps({}))
    refused(f"local-dir:{saved}", f"model.safetensors is missing; {name} is a pickle, which can run any code")
    refused(f"local-dir:{saved / name}", f"no checkpoint: {name} is a pickle, which can run any code")


def test_a_pickle_beside_the_weights_is_not_opened(saved: Path, model: ImageClassifier) -> None:
    (saved / "training.pt").write_bytes(b"no pickle at all")
    (saved / "notes: .. and others").touch()
    assert same(glasszoo.load_pretrained(f"local-dir:{saved}"), model)


@pytest.mark.parametrize("format", ["zip", "gztar"])
def test_an_archive_is_refused(format: str, saved: Path) -> None:
    archive = shutil.make_archive(str(saved), format, saved)
    refused(f"local-dir:{archive}", "is an archive, and none is ever unpacked here")


def test_the_hub_gives_the_model_to_the_bit_and_offline_again(
    hub: Server, saved: Path, model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(
        content(saved)
        | {"training.pt": b"0", "prototypes/0.png": b"1", "explanation.png": b"3", "prototypes/0.pt": b"2"}
    )
    assert same(glasszoo.load_pretrained(HUB), model)
    fetched = {path.name for path in (tmp_path / "cache").glob("*/snapshots/*/**/*") if path.is_file()}
    assert fetched == {"README.md", "card.json", "config.json", "model.safetensors", "explanation.png", "0.png"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert same(glasszoo.load_pretrained(HUB), model) and same(open_model(HUB), model) and not hub.log
    refused("hf-hub:zoo/stone", "hf-hub:zoo/stone is not in the cache as a whole, and the hub cannot be reached")


def test_a_revision_is_pinned(hub: Server, saved: Path, model: ImageClassifier) -> None:
    first = hub.commit(content(saved))
    other = made(seed=1)
    save_pretrained(other, saved)
    second = hub.commit(content(saved), branch="next")
    assert same(glasszoo.load_pretrained(f"{HUB}@{first}"), model)
    assert same(glasszoo.load_pretrained(f"{HUB}@next"), other)
    assert same(glasszoo.load_pretrained(f"{HUB}@{second}"), other) and same(glasszoo.load_pretrained(HUB), model)


def test_what_the_hub_does_not_have_is_named(hub: Server, saved: Path) -> None:
    hub.commit(content(saved))
    refused(f"{HUB}@v9", "hf-hub:zoo/leaf has no revision 'v9'")
    refused("hf-hub:zoo/stone", "the hub has no repository 'zoo/stone', or it is private")
    hub.is_gated = True
    refused(HUB, "hf-hub:zoo/leaf asks for consent")


@pytest.mark.parametrize("name", ["hf-hub:leaf", "hf-hub:zoo/leaf@", "hf-hub:../leaf", "hf-hub:zoo/leaf@../../x"])
def test_a_name_that_the_hub_cannot_have_is_never_asked_for(name: str, hub: Server) -> None:
    refused(name, "hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION expected")
    assert not hub.log


def test_a_download_from_the_hub_that_breaks_off_is_continued(hub: Server, saved: Path, model: ImageClassifier) -> None:
    hub.commit(content(saved))
    hub.breaks["model.safetensors"] = 1
    assert same(glasszoo.load_pretrained(HUB), model)
    ranges = [given for method, path, given in hub.log if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] == "" and ranges[1].startswith("bytes=") and ranges[1] > "bytes=1" and len(ranges) == 2


def test_a_connection_that_is_reset_is_tried_again_and_leaves_no_half_file(
    hub: Server, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    hub.commit(content(saved))
    hub.resets, hub.breaks["model.safetensors"] = True, 3
    refused(HUB, "hf-hub:zoo/leaf cannot be fetched: .*; what has arrived as a whole is kept, so try again")
    assert not hub.breaks["model.safetensors"] and not weights_in(tmp_path / "cache")
    hub.breaks["model.safetensors"] = 2
    assert same(glasszoo.load_pretrained(HUB), model)


def test_half_a_checkpoint_in_the_cache_is_none(hub: Server, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit(content(saved))
    hub.resets, hub.breaks["model.safetensors"] = True, 3
    refused(HUB, "cannot be fetched")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(HUB, "not in the cache as a whole")


def test_content_that_is_not_what_the_hub_says_is_thrown_away(
    hub: Server, saved: Path, model: ImageClassifier, tmp_path: Path
) -> None:
    save_pretrained(made(seed=1), tmp_path / "other")
    lie = (tmp_path / "other" / "model.safetensors").read_bytes()
    hub.commit(content(saved))
    hub.lies["model.safetensors"] = lie
    assert len(lie) == (saved / "model.safetensors").stat().st_size
    refused(HUB, "model.safetensors arrived with the SHA-256 [0-9a-f]{64}, not .*: it was thrown away")
    assert not weights_in(tmp_path / "cache")
    hub.lies.clear()
    assert same(glasszoo.load_pretrained(HUB), model)


def test_a_pickle_on_the_hub_is_not_even_fetched(hub: Server, saved: Path) -> None:
    files = content(saved)
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.commit(files)
    refused(HUB, "hf-hub:zoo/leaf/model.safetensors is missing; pytorch_model.bin is a pickle")
    assert not any(path.endswith(".bin") for _, path, _ in hub.log)


def test_a_name_on_the_hub_that_leads_out_of_the_cache_is_refused(hub: Server, saved: Path, tmp_path: Path) -> None:
    hub.commit(content(saved) | {"prototypes/../../../../../evil.png": b"evil"})
    refused(HUB, r"hf-hub:zoo/leaf cannot be fetched: Invalid .*evil.png")
    assert not list(tmp_path.rglob("evil.png"))


def test_open_model_tells_our_repositories_from_timms(hub: Server, tmp_path: Path, saved: Path) -> None:
    hub.commit(content(saved), branch="ours")
    timm.models.save_for_hf(timm.create_model("test_resnet"), tmp_path / "timm", safe_serialization=True)
    files = content(tmp_path / "timm")
    config = json.loads(files["config.json"])
    config.pop("model_args", None)  # as timm wrote it until 1.0.30
    hub.commit(files | {"config.json": json.dumps(config).encode()})
    assert open_model(f"{HUB}@ours").class_names == ("leaf", "stone", "water")
    assert open_model(HUB).num_classes == 1000


def test_what_is_pushed_comes_back(hub: Server, saved: Path, model: ImageClassifier) -> None:
    (saved / "training.pt").write_bytes(b"never published")
    (saved / "prototypes").mkdir()
    (saved / "prototypes" / "0.png").write_bytes(b"old")
    before = push_to_hub(saved, REPO, token="hf_writer")
    (saved / "prototypes" / "0.png").rename(saved / "prototypes" / "1.png")
    name = push_to_hub(saved, REPO, token="hf_writer")
    assert name.startswith(f"{HUB}@") and name != before
    assert set(hub.commits[name.partition("@")[2]]) >= set(content(saved)) - {"training.pt"}
    assert not {"training.pt", "prototypes/0.png"} & set(hub.commits[name.partition("@")[2]])
    assert same(glasszoo.load_pretrained(name), model)


def test_a_push_that_the_hub_refuses_says_what_to_do(hub: Server, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be pushed to 'zoo/leaf': .*403.*\(a token that may write is needed"):
        push_to_hub(saved, REPO, token="hf_reader")
    (saved / "config.json").unlink()
    with pytest.raises(InputError, match="no checkpoint: .*config.json is missing"):
        push_to_hub(saved, REPO, token="hf_writer")
    assert not hub.commits
