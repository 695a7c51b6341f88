"""Writing a data set as shards, the tar files that `Shards` and WebDataset read."""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from ..common.errors import InputError
from ..common.files import check_vacant, clear_temporaries, replacing, write_text
from ..common.seeds import mixed_seed
from .samples import ImageDataset, Sample, Unreadable, targets_of
from .shard_folder import INFO_FILE
from .shard_index import INDEX, INDEX_FILE
from .shards import CLASSES_FILE, TARGETS_FILE

_PLAN = "plan.json"  # what was asked for, while shards are being written
_TAKEN_AS_THEY_ARE = ("jpg", "jpeg", "png", "webp")


class Written(NamedTuple):
    """What `write_shards` wrote."""

    folder: Path  # of the split
    images: int
    shards: int
    left_out: int  # images that cannot be read


def write_shards(
    dataset: ImageDataset,
    folder: str | Path,
    split: str,
    images_per_shard: int = 1000,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Written:
    """Write `dataset` as `folder/SPLIT/shard-000000.tar` and so on.

    Beside the tar files lies index.npy, which says where each sample is; in `folder` lie classes.json and info.json,
    which names the shards of each split (timm's reader of WebDataset opens them by it).

    Images come in an order shuffled by `seed`, so that all shards are alike. One sample is in memory at a time. Where
    the data set names image files (`image_file`), their bytes are kept; other images become PNG, without loss.
    The split's folder appears when it is complete; until then its shards are in `folder/.SPLIT.partial`, where the same
    call goes on after it was broken off. `skip_unreadable`: leave out images that cannot be read, and say which.

    Raises:
        InputError: The split's folder holds something, another process is writing it, another call began to write it,
            `folder` has other classes, or an image cannot be read.
    """
    folder = Path(folder).expanduser()
    if images_per_shard < 1:
        raise InputError(f"images_per_shard must be at least 1, got {images_per_shard}")
    if split != Path(split).name:
        raise InputError(f"a split's name is that of a folder, not {split!r}")
    about = _about(dataset)
    _check_classes(folder, about)
    with _alone(folder, split) as partial:
        check_vacant(folder / split)
        _check_plan(partial, {"images_per_shard": images_per_shard, "seed": seed, "data": _digest(dataset)})
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(mixed_seed(seed)))
        written = _write_all(dataset, order, partial, images_per_shard, skip_unreadable)
        _save_lists(dataset, partial, written)
        with FileLock(folder / ".shards.lock"):  # other splits are written at the same time
            _check_classes(folder, about)
            write_text(folder / CLASSES_FILE, json.dumps(about, indent=1, ensure_ascii=False))
            _list_shards(folder, split, written)
        partial.replace(folder / split)
        # Last: without the plan, shards of another one could be taken for this one's.
        for path in [*(folder / split).glob("*.npz"), folder / split / _PLAN]:
            path.unlink()
    images = sum(len(places) for _, places in written)
    return Written(folder / split, images, len(written), len(dataset) - images)


@contextmanager
def _alone(folder: Path, split: str) -> Iterator[Path]:
    """The folder in which a split is written, for one process at a time; if no shard is whole it is removed."""
    partial, lock = folder / f".{split}.partial", folder / f".{split}.lock"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield partial
            finally:
                if not any(partial.glob("*.tar")):
                    shutil.rmtree(partial, ignore_errors=True)
                with suppress(OSError):  # Windows removes no file that is open
                    lock.unlink()
    except Timeout:
        raise InputError(f"another process is writing {folder / split}") from None


Shard = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # its rows of the index, and the samples' places in the data


def _check_plan(partial: Path, plan: dict[str, Any]) -> None:
    """Shards that are there already must be those that this call would write."""
    path, text = partial / _PLAN, json.dumps(plan)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{partial} was begun with other data or options: remove it, or give the same again")
    clear_temporaries(partial)
    write_text(path, text)


def _check_classes(folder: Path, about: dict[str, Any]) -> None:
    known = folder / CLASSES_FILE
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")).get("classes") != about["classes"]:
        raise InputError(f"{known} names other classes than the data set has: name a new folder")


def _digest(dataset: ImageDataset) -> str:
    """Differs between data sets of other classes, labels, or another first image."""
    known = hashlib.sha256(json.dumps(list(dataset.classes)).encode() + dataset.labels.numpy().tobytes())
    first = dataset[0] if len(dataset) else None
    if isinstance(first, dict):
        for content in _members(dataset, 0, first, int(dataset.groups[0])).values():
            known.update(content)
    return known.hexdigest()


