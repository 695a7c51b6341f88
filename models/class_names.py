"""The names of a timm classifier's classes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

_LABELS = "labels.txt"
_IMAGENET = re.compile(r"(?:^|_)in(?:1k|12k|21k|22k)(?:$|_)")  # in a tag: what the weights were last trained on


def timm_class_names(pretrained_cfg: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """The names of the classes of the weights that timm describes so, in their order; None where nothing tells them.

    Their own `label_names` first, by their `label_descriptions` where these say more (WordNet's numbers say little);
    then the lines of labels.txt, where that lies beside weights in a folder; then ImageNet's, where the tag says
    ImageNet ("a1_in1k") and the number of classes is that of the weights and of one of its subsets. A list of another
    length than `num_classes` belongs to other weights.
    """
    own = _label_names(pretrained_cfg) or _beside_weights(pretrained_cfg)
    if own:
        return own if len(own) == num_classes else None
    is_theirs = pretrained_cfg.get("num_classes") == num_classes
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset and is_theirs and _IMAGENET.search(pretrained_cfg.get("tag") or ""):
        return tuple(ImageNetInfo(subset).label_descriptions())
    return None


def _label_names(pretrained_cfg: Mapping[str, Any]) -> tuple[str, ...]:
    names: Any = pretrained_cfg.get("label_names") or ()
    if isinstance(names, Mapping):  # class number → name
        names = [names[number] for number in sorted(names, key=int)]
    told = pretrained_cfg.get("label_descriptions") or {}
    return tuple(str(told.get(name, name)) for name in names)


def _beside_weights(pretrained_cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """The lines of labels.txt in the folder of "local-dir:PATH", as Coral's and other weights come with it."""
    if pretrained_cfg.get("source") != "local-dir":
        return ()
    path = Path(pretrained_cfg["file"]) / _LABELS
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
