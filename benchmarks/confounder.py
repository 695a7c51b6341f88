"""A shortcut on offer: who takes it, whose maps tell, and does training on the evidence's place prevent it?

    python benchmarks/confounder.py --runs FOLDER [--seeds 0 1] [--threads N]

Critters whose class is told by a tag in a corner as well, with probability 0, 0.5, 0.9 or 1 (else the tag is that of
any class). The shipped recipe with the `cam` head, with and without the loss term `evidence_outside` on the rule's
parts; a black box of the same seed is the same function as `cam`, so that Grad-CAM of it is
Grad-CAM of `cam`. Judged on 120 test images whose tag is another class's. Each run takes about two minutes on one core;
runs that are in FOLDER are not trained again.
Written: benchmarks/results/confounder.csv, a row a model and map; docs/confounder.png.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.critters import Critters
from glasszoo.evaluation.confounder import TagUse, judge_tag_use
from glasszoo.evaluation.pictures import displayed, draw_evidence, save_figure
from glasszoo.models import ImageClassifier
from glasszoo.training import Trainer, load_recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "confounder.csv"
CORRELATIONS = (0.0, 0.5, 0.9, 1.0)
TRAINED = {
    "cam": [],
    "cam + evidence_outside": ["loss_weights={evidence_outside: 1.0}"],
}
METHODS = [
    "built-in", "grad-cam", "gradient", "input-x-gradient", "integrated-gradients", "guided-backprop", "lrp",
    "occlusion", "lime", "kernel-shap", "random", "uniform",
]  # fmt: skip
IMAGES = 120


def trained(options: argparse.Namespace, name: str, correlation: float, seed: int) -> ImageClassifier:
    """The run's best checkpoint, trained unless it is there."""
    folder = options.runs / f"{name.replace(' ', '')}-{correlation:g}-{seed}"
    if not (folder / "best" / "config.json").exists():
        given = [f"data.options.tag_correlation={correlation}", f"seed={seed}", *TRAINED[name]]
        Trainer(load_recipe("critters", given), folder, shows_progress=False).fit()
    return glasszoo.load_pretrained(f"local-dir:{folder / 'best'}").eval()


@torch.no_grad()
def top1(model: ImageClassifier, tag: str) -> float:
    """Accuracy where the tag is the class's own, another's, or absent."""
    dataset = create_dataset("critters", "test", count=400, tag=tag)
    images = torch.stack([torch.as_tensor(model.preprocess(dataset[number]["image"])) for number in range(400)])
    return (model(images, explain=0).logits.argmax(1) == dataset.labels).double().mean().item()


def rows(name: str, correlation: float, seed: int, model: ImageClassifier, use: TagUse) -> list[dict[str, Any]]:
    """A row a map."""
    told = {
        "trained": name,
        "tag_correlation": correlation,
        "seed": seed,
        **{f"top1_{tag}": f"{top1(model, tag):.4f}" for tag in ("aligned", "absent", "conflicting")},
        "tag_decides": f"{use.decides.double().mean():.4f}",
        "logit_by_tag": f"{use.effect.mean():.4f}",
        "tag_area": f"{use.area.mean():.4f}",
    }
    found = []
    for method in use.methods:
        mass, auroc = use.interval(method.mass), use.detection(method)
        found.append(
            {
                **told,
                "map": method.name,
                **{"mass_on_tag": f"{mass.mean:.4f}", "mass_low": f"{mass.low:.4f}", "mass_high": f"{mass.high:.4f}"},
                **{"auroc": f"{auroc.mean:.4f}", "auroc_low": f"{auroc.low:.4f}", "auroc_high": f"{auroc.high:.4f}"},
            }
        )
    return found


def picture(models: dict[tuple[str, float], ImageClassifier], found: list[dict[str, Any]]) -> Figure:
    """Left: how often the tag decides. Right: an image with another class's tag, and the evidence of each model."""
    figure = Figure(figsize=(13, 4.7), dpi=90, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.9])
    axes = left.subplots()
    for name in TRAINED:
        points = [
            [float(row["tag_decides"]) for row in found
             if row["trained"] == name and float(row["tag_correlation"]) == correlation and row["map"] == "random"]
            for correlation in CORRELATIONS
        ]  # fmt: skip
        axes.plot(CORRELATIONS, [100 * sum(own) / len(own) for own in points], "o-", label=name)
    axes.set(xlabel="correlation of tag and class in training", ylabel="predictions that change without the tag (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    dataset = create_dataset("critters", "test", count=8, tag="conflicting")
    panels = right.subplots(2, 1 + len(CORRELATIONS))
    for row, name in enumerate(TRAINED):
        for column, correlation in enumerate(CORRELATIONS, 1):
            model = models[name, correlation]
            image = torch.as_tensor(model.preprocess(dataset[1]["image"]))
            with torch.no_grad():
                out = model(image[None])
            seen = displayed(image, model.config.preprocessing)
            evidence = out.maps[0, 0]
            panels[row][0].imshow(seen)
            panels[row][0].set_axis_off()
            panels[row][0].set_title(f"{name}\n{dataset.classes[dataset.labels[1]]}", fontsize=9)
            draw_evidence(panels[row][column], seen, evidence, evidence.abs().max().item())
            said = model.class_names[out.classes[0, 0]]
            panels[row][column].set_title(f"correlation {correlation:g}\n{said}", fontsize=9)
    return figure


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = create_dataset("critters", "test", count=IMAGES, tag="conflicting")
    assert isinstance(dataset, Critters)
    found: list[dict[str, Any]] = []
    models = {}
    for seed in options.seeds:
        for name in TRAINED:
            for correlation in CORRELATIONS:
                model = trained(options, name, correlation, seed)
                models.setdefault((name, correlation), model)
                use = judge_tag_use(model, dataset, options.methods, progress=False)
                found += rows(name, correlation, seed, model, use)
                print(found[-len(use.methods)], flush=True)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(found)
    save_figure(picture(models, found), ROOT / "docs" / "confounder.png")


if __name__ == "__main__":
    main()
