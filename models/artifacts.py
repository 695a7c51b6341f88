"""Checkpoints among the artifacts of Weights & Biases."""

import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.fetching import cache_folder, one_line, patiently
from ..common.files import write_text
from .layout import check_complete, check_names

_NAME = re.compile(r"wandb:([\w.-]+)/([\w.-]+)/([\w.-]+):([\w.-]+)", re.ASCII)


def artifact_name(name: str) -> str:
    """`name` as an artifact can be called: other characters than letters, digits, "_", "." and "-" become "-"."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-") or "model"


def from_wandb(name: str) -> Path:
    """The folder of "wandb:ENTITY/PROJECT/NAME:ALIAS", whose alias is a version ("v3") or moves ("latest").

    W&B's own client fetches and verifies the files. A version that was fetched once needs no network again; an alias
    then means the version it meant last (with WANDB_MODE=offline at once).

    Raises:
        InputError: No such artifact, no access, no network, files that are not what W&B says, or no checkpoint.
    """
    match = _NAME.fullmatch(name)
    if match is None or any(set(part) == {"."} for part in match.groups()):
        raise InputError(f"{name!r}: wandb:ENTITY/PROJECT/NAME:ALIAS expected")
    *collection, alias = match.groups()
    versions = cache_folder().joinpath("wandb", *collection)
    known = _known(versions, alias)
    if known and (_is_version(alias) or os.environ.get("WANDB_MODE") == "offline"):
        return known
    try:
        artifact = _artifact(name)
    except InputError:
        if known:
            return known
        raise
    version = str(artifact.version)
    folder = versions / version
    if not folder.is_dir():
        _fetch(artifact, folder, name)
    if not _is_version(alias):
        write_text(versions / "aliases" / alias, version)
    return folder


def _is_version(alias: str) -> bool:
    return re.fullmatch(r"v\d+", alias) is not None


def _known(versions: Path, alias: str) -> Path | None:
    """The folder of what `alias` meant when it was last fetched."""
    noted = versions / "aliases" / alias
    version = alias if _is_version(alias) else noted.read_text(encoding="utf-8") if noted.is_file() else None
    folder = versions / version if version else None
    return folder if folder and folder.is_dir() else None


def _artifact(name: str) -> Any:
    """W&B's description of the artifact, nothing of it fetched yet."""
    if os.environ.get("WANDB_MODE") == "offline":
        raise InputError(f"{name} is not in the cache, and WANDB_MODE=offline forbids to fetch it")
    import wandb

    try:
        # Without a key the client would ask for one at a terminal.
        if not wandb.login(prompt=False, verify=False):
            raise InputError(f"{name} cannot be found: no API key of W&B is known; `wandb login` stores one")
        return wandb.Api().artifact(name.removeprefix("wandb:"))
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise InputError(f"{name} cannot be found: {one_line(error)}") from error


def _fetch(artifact: Any, folder: Path, name: str) -> None:
    """Download into a folder that gets its name when all is there and verified."""
    import wandb

    entries = artifact.manifest.entries
    check_names(entries, name)
    check_complete(entries, name)
    for path, entry in entries.items():
        if entry.ref is not None:
            raise InputError(f"{name} holds {path} as a reference to {entry.ref}, which is not followed: log the file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        arrived = Path(temporary) / folder.name
        try:
            # W&B's own cache would keep a file under the hash that it should have, and give it out again.
            patiently(partial(artifact.download, root=str(arrived), skip_cache=True), OSError)
            artifact.verify(root=str(arrived))
        except (wandb.errors.Error, ValueError, OSError) as error:
            raise InputError(f"{name} cannot be fetched: {one_line(error)}") from error
        try:
            arrived.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
