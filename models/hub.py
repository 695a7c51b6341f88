"""Checkpoints on the Hugging Face hub: fetched to the hub's own cache, and pushed."""

import os
import re
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..common.errors import InputError
from ..common.fetching import HTTPError, one_line, patiently, sha256
from .layout import (
    CONFIG,
    EXPLANATION,
    FACTS,
    FILES,
    PICTURES,
    PROTOTYPES,
    WEIGHTS,
    check_complete,
    check_folder,
)

_NAME = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def from_hub(name: str) -> Path:
    """The folder of "hf-hub:ORG/NAME" or "hf-hub:ORG/NAME@REVISION" (branch, tag or commit; default: main).

    huggingface_hub does the work: HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they mean there. A
    download that breaks off is continued; without a network what was fetched before is found again.

    Raises:
        InputError: No such repository or revision, no access, no network, or no checkpoint.
    """
    repo, revision = _parsed(name)
    try:
        fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=list(FILES))
        folder = Path(patiently(fetch, HTTPError))
    except (HTTPError, OSError, ValueError) as error:
        raise _explained(error, name) from error
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        check_complete(_listing(repo, revision, folder), name)
        raise InputError(f"{name} has not arrived as a whole: try again with a network")
    _check_content(folder / WEIGHTS, name)
    return folder


def hub_config(name: str) -> Path | None:
    """The configuration of "hf-hub:…" alone, to see whose checkpoint it is; None if there is none.

    Raises:
        InputError: No such repository or revision, no access, or no network.
    """
    repo, revision = _parsed(name)
    try:
        return Path(hf_hub_download(repo, CONFIG, revision=revision))
    except LocalEntryNotFoundError as error:
        raise _explained(error, name) from error
    except EntryNotFoundError:
        return None
    except (HTTPError, OSError, ValueError) as error:
        raise _explained(error, name) from error


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload a glasszoo checkpoint",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Push the checkpoint in `folder` to the hub; returns its name for `load_pretrained`, pinned to the new commit.

    Only a checkpoint's own files are pushed, as they are: look at the folder before. For images that must stay private
    let `evaluation.publish(…, prototypes="withheld")` write it, since `save_pretrained` names the image of each
    prototype. Prototypes and the picture of an earlier push are removed, but stay in the repository's history.

    Args:
        folder: What `save_pretrained` or `publish` wrote.
        repo_id: "ORG/NAME"; made if it is not there.
        private: Whether a new repository is to be seen by its owners alone.
        message: Of the commit.
        token: A token that may write; default: that of `hf auth login` or HF_TOKEN.
        endpoint: The hub's address; default: HF_ENDPOINT.

    Raises:
        InputError: `folder` holds no checkpoint, or the hub refuses.
    """
    folder = Path(folder)
    check_folder(folder)
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            allow_patterns=list(FILES),
            delete_patterns=[FACTS, EXPLANATION, PROTOTYPES, PICTURES],
        )
    except (HTTPError, OSError, ValueError) as error:
        hint = " (a token that may write is needed: hf auth login)" if _status(error) in (401, 403) else ""
        raise InputError(f"{folder} cannot be pushed to {repo_id!r}: {one_line(error)}{hint}") from error
    return f"hf-hub:{repo_id}@{commit.oid}"


def _parsed(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise InputError(f"{name!r}: hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION expected")
    return match[1], match[2]


def _explained(error: Exception, name: str) -> InputError:
    """What huggingface_hub's `error` means to who asked for `name`."""
    repo, revision = _parsed(name)
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"hf-hub:{repo} has no revision {revision or 'main'!r}")
    if isinstance(error, GatedRepoError):
        return InputError(f"{name} asks for consent: give it on the repository's page, then log in (hf auth login)")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"the hub has no repository {repo!r}, or it is private: then log in (hf auth login)")
    if isinstance(error, LocalEntryNotFoundError):
        return InputError(
            f"{name} is not in the cache as a whole, and the hub cannot be reached (no network, or HF_HUB_OFFLINE)"
        )
    hint = "" if isinstance(error, ValueError) else "; what has arrived as a whole is kept, so try again"
    return InputError(f"{name} cannot be fetched: {one_line(error)}{hint}")


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _listing(repo: str, revision: str | None, folder: Path) -> list[str]:
    """All files of the repository, or what was fetched where the hub cannot be asked."""
    try:
        return HfApi().list_repo_files(repo, revision=revision)
    except (HTTPError, OSError, ValueError):
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _check_content(path: Path, name: str) -> None:
    """Hold a fetched file against its SHA-256, which the hub's cache has as the name of what `path` links to.

    The hub's client compares sizes only. Where the cache has no links (Windows), or the file is so small that git
    holds it, there is nothing to compare with.
    """
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and (found := sha256(path)) != blob.name:
        path.unlink()
        blob.unlink()
        raise InputError(f"{name}: {path.name} arrived with the SHA-256 {found}, not {blob.name}: it was thrown away")
