"""Writing a data set as shards, the tar files that `Shards` and WebDataset read."""

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from ..common.errors import InputError
from ..common.files import check_vacant, replacing, write_text
from ..common.seeds import mixed_seed
from .samples import ImageDataset, Sample, Unreadable, targets_of
from .shards import CLASSES_FILE, INDEX, INDEX_FILE, TARGETS_FILE

_TAKEN_AS_THEY_ARE = ("jpg", "jpeg", "png", "webp")


def write_shards(
    dataset: ImageDataset, folder: str | Path, split: str, images_per_shard: int = 1000, seed: int = 0
) -> Path:
    """Write `dataset` as `folder/SPLIT/shard-000000.tar` and so on; hands back that folder.

    Beside the tar files lies index.npy, which says where each sample is; in `folder` lies classes.json.

    Images come in an order shuffled by `seed`, so that all shards are alike. One sample is in memory at a time. Where
    the data set names image files (`image_file`), their bytes are kept; other images become PNG, without loss.
    The split's folder appears when it is complete.

    Raises:
        InputError: The split's folder holds something, `folder` has other classes, or an image cannot be read.
    """
    folder = Path(folder).expanduser()
    if images_per_shard < 1:
        raise InputError(f"images_per_shard must be at least 1, got {images_per_shard}")
    if split != Path(split).name:
        raise InputError(f"a split's name is that of a folder, not {split!r}")
    check_vacant(folder / split)
    about = _about(dataset)
    known = folder / CLASSES_FILE
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")).get("classes") != about["classes"]:
        raise InputError(f"{known} names other classes than the data set has: name a new folder")
    partial = folder / f".{split}.partial"
    if partial.exists():
        raise InputError(f"{partial} is left from a run that was broken off, or that still goes on: remove it")
    partial.mkdir(parents=True)
    try:
        generator = torch.Generator().manual_seed(mixed_seed(seed))
        order = torch.randperm(len(dataset), generator=generator)
        index = np.zeros(len(dataset), INDEX)
        with tqdm(total=len(dataset), desc="shards", unit="image", leave=False) as bar:
            for shard, start in enumerate(range(0, len(dataset), images_per_shard)):
                chosen = order[start : start + images_per_shard].tolist()
                _write_shard(dataset, chosen, partial, shard, index[start : start + len(chosen)], start, bar)
        _save(partial / INDEX_FILE, index)
        if (targets := targets_of(dataset)) is not None:
            _save(partial / TARGETS_FILE, targets[order].to(torch.uint8).numpy())
        write_text(known, json.dumps(about, indent=1, ensure_ascii=False))
        partial.replace(folder / split)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / split


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _write_shard(
    dataset: ImageDataset, chosen: list[int], folder: Path, shard: int, rows: np.ndarray[Any, Any], first: int, bar: Any
) -> None:
    """One tar file of the samples at `chosen`, whose `rows` of the index are filled in."""
    with (
        replacing(folder / f"shard-{shard:06d}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row, position in enumerate(chosen):
            sample = dataset[position]
            if isinstance(sample, Unreadable):
                raise InputError(f"{sample.reason} (shards are written of readable images only)")
            group = int(dataset.groups[position])
            begin = tar.offset
            for extension, content in _members(dataset, position, sample, group).items():
                member = tarfile.TarInfo(f"{first + row:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
            rows[row] = (shard, begin, tar.offset - begin, sample["label"], group)
            bar.update()


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
