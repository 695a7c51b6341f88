"""What scoring maps costs: beside the bare forwards it needs, beside other packages, and for five methods beside one.

    python benchmarks/evaluation.py [--backbone resnet18] [--images 2] [--rounds 5] [--device cpu]

In one process and in turn, so that a change of the machine's speed meets all alike: each round times both sides and
divides; printed and written (benchmarks/results/evaluation.csv) is the median ratio over the rounds, with quartiles.
One map at the image's resolution, 1,000 classes, 224 px, fp32. Goals: insertion and deletion at most 1.15 times the
bare forwards; 10 times as fast as Quantus's PixelFlipping (same 28 steps; where quantus is installed), 100 times as
fast as pytorch-grad-cam's ROADCombined (same nine shares); five methods at most 1.1 times one.
"""

import argparse
import csv
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import glasszoo
from glasszoo.common.environment import code_version, device_name
from glasszoo.evaluation.fidelity import fidelity
from glasszoo.evaluation.perturbation import deletion, insertion
from glasszoo.evaluation.results import as_table
from glasszoo.evaluation.road import road
from glasszoo.evaluation.single_deletion import single_deletion

RESULTS = Path(__file__).parent / "results" / "evaluation.csv"
SIDE, STEPS, CHUNK = 224, 28, 32
STEP = SIDE * SIDE // STEPS


class Bench:
    """One model, some images, and smooth maps without ties."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.model = glasszoo.create_model(options.backbone, num_classes=1000).to(self.device).eval()
        self.images = functional.interpolate(torch.randn(options.images, 3, 14, 14), SIDE, mode="bicubic").to(
            self.device
        )
        self.maps = functional.interpolate(torch.rand(options.images, 5, 7, 7), SIDE, mode="bicubic").transpose(0, 1)
        self.maps = self.maps.contiguous().to(self.device)
        self.classes = torch.zeros(options.images, dtype=torch.long, device=self.device)
        self.indices = torch.arange(options.images)

    @torch.no_grad()
    def watched(self, images: Tensor, classes: Tensor) -> Tensor:
        """Probabilities of the classes."""
        return self.model(images, explain=0).logits.softmax(1).gather(1, classes[:, None])[:, 0]

    @torch.no_grad()
    def forwards(self, count: int) -> None:
        """`count` images through the network, in chunks."""
        chunk = self.images[:1].expand(CHUNK, -1, -1, -1).contiguous()
        for begin in range(0, count, CHUNK):
            self.model(chunk[: min(CHUNK, count - begin)], explain=0)

    def ours_curves(self) -> None:
        """Deletion and insertion of one method."""
        for metric in (deletion, insertion):
            metric(self.watched, self.images, self.maps[0], self.classes, STEP, CHUNK)

    def bare_curves(self) -> None:
        """The forwards that they need: ends and 27 inner steps, twice."""
        for _ in range(2):
            self.forwards(len(self.images) * (STEPS + 1))

    def ours_deletion(self) -> None:
        """Deletion of one method."""
        deletion(self.watched, self.images, self.maps[0], self.classes, STEP, CHUNK)

    def quantus(self) -> None:
        """The same 28 steps of pixels, in 84 steps of single channels."""
        import quantus

        metric = quantus.PixelFlipping(features_in_step=STEP, disable_warnings=True, display_progressbar=False)
        metric(
            model=self.model.as_logits(),
            x_batch=self.images.cpu().numpy(),
            y_batch=self.classes.cpu().numpy(),
            a_batch=self.maps[0][:, None].cpu().numpy(),
            softmax=True,
            device=str(self.device),
        )

    def ours_road(self) -> None:
        """ROAD, both orders, nine shares."""
        road(self.watched, self.images, self.maps[0], self.classes, self.indices, chunk=CHUNK)

    def grad_cam_road(self) -> None:
        """pytorch-grad-cam's ROADCombined of the same shares."""
        from pytorch_grad_cam.metrics.road import ROADCombined
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

        targets = [ClassifierOutputSoftmaxTarget(0)] * len(self.images)
        maps = self.maps[0].cpu().numpy().astype(np.float32)
        ROADCombined(percentiles=list(range(10, 100, 10)))(self.images, maps, targets, self.model.as_logits())

    def single(self, methods: int) -> None:
        """Single deletion of so many methods."""
        single_deletion(self.watched, self.images, self.maps[:methods], self.classes, chunk=CHUNK)

    def mu(self, methods: int) -> None:
        """μFidelity and infidelity of so many methods."""
        fidelity(self.watched, self.images, self.maps[:methods], self.classes, self.indices, samples=50, chunk=CHUNK)


def ratios(above: Callable[[], None], below: Callable[[], None], rounds: int, device: torch.device) -> list[float]:
    """`rounds` ratios of times; each side runs once before, untimed."""
    above(), below()
    found = []
    for _ in range(rounds):
        times = []
        for call in (above, below):
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
        found.append(times[0] / times[1])
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(options)
    pairs: list[tuple[str, str, Callable[[], None], Callable[[], None]]] = [
        ("insertion and deletion by bare forwards", "≤ 1.15", bench.ours_curves, bench.bare_curves),
        ("single deletion, five methods by one", "≤ 1.1", lambda: bench.single(5), lambda: bench.single(1)),
        ("μFidelity, five methods by one", "≤ 1.1", lambda: bench.mu(5), lambda: bench.mu(1)),
        ("pytorch-grad-cam's ROADCombined by ROAD", "≥ 100", bench.grad_cam_road, bench.ours_road),
    ]
    if find_spec("quantus"):
        pairs.append(("Quantus's PixelFlipping by deletion", "≥ 10", bench.quantus, bench.ours_deletion))
    else:
        print("quantus is not installed: pip install quantus")
    rows: list[dict[str, Any]] = []
    for what, goal, above, below in pairs:
        found = ratios(above, below, options.rounds, bench.device)
        low, _, high = quantiles(found, n=4)
        rows.append({"what": what, "goal": goal, "ratio": f"{median(found):.2f}", "low": f"{low:.2f}",
                     "high": f"{high:.2f}", "rounds": options.rounds, "images": options.images,
                     "backbone": options.backbone, "device": device_name(bench.device),
                     "threads": torch.get_num_threads(), "commit": code_version()})  # fmt: skip
        print(what, rows[-1]["ratio"], flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(as_table([list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]))


if __name__ == "__main__":
    main()
