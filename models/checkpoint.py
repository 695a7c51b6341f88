"""A checkpoint is a folder: config.json, model.safetensors, the model card (README.md, card.json, explanation.png), and
for prototypes prototypes.json.

The same for every source (`sources.py`); never a pickle.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..common.errors import InputError
from ..common.files import replacing, write_text
from .card import CardFacts, ModelFacts
from .card_text import card_text
from .classifier import ImageClassifier, InterpretableClassifier
from .config import ModelConfig
from .factory import build_model, create_model
from .hub import hub_config
from .layout import CARD, CONFIG, EXPLANATION, FACTS, PROTOTYPES, WEIGHTS
from .released import list_pretrained
from .sources import resolve


def save_pretrained(
    model: ImageClassifier,
    folder: str | os.PathLike[str],
    facts: CardFacts | None = None,
    provenance: list[dict[str, Any]] | None = None,
) -> None:
    """Write `model` as a checkpoint folder; each file replaces its old self in one step.

    `facts`: what the model card tells beside the model itself (data, commands, seed, metrics).
    `provenance`: what prototypes.json tells; default: all that the model knows.
    """
    provenance = model.provenance if provenance is None else provenance
    folder = Path(folder)
    with replacing(folder / WEIGHTS) as temporary:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    write_text(folder / CONFIG, model.config.to_json())
    write_card(folder, model, facts or CardFacts())
    if provenance:
        write_text(folder / PROTOTYPES, json.dumps(provenance, indent=1) + "\n")
    else:
        (folder / PROTOTYPES).unlink(missing_ok=True)


def write_card(folder: str | os.PathLike[str], model: ImageClassifier, facts: CardFacts) -> CardFacts:
    """Write README.md and card.json of `model` beside its weights; returns what they tell.

    A picture that `facts` does not name is one of another model, or private, and is removed.
    """
    folder = Path(folder)
    if facts.picture is None:
        (folder / EXPLANATION).unlink(missing_ok=True)
    has_picture = facts.picture is not None and (folder / facts.picture).is_file()
    facts = replace(facts, model=ModelFacts.of(model), picture=facts.picture if has_picture else None)
    write_text(folder / FACTS, facts.to_json())
    write_text(folder / CARD, card_text(facts))
    return facts


def load_pretrained(source: str) -> ImageClassifier:
    """The model of a checkpoint, in eval mode: logits and maps are those of the saved model to the bit.

    Args:
        source: Where it is; whatever is fetched is kept, and found again without a network:

            - a name from `list_pretrained`: it comes with glasszoo
            - "local-dir:PATH"
            - "hf-hub:ORG/NAME@REVISION": a repository of the Hugging Face hub; without revision the branch main
            - "wandb:ENTITY/PROJECT/NAME:ALIAS": an artifact of Weights & Biases
            - "https://HOST/FOLDER#sha256=HEX": a folder of any web server; HEX is the hash of its SHA256SUMS (`pin`)

    Raises:
        InputError: No such source or folder, or it cannot be fetched; a pickle or an archive in the weights' place; a
            file that is missing, truncated or no checkpoint of ours; weights whose names or shapes do not fit the
            configuration (the first is named).
    """
    folder = resolve(source)
    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    model = build_model(ModelConfig.from_json(config_path.read_text(encoding="utf-8"), str(config_path)))
    try:
        state = safetensors.torch.load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights_path} is truncated or no safetensors file ({error})") from error
    check_fit(model.state_dict(), state, weights_path)
    model.load_state_dict(state)
    if isinstance(model, InterpretableClassifier) and (folder / PROTOTYPES).is_file():
        model.head.provenance = _provenance(folder / PROTOTYPES)
    return model.eval()


def open_model(name: str, head: str = "cam") -> ImageClassifier:
    """What the command line's --model names: a checkpoint of ours, or timm's pretrained weights seen through `head`.

    Raises:
        InputError: Neither can be opened.
    """
    if name in list_pretrained() or name.startswith(("wandb:", "https://", "http://")) or _is_ours(name):
        return load_pretrained(name)
    return create_model(name, head=head, pretrained=True).eval()


def _is_ours(name: str) -> bool:
    """Whether a folder, or a repository on the hub, is not in timm's layout, whose config.json knows no head."""
    if name.startswith("local-dir:"):
        path: Path | None = Path(name.removeprefix("local-dir:")).expanduser() / CONFIG
    elif name.startswith("hf-hub:"):
        path = hub_config(name)
    else:
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return True
    return not (isinstance(config, dict) and "pretrained_cfg" in config and "head" not in config)


def _provenance(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is truncated or no JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) and "prototype" in entry for entry in found):
        raise InputError(f"{path} holds no list of prototypes")
    return found


def check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: object, reader: str = "the configuration"
) -> None:
    """Hold the weights `found` in `where` against those that `reader` expects: the same names, the same shapes.

    Raises:
        InputError: One is missing, of another shape, or left over; the first is named.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(f"{where} lacks the weight {name!r}")
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, but {reader} needs {tuple(tensor.shape)}"
            raise InputError(f"{where}: {name!r} has shape {shapes}")
    if surplus := sorted(set(found) - set(expected)):
        raise InputError(f"{where} holds the weight {surplus[0]!r}, which {reader} does not know")
