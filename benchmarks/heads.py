"""What a head costs beside the plain timm model: `python benchmarks/heads.py [--backbones …] [--heads …] [--rounds N]`.

In one process and in turn, so that a change of the machine's speed meets all alike: for each head, one round runs the
plain timm forward, the head with `explain=0` and with `explain=1`, and divides by the plain forward of that round.
Printed and written: the median ratio over the rounds, with quartiles; and how far evidence and logit lie apart under
bf16 autocast, as a share of the largest logit. CPU: batch 8, fp32, one thread a core. GPU: batch 256, bf16 autocast,
channels_last.
"""

import argparse
import contextlib
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

import timm
import torch
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.evaluation.results import as_table

BACKBONES = ("resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny")
COLUMNS = ("backbone", "head", "explain", "ratio", "low", "high", "milliseconds", "rounds", "bf16_gap", "device")


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The time of one call, the mean of `repeats`."""
    _wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - begin) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bf16_gap(model: glasszoo.models.ImageClassifier, images: Tensor) -> float:
    """The largest |maps + offset − what they explain| of the top class, over the largest logit, under bf16 autocast."""
    with torch.autocast(images.device.type, torch.bfloat16):
        out = model(images)
    wanted = model.contract.explained_quantity(out.logits).gather(1, out.classes)
    gap = (out.maps.sum((-2, -1)) + out.offset - wanted).abs().max()
    return (gap / out.logits.abs().max()).item()


def measure(
    backbone: str, heads: list[str], rounds: int, device: torch.device, takes_over: bool = False
) -> Iterator[dict[str, object]]:
    """A row for each head and `explain`; `takes_over`: the heads hold timm's own classifier, not a new one."""
    batch, repeats = (256, 10) if device.type == "cuda" else (8, 1)
    form = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    images = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=form)
    plain = timm.create_model(backbone, num_classes=1000).eval().to(device, memory_format=form)
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    for head in heads:
        try:
            made = (
                glasszoo.wrap(plain, head)
                if takes_over
                else glasszoo.create_model(backbone, head=head, num_classes=1000)
            )
            model = made.eval().to(device, memory_format=form)
        except InputError as error:
            print(f"{backbone} with {head} is left out: {error}", flush=True)
            continue
        with torch.inference_mode():
            gap = bf16_gap(model, images)
            with half:
                times = in_turn([lambda: plain(images), *explained(model, images)], rounds, repeats, device)
        for explain in (0, 1):
            own = times[1 + explain]
            ratios = [spent / base for spent, base in zip(own, times[0], strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            values = (backbone, head, explain, f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}")
            row = (*values, f"{1000 * median(own):.2f}", rounds, f"{gap:.0e}", str(device))
            yield dict(zip(COLUMNS, row, strict=True))


def explained(model: glasszoo.models.ImageClassifier, images: Tensor) -> list[Callable[[], object]]:
    """The calls to time: without and with a map."""
    return [lambda: model(images, 0), lambda: model(images, 1)]


def in_turn(calls: list[Callable[[], object]], rounds: int, repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of each of `calls`, one after the other in every round; the first round warms up and is left out."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            spent = seconds(call, repeats, device)
            if number:
                own.append(spent)
    return times


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--heads", nargs="+", default=glasszoo.list_heads())
    parser.add_argument("--takes-over", action="store_true", help="explain timm's own classifier: --heads cam")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a CSV file")
    options = parser.parse_args()
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [
        row
        for name in options.backbones
        for row in measure(name, options.heads, options.rounds, where, options.takes_over)
    ]
    print(as_table([list(COLUMNS), *([str(cell) for cell in row.values()] for row in rows)]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
