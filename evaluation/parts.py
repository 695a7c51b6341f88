"""What each batch of an evaluation gave: a killed run goes on where it was, several processes share the work."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed
from tqdm import tqdm

from ..common.errors import InputError
from ..common.files import replacing
from ..common.processes import is_first, is_shared, joint_list, own_place
from ..data.loading import Loader, OnError, dead_readers_told
from ..data.samples import Batch, ImageDataset
from ..data.subsets import Subset
from ..models import ImageClassifier


@dataclass(frozen=True)
class Part:
    """What one batch gave."""

    ids: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)  # an entry an image, along the first dimension
    about: dict[str, Any] = field(default_factory=dict)  # plain values


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    batch_size: int = 32
    num_workers: int = 0
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")


def worked_through(
    work: Callable[[Batch], Part],
    model: ImageClassifier,
    dataset: ImageDataset,
    places: Sequence[int],
    reading: Reading,
    *,
    title: str,
    store: Path | None = None,
    progress: bool = True,
) -> tuple[list[Part], dict[str, str]]:
    """The part of each batch of `dataset` at `places`, in order, and what could not be read (id → a sentence).

    Under torch.distributed each process works on its share of the batches, and all get all of them.

    Args:
        work: Makes the part of a batch.
        model: Whose preprocessing the images go through.
        dataset: Stored images.
        places: Which of them, in this order.
        reading: How they are read.
        title: What the bar says, and the name of the parts' folder.
        store: A folder that keeps finished parts; those found there are not made again.
        progress: Show a bar.

    Raises:
        InputError: An unreadable image, unless `reading` says to skip them.
    """
    size = reading.batch_size
    count = -(-len(places) // size)
    rank, processes = own_place()
    own = range(rank, count, processes)
    files = {number: store / title / f"{number:06}.safetensors" for number in own} if store else {}
    parts = {number: part for number, path in files.items() if (part := read_part(path))}
    if missing := [number for number in own if number not in parts]:
        wanted = [place for number in missing for place in places[number * size : (number + 1) * size]]
        loader = Loader(
            Subset(dataset, wanted),
            model.preprocess,
            size,
            num_workers=reading.num_workers,
            on_error=reading.on_error,
        )
        bar = tqdm(
            total=count, initial=count - len(missing), desc=title, unit="batch", disable=not progress or rank > 0
        )
        with bar, dead_readers_told():
            for number, batch in zip(missing, loader.batches(), strict=True):
                part = work(batch) if batch.ids else Part([])
                unreadable = {missing.id: missing.reason for missing in batch.unreadable}
                parts[number] = Part(part.ids, part.tensors, part.about | {"unreadable": unreadable})
                if store:
                    write_part(parts[number], files[number])
                bar.update()
    everyones = {number: part for of_one in joint_list(parts) for number, part in of_one.items()}
    ordered = [part for _, part in sorted(everyones.items())]
    unreadable = {identifier: reason for part in ordered for identifier, reason in part.about["unreadable"].items()}
    return [part for part in ordered if part.ids], unreadable


def joined(parts: Sequence[Part]) -> dict[str, Tensor]:
    """The tensors of all parts, images after images."""
    return {name: torch.cat([part.tensors[name] for part in parts]) for name in (parts[0].tensors if parts else ())}


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, handed to all."""
    if not is_shared():
        return make()
    holder = [make() if is_first() else None]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def forget(store: Path) -> None:
    """Remove kept parts: they have become results."""
    if is_first():
        shutil.rmtree(store, ignore_errors=True)


def write_part(part: Part, path: Path) -> None:
    """Keep a part as a file of safetensors, in one step."""
    told = json.dumps({"ids": part.ids, "about": part.about})
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in part.tensors.items()}, temporary, {"part": told})


def read_part(path: Path) -> Part | None:
    """The kept part; None where there is none, or a broken file."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["part"])
            names = file.keys()
            return Part(told["ids"], {name: file.get_tensor(name) for name in names}, told["about"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None
