"""Weights trained elsewhere: the state dict of the original ProtoPNet as a model of ours, with the same logits.

The original (Chen et al., NeurIPS 2019; github.com/cfchen-duke/ProtoPNet) names its weights so, for P prototypes of D
channels, C classes and a backbone of F channels:

    features.…                    the backbone without its classifier, named as in torchvision, and so in timm
    add_on_layers.0, .2           two 1×1 convolutions, weight and bias, F → D → D; then a sigmoid
    prototype_vectors   p d 1 1   become head.prototypes `p d`
    ones                p d 1 1   nothing but 1, an aid of its distances; checked and left out
    last_layer.weight   c p       becomes head.connection.weight, of either sign; there is no bias

Whose prototypes are whose (`prototype_class_identity`) is no weight there, so a state dict leaves it out: they stand in
the order of their classes, as many for each, until prototypes are pruned.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from ..common.errors import InputError, unknown_name
from .checkpoint import check_fit
from .classifier import ImageClassifier
from .config import BackboneWeights, ModelConfig
from .factory import build_model
from .preprocessing import Preprocessing

# The original's backbones; timm has all of them under the same names, with the same features.
PROTOPNET_BACKBONES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)
PROTOPNET_PREPROCESSING = Preprocessing((3, 224, 224), interpolation="bilinear", crop_pct=1.0, crop_mode="squash")
_OPTIONS = {"similarity": "l2", "connection": "signed", "epsilon": 1e-4}  # of the head
_PREFIXES = {"backbone.network.": "features.", "head.add_on.": "add_on_layers."}  # ours: the original's
_ASK = "give prototype_classes, the class of each (in the original: ppnet.prototype_class_identity.argmax(1))"


def from_protopnet(
    source: Mapping[str, Tensor] | str | os.PathLike[str],
    backbone: str,
    *,
    prototype_classes: Sequence[int] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing = PROTOPNET_PREPROCESSING,
) -> ImageClassifier:
    """The model of an original ProtoPNet's state dict, in eval mode: the same logits, to float rounding.

    The original saves whole models, pickles that run code when they are opened, and only with its source at hand. So
    export the weights there first, in its folder:

        ppnet = torch.load("10_19push0.7822.pth", map_location="cpu", weights_only=False)
        torch.save(ppnet.state_dict(), "weights.pth")

    and here `save_pretrained(from_protopnet("weights.pth", "resnet34"), FOLDER)` makes it a checkpoint like any other.

    Prototype n of class c becomes number c × per_class + n, so the numbers of a model that was not pruned stay. Where
    pruning left classes with fewer than others, their last places are empty, as after a pruning of ours: `is_kept` is
    false there. Which images the prototypes came from is in no state dict: `provenance` is empty until they are
    projected again.

    Not supported, and refused: the original's "bottleneck" add-on where it has more than two convolutions, prototypes
    of several cells, other backbones. Its "linear" similarity leaves no trace in a state dict and cannot be refused:
    the log-ratio is assumed, as published.

    Args:
        source: The state dict, or a file of it: safetensors, or written by `torch.save`.
        backbone: The original's `base_architecture`, one of `PROTOPNET_BACKBONES`.
        prototype_classes: The class of each prototype (p). Default: the order of classes, as many for each; a pruned
            model needs it.
        class_names: One a class; the original numbers its folders of images in alphabetical order.
        preprocessing: What the images went through; default: the original's, squashed to 224 × 224. It was given birds
            cropped to their bounding boxes.

    Raises:
        InputError: An unknown backbone, a file that holds anything but weights, a weight that is missing, left over or
            of another shape (the first is named), or prototypes whose classes are not certain.
    """
    if backbone not in PROTOPNET_BACKBONES:
        raise unknown_name("backbone of the original ProtoPNet", backbone, PROTOPNET_BACKBONES)
    state, where = _read(source)
    vectors, weight = _prototypes(state, where)
    owners = _owners(weight, where) if prototype_classes is None else _given(prototype_classes, weight)
    slots, per_class = _slots(owners, len(weight))
    config = ModelConfig(
        backbone,
        num_classes=len(weight),
        head="protopnet",
        head_kwargs={"per_class": per_class, "dim": vectors.shape[1], **_OPTIONS},
        class_names=tuple(class_names) if class_names is not None else None,
        preprocessing=preprocessing,
        backbone_weights=BackboneWeights("an original ProtoPNet, trained elsewhere"),
    )
    model = build_model(config)
    model.load_state_dict(
        model.state_dict() | _renamed(model, state, where) | _in_slots(vectors, weight, slots, per_class)
    )
    return model.eval()


def _renamed(model: ImageClassifier, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Of the original's `state` what changes nothing but its name: backbone and add-on, by our names.

    Raises:
        InputError: Any weight of `state` is missing, left over or of another shape, or a weight of distances is not 1.
    """
    own = model.state_dict()
    names = {
        name: theirs + name.removeprefix(ours)
        for name in own
        for ours, theirs in _PREFIXES.items()
        if name.startswith(ours)
    }
    expected = {original: own[name] for name, original in names.items()}
    # These tell what model to build, so they fit.
    told = {name: state[name] for name in ("prototype_vectors", "last_layer.weight")}
    check_fit(expected | told | {"ones": state["prototype_vectors"]}, state, where, model.config.architecture)
    if (state["ones"] != 1).any():
        raise InputError(f"{where}: 'ones' holds other values than 1; weighted distances are not supported")
    return {name: state[original] for name, original in names.items()}


