"""Which metric prefers the truth? Every metric judged where the exact worth of every part is known.

    python benchmarks/metrics_judged.py [--images N] [--threads N]

Three kinds of model, each with its exact truth:
1. "by hand": the programmed classifier on painted critters, and fourteen maps of known quality, from exact to negated;
2. "by hand, methods": the same classifier, and what people use to explain;
3. a checkpoint that learned critters (cam_test_byobnet.s64_critters and cbam_test_byobnet.s64_critters), the same
   methods, and the Shapley values of its parts.
Agreement: Spearman's correlation, over the maps of an image, of a metric's scores and the truth (1 − error of the map's
sums over parts), mean over images. Ladder (1): scores of the exact map, a random one and the exact one turned over.
Written: benchmarks/results/metrics_judged.csv, a row a model and metric.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from glasszoo import load_pretrained
from glasszoo.data.critters import Critters
from glasszoo.data.loading import image_numbers
from glasszoo.evaluation import METHODS, METRICS, Conventions, Evaluation, evaluate
from glasszoo.evaluation.maps import placed
from glasszoo.evaluation.metric_report import MetricJudgement, graded_maps, judge_metrics, true_errors
from glasszoo.evaluation.programmed import PaintedCritters, programmed_classifier
from glasszoo.evaluation.results import as_table
from glasszoo.evaluation.truth import judge_truth

RESULTS = Path(__file__).parent / "results" / "metrics_judged.csv"
CONTROLS = ["random", "centre", "uniform"]
METHODS_JUDGED = [
    "built-in", "grad-cam", "gradient", "input-x-gradient", "smoothgrad", "integrated-gradients", "deeplift",
    "guided-backprop", "occlusion", "lime", "kernel-shap", "layer-cam", "eigen-cam", "lrp", *CONTROLS,
]  # fmt: skip
# Of mosaics; of the built-in map alone; what explains again so often that costs are hours with LIME.
LEFT_OUT = {"grid_pointing", "difull", "dipart", "plc", "pac"}
LEARNED = ("cam_test_byobnet.s64_critters", "cbam_test_byobnet.s64_critters")


def by_hand(names: list[str], count: int, metrics: list[str]) -> tuple[Evaluation, torch.Tensor]:
    """The programmed classifier's evaluation, and the errors of the same maps."""
    model = programmed_classifier()
    data, numbers = PaintedCritters(model, count), range(count)
    judged = evaluate(
        model, data, methods=names, metrics=metrics, conventions=Conventions(target="label"), progress=False
    )
    images, indices = data.images(numbers), image_numbers(judged.ids)
    with torch.no_grad():
        maps = [placed(METHODS[name](model).explain(images, data.labels, indices)[None], (64, 64)) for name in names]
    worth = data.shapley(numbers, data.labels)
    return judged, true_errors(torch.cat(maps), data.parts(numbers), worth, counts_elsewhere=True)


def learned(source: str, names: list[str], count: int, metrics: list[str]) -> tuple[Evaluation, torch.Tensor]:
    """As `by_hand`, of a checkpoint."""
    model = load_pretrained(source).eval()
    data = Critters("test", count=count)
    judged = evaluate(model, data, methods=names, metrics=metrics, progress=False)
    truth = {method.name: method for method in judge_truth(model, data, methods=names, progress=False).methods}
    return judged, torch.stack([truth[method.name].scores["error"] for method in judged.methods])


def rows(name: str, judgements: list[MetricJudgement], methods: int) -> list[dict[str, Any]]:
    """A row a metric."""
    found = []
    for each in judgements:
        ladder = [f"{rung.mean:.4f}" for rung in each.ladder] or [""] * 3
        found.append(
            {
                "model": name,
                "maps": methods,
                "metric": each.metric,
                "better": METRICS[each.metric].best,
                **{key: f"{getattr(each.agreement, key):.4f}" for key in ("mean", "low", "high")},
                "images": each.agreement.images,
                **dict(zip(("exact", "random", "negated"), ladder, strict=True)),
                "climbs": each.climbs if each.ladder else "",
            }
        )
    return found


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    METHODS.update(graded_maps())
    metrics = [name for name in METRICS if name not in LEFT_OUT]
    graded = [*graded_maps(), *CONTROLS]
    found: list[dict[str, Any]] = []
    studies = [
        ("by hand", lambda: by_hand(graded, options.images, metrics)),
        ("by hand, methods", lambda: by_hand(METHODS_JUDGED, options.images, metrics)),
        *((name, lambda name=name: learned(name, METHODS_JUDGED, options.images, metrics)) for name in LEARNED),
    ]
    for name, study in studies:
        judged, errors = study()
        found += rows(name, judge_metrics(judged, errors), len(errors))
        means = zip(judged.methods, errors.nanmean(1).tolist(), strict=True)
        print(f"{name}: mean error of {', '.join(f'{method.name} {mean:.2f}' for method, mean in means)}", flush=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    print(as_table([list(found[0]), *([str(cell) for cell in row.values()] for row in found)]))


if __name__ == "__main__":
    main()
