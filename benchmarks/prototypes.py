"""What a projection costs beside inference, and ProtoPNet beside CaBRNet's; each within about 5 minutes on two cores.

    python benchmarks/prototypes.py projection [--heads …] [--classes 8 200] [--images 64] [--data DATA] [--rounds 5]
    python benchmarks/prototypes.py cabrnet --cabrnet-python /tmp/cabrnet/bin/python  (see `against_cabrnet.py`)

`projection`, for each head that has one: `model.project(loader)` against a pass of `model(images, explain=0)` over the
same loader, whose images lie in memory, normalised, so that reading hides nothing. One process, in turn: a round times
one pass and one projection (from the same random weights in each round) and divides. Written: the median ratio over the
rounds, with quartiles. With other classes than the data's, images are dealt out to them in turn. What a projection does
once, and not for each image (the choice among the patches, or of features), counts for more the fewer the images are:
64 images overstate it. Both parts write a CSV file to benchmarks/results/prototypes.
"""

import argparse
import csv
from pathlib import Path
from statistics import median, quantiles

import torch
from against_cabrnet import ARCHITECTURES, Row, compare

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Batch, ImageDataset
from glasszoo.data.subsets import Subset
from glasszoo.evaluation.results import as_table
from glasszoo.heads import Head
from glasszoo.heads.registry import head_class
from glasszoo.models import InterpretableClassifier
from heads import in_turn  # benchmarks/heads.py: a script's own folder is searched first

RESULTS = Path(__file__).parent / "results" / "prototypes"


def projecting_heads() -> list[str]:
    """The heads that have something to project, ProtoPNet first."""
    names = [name for name in glasszoo.list_heads() if head_class(name).project is not Head.project]
    return sorted(names, key=lambda name: (name != "protopnet", name))


def measure(options: argparse.Namespace) -> list[Row]:
    """A row for each head and number of classes."""
    dataset = create_dataset(options.data, "train", **({"size": 224} if options.data == "critters" else {}))
    rows = []
    for classes in options.classes:
        for head in options.heads:
            row = projection_row(head, classes, dataset, options)
            print(f"{head}, {classes} classes: {row['ratio']} ({row['low']}–{row['high']})", flush=True)
            rows.append(row)
    return rows


def in_memory(model: InterpretableClassifier, dataset: ImageDataset, options: argparse.Namespace) -> list[Batch]:
    """Batches of the first images; with as many classes as the model has."""
    classes = model.config.num_classes
    chosen = Subset(dataset, list(range(options.images)))
    batches = list(Loader(chosen, model.preprocess, options.batch, with_truth=False))
    if classes == len(dataset.classes):
        return batches
    dealt = (torch.arange(options.images) % classes).split(options.batch)
    return [batch._replace(labels=labels) for batch, labels in zip(batches, dealt, strict=True)]


def projection_row(head: str, classes: int, dataset: ImageDataset, options: argparse.Namespace) -> Row:
    """Projection against inference for one head."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = glasszoo.create_model(options.backbone, head=head, num_classes=classes).eval().to(device)
    assert isinstance(model, InterpretableClassifier)
    loader = in_memory(model, dataset, options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def inference() -> None:
        for batch in loader:
            model(batch.images.to(device), explain=0)

    def projection() -> None:
        model.project(loader)

    def again() -> None:
        model.load_state_dict(before)

    passes, projections, _ = in_turn([inference, projection, again], options.rounds, 1, device)
    ratios = [spent / base for spent, base in zip(projections, passes, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {
        "head": head,
        "images": options.images,
        "classes": classes,
        "prototypes": len(getattr(model.head, "prototypes", model.provenance)),
        "projected": len(model.provenance),
        "inference_s": f"{median(passes):.3f}",
        "projection_s": f"{median(projections):.3f}",
        "ratio": f"{middle:.3f}",
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
        "rounds": options.rounds,
        "backbone": options.backbone,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
    }


def parsed() -> argparse.Namespace:
    """The options of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", default="critters", help="critters, or a folder")
    common.add_argument("--rounds", type=int, default=5)
    common.add_argument("--threads", type=int, default=torch.get_num_threads())
    common.add_argument("--out", type=Path, help="a CSV file")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("projection", parents=[common])
    one.add_argument("--backbone", default="mobilenetv2_100")
    one.add_argument("--heads", nargs="+", default=projecting_heads())
    one.add_argument("--classes", nargs="+", type=int, default=[8, 200])
    one.add_argument("--images", type=int, default=64)
    one.add_argument("--batch", type=int, default=32)
    two = parts.add_parser("cabrnet", parents=[common])
    two.add_argument("--cabrnet-python", required=True, help="the python of an environment that has cabrnet")
    two.add_argument("--backbones", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    two.add_argument("--images", type=int, default=12, help="of each class, to train on")
    two.add_argument("--held-out", type=int, default=1, help="more of each class, to validate on; not timed")
    two.add_argument("--batch", type=int, default=16)
    two.add_argument("--size", type=int, default=224)
    two.add_argument("--per-class", type=int, default=10, help="prototypes of each class")
    two.add_argument("--dim", type=int, default=128)
    two.add_argument("--similarity", choices=("l2", "cosine"), default="l2")
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    torch.set_num_threads(options.threads)
    rows = measure(options) if options.part == "projection" else compare(options)
    print(as_table([list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]))
    out = options.out or RESULTS / f"{options.part}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