def _read(source: Mapping[str, Tensor] | str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The weights by name, and what errors call them."""
    if isinstance(source, Mapping):
        state, where = source, "the state dict"
    else:
        state, where = _load(Path(source).expanduser()), str(source)
    if not isinstance(state, Mapping):
        raise InputError(f"{where} holds no state dict: names and tensors expected, got a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{where} holds {name!r}, which is no weight: the state dict itself expected")
    # Of the model that DataParallel wraps, all names begin with "module.".
    return {name.removeprefix("module."): tensor.cpu() for name, tensor in state.items()}, where


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, or is broken; a whole model is never opened, since a pickle can run any "
            'code: export it in the original\'s environment, torch.save(ppnet.state_dict(), "weights.pth")'
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is truncated or no file of weights") from error


def _prototypes(state: dict[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
    """Prototypes `p d 1 1` and the last layer's weights `c p`: all that tells P, D and C."""
    for name in ("prototype_vectors", "last_layer.weight"):
        if name not in state:
            raise InputError(f"{where} lacks the weight {name!r}, which every original ProtoPNet has")
    vectors, weight = state["prototype_vectors"], state["last_layer.weight"]
    if vectors.shape[2:] != (1, 1):
        shape = tuple(vectors.shape)
        raise InputError(f"{where}: 'prototype_vectors' has shape {shape}, but (prototypes, channels, 1, 1) is needed")
    if weight.ndim != 2 or weight.shape[1] != len(vectors) or not weight.numel():
        shapes = f"{tuple(weight.shape)}, but (classes, {len(vectors)}) is needed"
        raise InputError(f"{where}: 'last_layer.weight' has shape {shapes}, a column a prototype")
    deeper = [name for name in state if name.startswith("add_on_layers.") and name.split(".")[1] not in ("0", "2")]
    if deeper:
        raise InputError(
            f"{where} holds the weight {deeper[0]!r}: an add-on of more than two convolutions (the original's "
            '"bottleneck" to fewer channels) is not supported, only add_on_layers_type="regular"'
        )
    return vectors, weight


def _owners(weight: Tensor, where: str) -> Tensor:
    """The class of each prototype (p), in the order of classes, from the last layer's weights `c p`.

    Raises:
        InputError: There are not as many for each class, or the weights speak against that order: both after pruning.
    """
    classes, count = weight.shape
    if count % classes:
        raise InputError(
            f"{where} holds {count} prototypes for {classes} classes, not as many for each: was it pruned? {_ASK}"
        )
    owners = torch.arange(classes).repeat_interleave(count // classes)
    # Pruning can leave a number that divides all the same. A prototype speaks most for its own class: it starts at 1
    # there and −0.5 elsewhere.
    strays = (weight[owners, torch.arange(count)] < weight.amax(0)).nonzero()[:, 0].tolist()
    if strays:
        raise InputError(
            f"{where}: {len(strays)} of {count} prototypes (the first: {strays[0]}) count most for another class than "
            f"their order says: was it pruned? {_ASK}"
        )
    return owners


def _given(prototype_classes: Sequence[int] | Tensor, weight: Tensor) -> Tensor:
    """`prototype_classes` as int64 (p), where they fit the last layer's weights `c p`."""
    classes, count = weight.shape
    owners = torch.as_tensor(prototype_classes).cpu()
    if owners.shape != (count,) or owners.is_floating_point():
        raise InputError(f"prototype_classes must be {count} whole numbers, the class of each prototype")
    if owners.min() < 0 or owners.max() >= classes:
        raise InputError(f"prototype_classes must lie in 0 … {classes - 1}: 'last_layer.weight' has {classes} rows")
    return owners.long()


def _slots(owners: Tensor, num_classes: int) -> tuple[Tensor, int]:
    """Where each prototype (p) stands among ours, class after class with `per_class` places each, and `per_class`."""
    ranks = functional.one_hot(owners, num_classes).cumsum(0)[torch.arange(len(owners)), owners] - 1
    per_class = int(ranks.max()) + 1
    return owners * per_class + ranks, per_class


def _in_slots(vectors: Tensor, weight: Tensor, slots: Tensor, per_class: int) -> dict[str, Tensor]:
    """The head's prototypes, which are kept, and weights, from vectors `p d 1 1` and weights `c p` of the original."""
    vectors, classes = vectors.flatten(1), len(weight)
    is_kept = torch.zeros(classes * per_class, dtype=torch.bool)
    is_kept[slots] = True
    prototypes = vectors.new_zeros(classes * per_class, vectors.shape[1])
    prototypes[slots] = vectors
    by_class = prototypes.unflatten(0, (classes, per_class))
    # An empty place repeats its class's first prototype: the nearest one stays the nearest, and so do the losses.
    by_class = by_class.where(is_kept.view(classes, per_class, 1), by_class[:, :1])
    weights = weight.new_zeros(classes, classes * per_class)
    weights[:, slots] = weight
    return {"head.prototypes": by_class.flatten(0, 1), "head.is_kept": is_kept, "head.connection.weight": weights}
