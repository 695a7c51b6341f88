"""Draws docs/sheets.png from benchmarks/results/sheets: `python docs/make_sheet_picture.py`.

A panel a data set: accuracy against the rank correlation of a map with the effect of deleting patches (single
deletion), a dot a head, its own map filled and Grad-CAM of the same model hollow, joined by a line.
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from glasszoo.evaluation.pictures import save_figure

ROOT = Path(__file__).parents[1]
TITLES = {
    "critters": "critters",
    "coffee_leaf": "coffee leaves",
    "leeds_butterfly": "butterflies",
    "cub": "CUB, 50 species",
}


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(13, 7.5), dpi=90, layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, TITLES.items(), strict=True):
        with (ROOT / "benchmarks" / "results" / "sheets" / name / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        by_model: dict[str, dict[str, tuple[float, float]]] = {}
        for row in rows:
            if row["single_deletion"]:
                found = by_model.setdefault(row["model"], {})
                found[row["map"]] = (100 * float(row["top1"]), float(row["single_deletion"]))
        for model, maps in by_model.items():
            own, post_hoc = maps.get("built-in"), maps.get("grad-cam")
            if own and post_hoc:
                axes.plot(*zip(own, post_hoc, strict=True), color="0.8", lw=1, zorder=1)
            if post_hoc:
                is_black_box = own is None
                axes.plot(*post_hoc, "ks" if is_black_box else "o", mfc="none", mec="k" if is_black_box else "C0", ms=6)
            if own:
                axes.plot(*own, "o", color="#b2182b", ms=6, zorder=3)
            axes.annotate(model, own or post_hoc, fontsize=7, xytext=(4, 3), textcoords="offset points")
        random = [maps["random"][1] for maps in by_model.values() if "random" in maps]
        axes.axhspan(min(random), max(random), color="0.92", zorder=0)
        axes.set(title=title, xlabel="test top-1 (%)", ylabel="single deletion")
        axes.grid(alpha=0.25)
    handles = [
        axes.plot([], [], "o", color="#b2182b", label="built-in map")[0],
        axes.plot([], [], "o", mfc="none", mec="C0", label="Grad-CAM of the same model")[0],
        axes.plot([], [], "ks", mfc="none", label="Grad-CAM of the black box")[0],
        axes.plot([], [], color="0.88", lw=8, label="random maps, over all models")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    save_figure(figure, ROOT / "docs" / "sheets.png")


if __name__ == "__main__":
    main()
