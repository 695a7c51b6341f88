"""What a head costs beside the plain timm model: `python benchmarks/heads.py [--backbones …] [--heads …] [--rounds N]`.

In one process and in turn, so that a change of the machine's speed meets all alike: one round runs the plain timm
forward, then every head with `explain=0` and with `explain=1`, and divides by the plain forward of the same round.
Printed and written: the median ratio over the rounds, with quartiles. CPU: batch 8, fp32, one thread a core. GPU: batch
256, bf16 autocast, channels_last.
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
COLUMNS = ("backbone", "head", "explain", "ratio", "low", "high", "milliseconds", "rounds", "device")


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


def contestants(
    backbone: str, heads: list[str], device: torch.device
) -> dict[tuple[str, int], Callable[[Tensor], object]]:
    """What is timed, by (head, explain); the plain timm model first, under the name "timm"."""
    form = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    plain = timm.create_model(backbone, num_classes=1000).eval().to(device, memory_format=form)
    calls: dict[tuple[str, int], Callable[[Tensor], object]] = {("timm", 0): plain}
    for head in heads:
        try:
            model = glasszoo.create_model(backbone, head=head, num_classes=1000).eval().to(device, memory_format=form)
        except InputError as error:
            print(f"{backbone} with {head} is left out: {error}")
            continue
        for explain in (0, 1):
            calls[head, explain] = lambda images, model=model, explain=explain: model(images, explain)  # type: ignore[misc]
    return calls


def measure(backbone: str, heads: list[str], rounds: int, device: torch.device) -> Iterator[dict[str, object]]:
    """A row for each head and `explain`."""
    batch, repeats = (256, 10) if device.type == "cuda" else (8, 1)
    images = torch.randn(batch, 3, 224, 224, device=device)
    if device.type == "cuda":
        images = images.to(memory_format=torch.channels_last)
    calls = contestants(backbone, heads, device)
    times: dict[tuple[str, int], list[float]] = {name: [] for name in calls}
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode(), half:
        for number in range(rounds + 1):
            for name, call in calls.items():
                spent = seconds(lambda call=call: call(images), repeats, device)  # type: ignore[misc]
                if number:  # the first round warms up
                    times[name].append(spent)
    plain = times["timm", 0]
    for (head, explain), own in times.items():
        ratios = [spent / base for spent, base in zip(own, plain, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        values = (backbone, head, explain, f"{median(ratios):.3f}", f"{low:.3f}", f"{high:.3f}")
        yield dict(zip(COLUMNS, (*values, f"{1000 * median(own):.2f}", rounds, str(device)), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--heads", nargs="+", default=glasszoo.list_heads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a CSV file")
    options = parser.parse_args()
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for name in options.backbones for row in measure(name, options.heads, options.rounds, where)]
    print(as_table([list(COLUMNS), *([str(cell) for cell in row.values()] for row in rows)]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
