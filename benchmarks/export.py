"""Does every head's exported program compute what the model does? `python benchmarks/export.py [--backbones …]`.

Exports each head on each backbone, weights drawn at random, in both formats, for the two top classes, and writes for
each: the file's size, and the largest difference of logits, maps and parts from torch's on images of other numbers and
sizes than the traced ones (in parts of the largest logit, as `export_model` measures it). What is refused stands there
with the reason. Rows of other backbones that the file holds are kept.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import list_heads
from glasszoo.models import BLACK_BOX, export_model

SMALL = ("test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050")
COLUMNS = ("backbone", "head", "format", "gap", "megabytes", "refused")


def exported(backbone: str, head: str, format: str, file: Path) -> dict[str, str]:
    """One row."""
    torch.manual_seed(0)
    model = glasszoo.create_model(backbone, head=head, num_classes=10)
    # As in tests/heads/test_contract.py: logits of untrained heads are too small to be compared.
    for parameter in model.get_classifier().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    row = {"backbone": backbone, "head": head, "format": format}
    try:
        done = export_model(model, file, format, top="all" if head == BLACK_BOX else 2)
    except InputError as error:
        return row | {"refused": str(error)}
    return row | {"gap": f"{done.gap:.1e}", "megabytes": f"{file.stat().st_size / 1e6:.1f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=SMALL)
    parser.add_argument("--heads", nargs="+", default=[*list_heads(), BLACK_BOX])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export.csv")
    options = parser.parse_args()
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if options.out.is_file():
        with options.out.open(newline="") as file:
            rows = {(row["backbone"], row["head"], row["format"]): row for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as folder:
        for backbone in options.backbones:
            for head in options.heads:
                for format in ("onnx", "torch-export"):
                    row = exported(backbone, head, format, Path(folder) / "program")
                    rows[backbone, head, format] = row
                    print(*row.values(), flush=True)
                    with options.out.open("w", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        writer.writeheader()
                        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
