"""The files that a checkpoint consists of, and those that are never opened."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..common.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
FACTS = "card.json"  # what the card tells, for programs
EXPLANATION = "explanation.png"  # the card's picture
PROTOTYPES = "prototypes.json"
PICTURES = "prototypes/*.png"
FILES = (CONFIG, WEIGHTS, CARD, FACTS, EXPLANATION, PROTOTYPES, PICTURES)

_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
_ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"}


def is_checkpoint_file(name: str) -> bool:
    """Whether `name`, relative and with slashes, is one of `FILES`; safe names only (see `check_names`)."""
    return any(fnmatchcase(name, pattern) for pattern in FILES)


def why_refused(name: str) -> str | None:
    """Why the file `name` is never opened; None if it may be."""
    suffix = PurePosixPath(name.lower()).suffix
    if suffix in _PICKLES:
        return f"{name} is a pickle, which can run any code once it is opened: export the weights to {WEIGHTS}"
    if suffix in _ARCHIVES:
        return f"{name} is an archive, and none is ever unpacked here: publish the checkpoint's files in a folder"
    return None


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a listing, relative and with slashes, that names something outside its folder.

    Raises:
        InputError: It does; the name is given.
    """
    for name in names:
        if not name or "\\" in name or re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/"):
            raise InputError(f"{where} lists {name!r}, a name that leads out of its folder: nothing of it is loaded")


def check_complete(names: Iterable[str], where: str) -> None:
    """Hold a listing against what a checkpoint has to hold.

    Raises:
        InputError: No configuration or no weights, and why what is there instead is not opened.
    """
    names = sorted(names)
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            reasons = [why_refused(name) for name in names if WEIGHTS not in names]
            reason = next(filter(None, reasons), None)
            raise InputError(f"no checkpoint: {where}/{needed} is missing{f'; {reason}' if reason else ''}")


def check_folder(folder: Path) -> None:
    """Hold a folder here against what a checkpoint has to hold, as `check_complete`."""
    check_complete([path.name for path in folder.iterdir()] if folder.is_dir() else [], str(folder))
