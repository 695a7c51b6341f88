"""Every CNN of the installed timm, one by one: does it explain itself, through which steps, and how exactly?

    python benchmarks/census.py                          all; goes on where it was stopped
    python benchmarks/census.py --smallest               the smallest member of each family, by the last census

Each architecture is built with random weights, batch norms and all gains and shifts away from their start (so that no
identity is trivial), in a process of its own, and gives a row of results/census.csv. Columns:

    tags, classifiers     pretrained weights that timm lists, and those of them that come with a classifier
    works                 "cam" with a new classifier gives logits, and maps that add up to them
    head, steps           what takes over timm's own classifier, and what stands between features and logits
    logits_gap            largest difference of its logits from timm's, by the largest logit
    evidence_gap          largest difference of maps.sum() + offset from the logits, by the largest logit
    height, width         cells of the map of an image of 160 × 192 pixels; reduction: pixels a cell
    receptive_field       of a cell, computed; whole: the image's mean reaches each cell besides
    support, within       of the gradient of the cell in the middle, where the field fits into 320 pixels and the
                          network is not large; does the field hold it?
    reason                why it does not work, or has no classifier to take over
"""

import argparse
import csv
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from glasszoo.common.errors import InputError
from glasszoo.common.files import write_text
from glasszoo.heads import create_head
from glasszoo.models import InterpretableClassifier, ModelConfig, list_backbones
from glasszoo.models.backbone import Backbone, create_network
from glasszoo.models.catalogue import family_of
from glasszoo.models.factory import assemble

RESULTS = Path(__file__).parent / "results" / "census.csv"
COLUMNS = (
    *("name", "family", "parameters", "tags", "classifiers", "works", "head", "steps", "logits_gap", "evidence_gap"),
    *("height", "width", "reduction", "receptive_field", "whole", "support", "within", "seconds", "reason"),
)
CLASSES = 7
LARGEST_FIELD, MOST_PARAMETERS = 320, 40e6  # pixels; beyond either, the gradient is not looked at


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine what is asked for and not known yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="*", help="names with wildcards")
    parser.add_argument("--smallest", action="store_true", help="of each family; they are examined again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = {row["name"]: row for row in _read(options.out)}
    if options.smallest:
        names = smallest_of_each_family()
    else:
        names = [name for name in list_backbones(options.pattern) if name not in rows]
    for number, name in enumerate(names, 1):
        rows[name] = apart(name)
        _write(options.out, list(rows.values()))
        row = rows[name]
        print(f"{number}/{len(names)} {name}: {row['head'] or '-'} {row['evidence_gap']} {row['reason']}", flush=True)
    print(summary(list(rows.values())))


def smallest_of_each_family() -> list[str]:
    """The members with the fewest parameters in the committed census, among those that are there."""
    smallest: dict[str, dict[str, str]] = {}
    for row in sorted(_read(RESULTS), key=lambda row: int(row["parameters"] or 1e12)):
        if timm.models.is_model(row["name"]):
            smallest.setdefault(row["family"], row)
    return sorted(row["name"] for row in smallest.values())


def apart(name: str) -> dict[str, Any]:
    """`examined`, in a process of its own, so that one that dies, or fills the memory, harms no other."""
    context = multiprocessing.get_context("fork")  # torch and timm are imported already
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, name))
    process.start()
    sender.close()
    try:
        row = receiver.recv()
    except EOFError:
        row = dict.fromkeys(COLUMNS, "") | {"name": name, "family": family_of(name), "works": False, "reason": "died"}
    process.join()
    return row


def examined(name: str) -> dict[str, Any]:
    """The row of `name`."""
    start = time.perf_counter()
    tags = timm.list_pretrained(f"{name}.*")
    classifiers = sum(timm.get_pretrained_cfg(tag).num_classes > 0 for tag in tags)
    row = dict.fromkeys(COLUMNS, "") | {"name": name, "family": family_of(name), "works": False}
    row |= {"tags": len(tags), "classifiers": classifiers}
    try:
        network = create_network(name, num_classes=CLASSES)
        row["parameters"] = sum(parameter.numel() for parameter in network.module.parameters())
        leave_the_start(network.module)
        network.module.eval()
        row |= _of_grid(Backbone(network.module, network.anatomy))
        config = ModelConfig(architecture=name, num_classes=CLASSES, backbone_kwargs=network.model_args)
        images = torch.randn(1, 3, 160, 192)
        with torch.inference_mode():
            row |= _with_new_classifier(Backbone(network.module, network.anatomy), config, images)
            theirs = network.module(images)
            model = assemble(network, config, takes_over_classifier=True).eval()
            row |= _taken_over(model, theirs, images)
    except (InputError, RuntimeError, MemoryError) as error:
        row["reason"] = " ".join(str(error).split())
    row["seconds"] = f"{time.perf_counter() - start:.1f}"
    return row


