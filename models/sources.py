"""Where checkpoints come from: a name with a prefix becomes a local folder, whatever it takes to fetch it.

Each source is a function in `_SOURCES`; names of checkpoints that come with glasszoo are looked up before these.
What is fetched is kept, and found again without a network. Only safetensors are loaded: no pickle, no archive.
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from timm.models import is_model

from ..common.errors import InputError
from .artifacts import from_wandb
from .hub import from_hub
from .layout import check_folder, why_refused
from .released import list_pretrained, released_folder
from .web import from_web


def from_folder(name: str) -> Path:
    """The folder of "local-dir:PATH".

    Raises:
        InputError: It is not there, is no folder, or holds no checkpoint.
    """
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_file():
        reason = why_refused(folder.name) or f"{folder.name} is a file: name the checkpoint's folder"
        raise InputError(f"no checkpoint: {reason}")
    check_folder(folder)
    return folder


class Source(NamedTuple):
    """A kind of place that checkpoints come from."""

    form: str  # what to write
    find: Callable[[str], Path]  # name → folder that holds config.json and model.safetensors


_SOURCES = {
    "local-dir:": Source("local-dir:PATH", from_folder),
    "hf-hub:": Source("hf-hub:ORG/NAME@REVISION", from_hub),
    "wandb:": Source("wandb:ENTITY/PROJECT/NAME:ALIAS", from_wandb),
    "https://": Source("https://HOST/FOLDER#sha256=HEX", from_web),
    "http://": Source("https://HOST/FOLDER#sha256=HEX", from_web),  # refused, but for this machine's own servers
}


def resolve(name: str) -> Path:
    """The local folder of the checkpoint `name`, fetched if it has to be.

    Raises:
        InputError: No such source, or the source says why there is no checkpoint.
    """
    if name in list_pretrained():
        return released_folder(name)
    for prefix, source in _SOURCES.items():
        if name.startswith(prefix):
            return source.find(name)
    raise _unknown(name)


def _unknown(name: str) -> InputError:
    forms = ", ".join(dict.fromkeys(source.form for source in _SOURCES.values()))
    near = get_close_matches(f"{name.partition(':')[0]}:".casefold(), _SOURCES, n=1) if ":" in name else []
    if Path(name).is_dir():
        hint = f"for a folder say local-dir:{name}"
    elif near:
        hint = f"did you mean {_SOURCES[near[0]].form}?"
    elif is_model(name.partition(".")[0]):
        hint = "that is a name of timm's, for create_model(NAME, pretrained=True)"
    else:
        shipped = list_pretrained()
        likely = get_close_matches(name.casefold(), shipped, n=3, cutoff=0.3) or shipped
        hint = f"the nearest that come with glasszoo are {', '.join(likely[:3])}"
    return InputError(f"unknown checkpoint {name!r}: {hint} (checkpoints come from {forms})")
