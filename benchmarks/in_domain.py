"""What training with deleted patches changes: is an image with a hole still one that the model knows?

    python benchmarks/in_domain.py [--sets critters coffee_leaf] [--data FOLDER --weights local-dir:PATH] [--seeds 0 1]

Each small model is trained twice for each seed, with and without `augmentation.patch_deletion=0.5`, all else alike: a
test_byobnet on critters (the shipped recipe), and MobileNetV2 fine-tuned on coffee leaves at 96 × 96 pixels for four
epochs (a probe on stored features cannot delete anything; not to be compared with accuracies elsewhere). Both runs of
a set and seed take 3 to 6 minutes on one core. Measured on the test split: top-1; top-1 when one cell of the 4 × 4 grid
is deleted, mean over all 16 cells; deletion and insertion AUC of the built-in CAM, in 28 steps, and its single-deletion
score, on `--curves` images.
Written: benchmarks/results/in_domain.csv, a row a run; rows of sets that were not asked for stay.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.augmentation import PATCH_GRID, grid_cell
from glasszoo.data.loading import Loader
from glasszoo.data.samples import ImageDataset
from glasszoo.evaluation import evaluate
from glasszoo.evaluation.results import as_table
from glasszoo.models import ImageClassifier
from glasszoo.training import Recipe, Trainer, load_recipe

RESULTS = Path(__file__).parent / "results" / "in_domain.csv"
METRICS = ("insertion", "deletion", "single_deletion")
COFFEE = ("model.image_size=96", "epochs=4")


def recipe(name: str, seed: int, patch_deletion: float, options: argparse.Namespace) -> Recipe:
    """How a run is trained."""
    shared = [f"seed={seed}", f"augmentation.patch_deletion={patch_deletion}"]
    if name == "critters":
        return load_recipe("critters", shared)
    own = [f"data.name={options.data}", f"model.weights={options.weights}"]
    return load_recipe("finetune_mobilenetv2", [*COFFEE, *own, *shared])


@torch.no_grad()
def top1_with_a_hole(model: ImageClassifier, dataset: ImageDataset) -> float:
    """Accuracy with one cell deleted, mean over the cells."""
    right: list[torch.Tensor] = []
    for batch in Loader(dataset, model.preprocess, 64, with_truth=False):
        for number in range(PATCH_GRID**2):
            images = batch.images.clone()
            images[(..., *grid_cell(images.shape[-2:], number))] = 0
            right.append(model(images, explain=0).logits.argmax(1) == batch.labels)
    return torch.cat(right).double().mean().item()


def row(name: str, seed: int, patch_deletion: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and measure it."""
    made = recipe(name, seed, patch_deletion, options)
    test_set = create_dataset(made.data.name, "test", **({"size": 64, "count": 400} if name == "critters" else {}))
    with tempfile.TemporaryDirectory() as folder:
        trained = Trainer(made, Path(folder) / "run", shows_progress=False).fit()
        model = glasszoo.load_pretrained(f"local-dir:{trained.best}").eval()
    judged = evaluate(
        model, test_set, methods=["built-in"], metrics=METRICS, max_explained=options.curves,
        progress=False,
    )  # fmt: skip
    top1, with_a_hole = judged.accuracy()["top1"].mean, top1_with_a_hole(model, test_set)
    scores = {metric: judged.score(judged.methods[0], metric).mean for metric in METRICS}
    numbers = {"top1": top1, "top1_with_a_hole": with_a_hole, "lost": top1 - with_a_hole, **scores}
    return {
        "data": name,
        "patch_deletion": patch_deletion,
        "seed": seed,
        **{key: f"{value:.4f}" for key, value in numbers.items()},
        "images": len(test_set),
        "curves": options.curves,
        "epochs": made.epochs,
        "backbone": made.model.backbone,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=("critters", "coffee_leaf"), default=["critters"])
    parser.add_argument("--data", help="the folder of coffee_leaf")
    parser.add_argument("--weights", help="of MobileNetV2: local-dir:PATH")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--curves", type=int, default=100, help="images whose insertion and deletion are measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            rows = [own for own in csv.DictReader(file) if own["data"] not in options.sets]
    for name in options.sets:
        for seed in options.seeds:
            for patch_deletion in (0.0, 0.5):
                rows.append(row(name, seed, patch_deletion, options))
                print(rows[-1], flush=True)
                with options.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    print(as_table([list(rows[0]), *([str(cell) for cell in own.values()] for own in rows)]))