@torch.no_grad()
def leave_the_start(network: nn.Module) -> None:
    """Random numbers for all that starts at 0 or 1: biases, gains, learned scales, statistics of batch norms."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim <= 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))
    classifiers = network.get_classifier()  # type: ignore[operator]
    for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.copy_(
                    torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
                )


def _with_new_classifier(backbone: Backbone, config: ModelConfig, images: Tensor) -> dict[str, Any]:
    """`create_model(name, head="cam", num_classes=7)`, with these weights."""
    head = create_head("cam", backbone.head_features, CLASSES).eval()
    explained = InterpretableClassifier(backbone, head, config).eval()(images, "all")
    batch, classes, height, width = explained.maps.shape
    is_right = (batch, classes) == (1, CLASSES) and min(height, width) > 1 and explained.logits.isfinite().all()
    return {"works": bool(is_right) and _gap(explained) < 1e-4, "height": height, "width": width}


def _taken_over(model: Any, theirs: Tensor, images: Tensor) -> dict[str, Any]:
    explained = model(images, "all")
    return {
        "head": model.config.head,
        "steps": " > ".join(step["kind"] for step in model.config.head_kwargs.get("steps", ())) or "pool > linear",
        "logits_gap": f"{(explained.logits - theirs).abs().max() / theirs.abs().max():.1e}",
        "evidence_gap": f"{_gap(explained):.1e}",
    }


def _gap(explained: Any) -> float:
    total = explained.maps.sum((-2, -1)) + explained.offset
    return float((total - explained.logits).abs().max() / explained.logits.abs().max())


def _of_grid(backbone: Backbone) -> dict[str, Any]:
    """Where a cell looks, computed, and where its gradient is."""
    found: dict[str, Any] = {"reduction": backbone.reduction}
    grid = backbone.grid
    if grid is None:
        return found | {"receptive_field": "unknown"}
    found |= {"receptive_field": "{} × {}".format(*grid.receptive_field), "whole": grid.sees_whole_image}
    is_large = sum(parameter.numel() for parameter in backbone.parameters()) > MOST_PARAMETERS
    if grid.sees_whole_image or max(grid.receptive_field) > LARGEST_FIELD or is_large:
        return found
    side = 32 * (max(grid.receptive_field) // 32 + 3)
    images = torch.randn(1, 3, side, side, requires_grad=True)
    features = backbone(images)
    row, column = features.shape[-2] // 2, features.shape[-1] // 2
    (gradient,) = torch.autograd.grad(features[0, :, row, column].pow(2).sum(), images)
    rows, columns = (gradient[0].abs().sum((0, other)).nonzero().flatten() for other in (2, 1))
    x1, y1, x2, y2 = grid.box(row, column)
    is_within = y1 <= rows[0] and rows[-1] < y2 and x1 <= columns[0] and columns[-1] < x2
    support = f"{rows[-1] - rows[0] + 1} × {columns[-1] - columns[0] + 1}"
    return found | {"support": support, "within": bool(is_within)}


def summary(rows: list[dict[str, Any]]) -> str:
    """How many architectures and tags, in words."""
    works = [row for row in rows if str(row["works"]) == "True"]
    taken = [row for row in rows if row["head"]]
    worst = max((float(row["evidence_gap"]) for row in taken), default=0.0)
    farthest = max((float(row["logits_gap"]) for row in taken), default=0.0)
    fields = [row for row in rows if row["support"]]
    with_classifier = [row for row in taken if int(row["classifiers"]) or not int(row["tags"])]
    return (
        f"{len(rows)} architectures with {_total(rows, 'tags')} tags; {len(works)} work with a new classifier. "
        f"{len(with_classifier)}, with {_total(taken, 'classifiers')} tags that have a classifier, give timm's own "
        f"logits (worst gap {farthest:.1e}) and exact evidence (worst gap {worst:.1e}). {len(fields)} receptive fields "
        f"looked at, {sum(str(row['within']) == 'True' for row in fields)} hold the gradient's support."
    )


def _total(rows: list[dict[str, Any]], column: str) -> int:
    return sum(int(row[column] or 0) for row in rows)


def _send(sender: Any, name: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    sender.send(examined(name))
    sender.close()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)]
    text = "\n".join(",".join(_quoted(value) for value in line) for line in lines)
    write_text(path, text + "\n")


def _quoted(value: Any) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


if __name__ == "__main__":
    main()