def _write_all(
    dataset: ImageDataset, order: torch.Tensor, partial: Path, images_per_shard: int, skip_unreadable: bool
) -> list[Shard]:
    """Every shard that is not there yet; what is known of all."""
    written = []
    with tqdm(total=len(dataset), desc="shards", unit="image", leave=False) as bar:
        for shard, chosen in enumerate(order.split(images_per_shard)):
            path = partial / f"shard-{shard:06d}.npz"
            if not path.is_file():
                tar = path.with_suffix(".tar")
                rows, places = _write_shard(
                    dataset, chosen.tolist(), tar, shard, shard * images_per_shard, skip_unreadable
                )
                # Written last: a tar file without it is written again.
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, rows=rows, places=places)
            with np.load(path) as known:
                written.append((known["rows"], known["places"]))
            bar.update(len(chosen))
    return written


def _save_lists(dataset: ImageDataset, partial: Path, written: list[Shard]) -> None:
    """One index, and one list of targets, of all shards."""
    _save(partial / INDEX_FILE, np.concatenate([rows for rows, _ in written]))
    if (targets := targets_of(dataset)) is not None:
        places = torch.from_numpy(np.concatenate([places for _, places in written]))
        _save(partial / TARGETS_FILE, targets[places].to(torch.uint8).numpy())


def _list_shards(folder: Path, split: str, written: list[Shard]) -> None:
    """Add the split to info.json."""
    path = folder / INFO_FILE
    info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lengths = [len(rows) for rows, _ in written]
    info.setdefault("splits", {})[split] = {
        "name": split,
        "num_samples": sum(lengths),
        "filenames": [f"{split}/shard-{shard:06d}.tar" for shard in range(len(lengths))],
        "shard_lengths": lengths,
    }
    write_text(path, json.dumps(info, indent=1))


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _write_shard(
    dataset: ImageDataset, chosen: list[int], path: Path, shard: int, first: int, skip_unreadable: bool
) -> Shard:
    """One tar file of the samples at `chosen`, whose keys count from `first` on."""
    rows, places = [], []
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, place in enumerate(chosen, first):
            sample = dataset[place]
            if isinstance(sample, Unreadable):
                if not skip_unreadable:
                    raise InputError(f"{sample.reason} (--skip-unreadable leaves such images out)")
                tqdm.write(f"left out: {sample.reason}", file=sys.stderr)
                continue
            group = int(dataset.groups[place])
            begin = tar.offset
            for extension, content in _members(dataset, place, sample, group).items():
                member = tarfile.TarInfo(f"{key:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
            rows.append((shard, begin, tar.offset - begin, sample["label"], group))
            places.append(place)
    return np.array(rows, INDEX), np.array(places, np.int64)


def _members(dataset: ImageDataset, position: int, sample: Sample, group: int) -> dict[str, bytes]:
    """What a sample is in a shard: content by extension."""
    find_file = getattr(dataset, "image_file", None)
    file: Path | None = find_file(position) if find_file else None
    kind = file.suffix.lower().removeprefix(".") if file else "png"
    if file is not None and kind in _TAKEN_AS_THEY_ARE:
        members = {kind: file.read_bytes()}
    else:
        image = sample["image"]
        members = {"png": _png(image if isinstance(image, Image.Image) else to_pil_image(image))}
    members["cls"] = str(sample["label"]).encode()
    about: dict[str, Any] = {"id": sample["id"], "label": sample["label"], "group": group}
    for key in ("boxes", "points", "targets"):
        if key in sample:
            # JSON has no NaN, which a point that is not visible is made of.
            about[key] = _without_nan(torch.as_tensor(dict(sample)[key]).tolist())
    members["json"] = json.dumps(about, allow_nan=False, ensure_ascii=False).encode()
    if "mask" in sample:
        members["mask.png"] = _png(Image.fromarray(np.asarray(sample["mask"])))
    return members


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if value != value else value


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # half the time of the default for a tenth more bytes
    return buffer.getvalue()


def _about(dataset: ImageDataset) -> dict[str, Any]:
    about: dict[str, Any] = {"classes": list(dataset.classes)}
    for key in ("part_names", "license", "description"):
        if known := getattr(dataset, key, None):
            about[key] = known if isinstance(known, str) else list(known)
    return about
