"""Which architectures of the installed timm are CNNs, by examining each of them once and remembering it.

The criterion (`anatomy.examine`): features that are a 4-D map which follows the image's size, and no attention and no
recurrence on the way. Attention is a matrix product of two tensors made from the image, but for one that ends in a
single vector: that is a weighted mean over the image, which gates channels as squeeze-and-excitation does and mixes no
two cells (global context, and what MobileViT v2 and SwiftFormer call attention). `grid.sees_whole_image` tells both.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models import model_entrypoint
from tqdm import tqdm

from ..common.errors import unknown_name
from ..common.fetching import cache_folder
from ..common.files import write_text
from .anatomy import NotConvolutional, examine


@dataclass(frozen=True)
class BackboneFacts:
    """What is known of an architecture before any weight exists."""

    name: str
    family: str
    num_features: int  # channels of its map
    reduction: int  # pixels a cell
    receptive_field: tuple[int, int] | None  # height, width in pixels; None where it could not be followed
    sees_whole_image: bool | None
    pretrained: tuple[str, ...]  # timm's tags


def list_backbones(pattern: str = "*", family: str | None = None) -> list[str]:
    """Timm's CNNs whose name matches `pattern` (fnmatch), of one `family` if that is given.

    Each is examined once, in about a third of a second, and remembered in the cache (GLASSZOO_CACHE) for this version
    of timm.

    Raises:
        InputError: No such family; the nearest are listed.
    """
    names = timm.list_models(pattern)
    if family is not None:
        families = {name: family_of(name) for name in timm.list_models()}
        if family not in families.values():
            raise unknown_name("family", family, set(families.values()))
        names = [name for name in names if families[name] == family]
    return _convolutional(names)


def list_families(pattern: str = "*") -> list[str]:
    """The families that timm's CNNs whose name matches `pattern` belong to, sorted."""
    return sorted({family_of(name) for name in list_backbones(pattern)})


def family_of(name: str) -> str:
    """The module of timm that builds `name`: "resnet", "convnext", …"""
    return model_entrypoint(name).__module__.rpartition(".")[2]


def facts_of(name: str) -> BackboneFacts:
    """What is known of the CNN `name`, a name of timm's without tag.

    Raises:
        NotConvolutional: It is no CNN.
    """
    anatomy = examine(name)
    grid = anatomy.grid
    tags = tuple(known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*"))
    return BackboneFacts(
        name,
        family_of(name),
        anatomy.num_features,
        anatomy.reduction,
        None if grid is None else grid.receptive_field,
        None if grid is None else grid.sees_whole_image,
        tags,
    )


def is_convolutional(architecture: str) -> bool:
    """Whether `architecture` is a CNN."""
    try:
        examine(architecture)
    except NotConvolutional:
        return False
    return True


def _convolutional(names: Iterable[str]) -> list[str]:
    """Those of `names` that are CNNs; what is found out is remembered."""
    path = _remembered_in()
    verdicts: dict[str, bool] = {}
    with suppress(OSError, ValueError):
        verdicts = json.loads(path.read_text(encoding="utf-8"))
    names = list(names)
    if unseen := [name for name in names if name not in verdicts]:
        for name in tqdm(unseen, "examining architectures", leave=False, disable=len(unseen) < 20 or None):
            verdicts[name] = is_convolutional(name)
        with suppress(OSError):  # a home that cannot be written to is no reason to fail
            write_text(path, json.dumps(verdicts))
    return [name for name in names if verdicts[name]]


def _remembered_in() -> Path:
    """The file of verdicts, for this version of timm and of the criterion."""
    sources = [Path(__file__).with_name(name).read_bytes() for name in ("anatomy.py", "tracing.py")]
    criterion = hashlib.sha256(b"".join(sources)).hexdigest()[:8]
    return cache_folder() / f"backbones-timm{timm.__version__}-{criterion}.json"
