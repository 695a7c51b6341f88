"""Writes docs/heads.md, a field guide: a row, an entry and a picture for each head, from real checkpoints.

    python docs/make_head_guide.py RUNS IMAGE IMAGE IMAGE

RUNS is a folder of benchmarks/frontier.py: RUNS/HEAD_0/best is a head's checkpoint. Scores are those that stand in
benchmarks/results. The text is each head's own docstring; the pictures are the same images for all.
"""

import csv
import inspect
import re
import sys
from pathlib import Path

import torch

import glasszoo
from glasszoo.data.folder import read_image
from glasszoo.evaluation.pictures import comparison_figure, displayed, save_figure
from glasszoo.heads import head_class, list_heads
from glasszoo.models import BLACK_BOX

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
SCORES = {
    "top1": "test top-1",
    "insertion": "insertion ↑",
    "deletion": "deletion ↓",
    "energy_pointing_game": "energy ↑",
}
TABLES = {  # a table of the page: what stands in its place, by the name of the results
    "coffee_probe": "Coffee leaves, probe",
    "leeds_probe": "Butterflies, probe",
    "coffee_finetune": "Coffee leaves, fine-tuned",
    "leeds_finetune": "Butterflies, fine-tuned",
}


@torch.no_grad()
def picture(head: str, checkpoint: Path, images: list[Path]) -> None:
    """The images, and under each the evidence for the class that the model takes it for."""
    model = glasszoo.load_pretrained(f"local-dir:{checkpoint}")
    batch = torch.stack([model.preprocess(read_image(path)) for path in images])
    out = model(batch)
    shares = out.logits.softmax(1).amax(1).tolist()
    names = [model.class_names[number] for number in out.classes[:, 0].tolist()]
    titles = [f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True)]
    pictures = [displayed(image, model.config.preprocessing) for image in batch]
    nothing = torch.zeros(len(images), *batch.shape[-2:], dtype=torch.bool)
    save_figure(comparison_figure(pictures, titles, {head: out.maps[:, 0]}, nothing), HERE / "heads" / f"{head}.png")


def read_scores(name: str) -> dict[str, dict[str, str]]:
    """The rows of a table of results, by head, in its order."""
    with (RESULTS / name / "heads.csv").open(encoding="utf-8") as file:
        return {row["head"]: row for row in csv.DictReader(file)}


def table(title: str, scores: dict[str, dict[str, str]]) -> str:
    """A table of the page: a row a head, the most accurate first."""
    columns = ["head", "contract", "seeds", *SCORES.values()]
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for head, row in scores.items():
        contract = "none; Grad-CAM" if head == BLACK_BOX else str(head_class(head).contract)
        rows.append(f"| `{head}` | {contract} | {row['seeds']} | {' | '.join(row[score] for score in SCORES)} |")
    return "\n".join([f"**{title}**", "", *rows])


def entry(head: str, scores: dict[str, dict[str, dict[str, str]]]) -> str:
    """A head's section: contract, what its docstring says, options, scores, picture."""
    kind = head_class(head)
    text, _, options = inspect.getdoc(kind).partition("\n\nArgs:\n")  # type: ignore[union-attr]
    path = f"heads/{Path(inspect.getfile(kind)).name}"
    told = [f"## `{head}`", f"*{kind.contract}* · [{path}](../{path})", text]
    listed = [line for line in re.split(r"\n(?=    \w)", f"\n{options}") if line.strip()]
    own = [" ".join(line.split()) for line in listed if not line.strip().startswith(("num_features", "num_classes"))]
    if own:
        told.append("\n".join(f"- `{name.strip()}`: {what.strip()}" for name, what in (o.split(":", 1) for o in own)))
    for name, rows in scores.items():
        if head in rows:
            numbers = " · ".join(f"{title} {rows[head][score]}" for score, title in SCORES.items())
            told.append(f"{TABLES[name]}: {numbers}")
    if (HERE / "heads" / f"{head}.png").is_file():
        told.append(f"![Evidence of {head} on three images](heads/{head}.png)")
    return "\n\n".join(told)


def main(runs: Path, images: list[Path]) -> None:
    """The page and its pictures."""
    scores = {name: read_scores(name) for name in TABLES if (RESULTS / name / "heads.csv").is_file()}
    for head in list_heads():
        if (runs / f"{head}_0" / "best").is_dir():
            picture(head, runs / f"{head}_0" / "best", images)
    page = (HERE / "heads_introduction.md").read_text(encoding="utf-8").strip()
    for name, rows in scores.items():
        page = page.replace(f"<!-- {name} -->", table(TABLES[name], rows))
    entries = [entry(head, scores) for head in list_heads()]
    (HERE / "heads.md").write_text("\n\n".join([page, *entries]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    runs, *images = map(Path, sys.argv[1:])
    main(runs, images)
