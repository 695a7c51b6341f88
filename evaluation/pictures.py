"""Evidence as pictures: zero-centred colours in logit units, one scale for all maps that stand side by side."""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..common.files import replacing
from ..heads import Contract, Explained
from ..models import Grid, Preprocessing
from .maps import placed

COLOURS = "RdBu_r"  # red speaks for the class, blue against it, white is nothing


def displayed(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """A model's input `c h w` as a picture again: `h w 3` uint8."""
    mean, std = (torch.tensor(statistic)[:, None, None] for statistic in (preprocessing.mean, preprocessing.std))
    picture = (image.cpu().float() * std + mean).clamp(0, 1)
    return (255 * picture.expand(3, -1, -1) if len(picture) == 1 else 255 * picture[:3]).byte().permute(1, 2, 0).numpy()


def blended(picture: np.ndarray, evidence: Tensor, limit: float, grid: Grid | None = None) -> np.ndarray:
    """The picture in pale grey under its evidence map (`h w`, any resolution), coloured from −limit to limit.

    `h w 3` in 0..1, of the picture's size. Each cell shades into its neighbours; where it stands, `placed` decides.
    What it sees is its receptive field.
    """
    height, width = picture.shape[:2]
    values = placed(evidence[None, None].cpu(), (height, width), grid)[0, 0].numpy() / max(limit, 1e-12)
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    colours = matplotlib.colormaps[COLOURS](0.5 + 0.5 * values.clip(-1, 1))[..., :3]
    opacity = 0.9 * np.abs(values).clip(0, 1)[..., None] ** 0.75
    return (0.35 + 0.65 * grey[..., None]) * (1 - opacity) + colours * opacity


def draw_evidence(axes: Axes, picture: np.ndarray, evidence: Tensor, limit: float, grid: Grid | None = None) -> None:
    """The picture under its evidence map, `blended`."""
    axes.imshow(blended(picture, evidence, limit, grid), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_mask(axes: Axes, mask: Tensor) -> None:
    """The outline of a mask (`h w` bool)."""
    if bool(mask.any()) and not bool(mask.all()):
        axes.contour(mask.cpu().numpy(), levels=[0.5], colors="black", linewidths=1.4)
        axes.contour(mask.cpu().numpy(), levels=[0.5], colors="#ffd400", linewidths=0.8)


def explanation_figure(
    picture: np.ndarray, explained: Explained, contract: Contract, class_names: Sequence[str], probabilities: Tensor
) -> Figure:
    """One image's explanation (the first of the batch): the picture, then the evidence for each explained class.

    `probabilities`: of the image's classes, `c`.
    All maps share one scale, so that a weak class looks weak.
    """
    maps = explained.maps[0].float()
    quantity = contract.explained_quantity(explained.logits)[0]
    word = "probability" if contract is Contract.PROBABILITY else "logit"
    limit = maps.abs().max().item() if maps.numel() else 0.0
    columns = 1 + len(maps)
    height, width = picture.shape[:2]
    figure = Figure(figsize=(3.1 * columns + 0.9, 3.1 * height / width + 0.95), dpi=110, layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    panels[0].imshow(picture)
    panels[0].set_axis_off()
    panels[0].set_title(_headline(probabilities, class_names), fontsize=9)
    for panel, number, evidence, offset in zip(
        panels[1:], explained.classes[0].tolist(), maps, explained.offset[0].tolist(), strict=True
    ):
        draw_evidence(panel, picture, evidence, limit)
        total = f"{word} {quantity[number]:.2f} = evidence {evidence.sum():.2f} + offset {offset:.2f}"
        panel.set_title(f"{shorten(class_names[number], 34)}  {probabilities[number]:.1%}\n{total}", fontsize=9)
    if len(maps):
        scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
        figure.colorbar(scale, ax=list(panels), label=f"evidence a cell ({word})", shrink=0.85, aspect=30)
    return figure


def contrast_figure(
    picture: np.ndarray, maps: Tensor, difference: Tensor, names: tuple[str, str], contract: Contract
) -> Figure:
    """The picture, the evidence for two classes (`2 h w`), and the first less the second (`h w`), on one scale."""
    word = "probability" if contract is Contract.PROBABILITY else "logit"
    shown = [*maps.float(), difference.float()]
    limit = max(each.abs().max().item() for each in shown)
    height, width = picture.shape[:2]
    figure = Figure(figsize=(13.3, 3.1 * height / width + 0.95), dpi=110, layout="constrained")
    panels = figure.subplots(1, 4)
    panels[0].imshow(picture)
    panels[0].set_axis_off()
    first, second = (shorten(name, 34) for name in names)
    titles = (first, second, f"{first}\nrather than {second}")
    for panel, evidence, title in zip(panels[1:], shown, titles, strict=True):
        draw_evidence(panel, picture, evidence, limit)
        panel.set_title(f"{title}\nevidence {evidence.sum():.2f}", fontsize=9)
    scale = ScalarMappable(Normalize(-limit, limit), COLOURS)
    figure.colorbar(scale, ax=list(panels), label=f"evidence a cell ({word})", shrink=0.85, aspect=30)
    return figure


def swaps_figure(
    picture: np.ndarray,
    distractor: np.ndarray,
    titles: tuple[str, str],
    swaps: Sequence[tuple[int, int]],
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> Figure:
    """Two pictures side by side, cells that were swapped framed and numbered in both; `grids`: rows and columns."""
    figure = Figure(figsize=(8.4, 4.5), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for side, (panel, shown, title, (rows, columns)) in enumerate(
        zip(panels, (picture, distractor), titles, grids, strict=True)
    ):
        panel.imshow(shown)
        panel.set_axis_off()
        panel.set_title(title, fontsize=9)
        height, width = shown.shape[0] / rows, shown.shape[1] / columns
        for number, swap in enumerate(swaps, 1):
            row, column = divmod(swap[side], columns)
            corner = (column * width - 0.5, row * height - 0.5)
            for colour, thickness in (("black", 3.0), ("#ffd400", 1.5)):
                panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=thickness))
            label = {"color": "black", "fontsize": 8, "bbox": {"facecolor": "#ffd400", "pad": 1, "linewidth": 0}}
            panel.text(corner[0] + width / 2, corner[1] + height / 2, str(number), ha="center", va="center", **label)
    return figure


def comparison_figure(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    maps: dict[str, Tensor],
    masks: Tensor,
    grid: Grid | None = None,
) -> Figure:
    """A column an image: the picture, then its map by each method (`maps`: name → `b h w`, all on `grid`).

    Each map has its own scale; the masks (`b H W` bool) are outlined.
    """
    rows, columns = 1 + len(maps), len(pictures)
    height, width = pictures[0].shape[:2]
    figure = Figure(figsize=(2.1 * columns + 0.3, 2.1 * height / width * rows + 0.4), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for column, picture in enumerate(pictures):
        panels[0][column].imshow(picture)
        panels[0][column].set_title(titles[column], fontsize=8)
        for row, of_method in enumerate(maps.values(), 1):
            draw_evidence(panels[row][column], picture, of_method[column], of_method[column].abs().max().item(), grid)
        for row in range(rows):
            draw_mask(panels[row][column], masks[column])
            panels[row][column].set(xticks=[], yticks=[])
            panels[row][column].spines[:].set_visible(False)
    for row, name in enumerate(["image", *maps]):
        panels[row][0].set_ylabel(name, fontsize=9)
    return figure


def curves_figure(curves: dict[str, dict[str, Tensor]]) -> Figure:
    """Mean insertion and deletion curves: metric → method → `k + 1` scores."""
    figure = Figure(figsize=(4.6 * len(curves), 3.2), dpi=100, layout="constrained")
    for axes, (metric, methods) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for place, (name, curve) in enumerate(methods.items()):
            # Lines that coincide (Grad-CAM and CAM of a linear head) stay visible through each other's gaps.
            style = ("-", (0, (4, 3)), "-.", ":", (0, (1, 2)))[place % 5]
            axes.plot(torch.linspace(0, 100, len(curve)), curve, label=name, linestyle=style)
        axes.set_xlabel("pixels restored (%)" if metric == "insertion" else "pixels deleted (%)")
        axes.set_ylabel("probability of the explained class")
        axes.set_title(metric)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(as_png(figure))


def _headline(probabilities: Tensor, class_names: Sequence[str]) -> str:
    top = probabilities.argmax().item()
    return f"{shorten(class_names[int(top)], 34)}\n{probabilities.max():.1%}"
