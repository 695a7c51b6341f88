"""Visualised units, the layers' feature maps and gradients as pictures: what `glasszoo visualise` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..common.errors import InputError
from ..data.folder import read_image
from ..models import ImageClassifier
from ..models.eval_mode import eval_mode
from .feature_visualisation import Unit, Visualised, stage_features
from .methods import map_method
from .pictures import displayed, save_figure

_GRADIENTS = ("gradient", "smoothgrad", "input-x-gradient", "guided-backprop")
_CHANNELS = 6  # of each stage, shown for a photograph


def unit_title(model: ImageClassifier, unit: Unit) -> str:
    """The class's name, or what the unit is."""
    return model.class_names[unit.number] if unit.kind == "class" else str(unit)


def write_units(model: ImageClassifier, units: Sequence[Unit], found: Visualised, folder: Path) -> list[Path]:
    """A PNG for each unit, and `units.png` with all of them and how much each answers before and after."""
    columns = min(len(units), 6)
    rows = -(-len(units) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.95 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    paths = []
    for panel, unit, picture, answers in zip(panels, units, found.pictures, found.answers.T, strict=False):
        shown = _as_picture(picture)
        panel.imshow(shown, interpolation="nearest")
        title = unit_title(model, unit)
        panel.set_title(f"{title[:30]}\n{answers[0]:.1f} → {answers[-1]:.1f}", fontsize=8)
        alone = Figure(figsize=(3, 3), dpi=100)
        axes = alone.add_axes((0, 0, 1, 1))
        axes.imshow(shown, interpolation="nearest")
        axes.set_axis_off()
        path = folder / f"{str(unit).replace(' ', '_')}.png"
        save_figure(alone, path)
        paths.append(path)
    for panel in panels:
        panel.set_axis_off()
    save_figure(figure, folder / "units.png")
    return [*paths, folder / "units.png"]


@torch.no_grad()
def write_layers(model: ImageClassifier, photo: Path, folder: Path) -> Path:
    """The most active channels of each stage for a photograph, each on its own scale: `PHOTO_layers.png`."""
    image = model.preprocess(read_image(photo))[None].to(next(model.parameters()).device)
    with eval_mode(model):
        stages = stage_features(model, image)
    figure = Figure(figsize=(2 * (_CHANNELS + 1), 2.2 * len(stages)), dpi=90, layout="constrained")
    panels = figure.subplots(len(stages), _CHANNELS + 1, squeeze=False)
    for row, (stage, features) in zip(panels, stages.items(), strict=True):
        maps = features[0].float().cpu()
        row[0].imshow(displayed(image[0], model.config.preprocessing))
        row[0].set_title(f"stage {stage}\n{len(maps)} channels {maps.shape[1]} × {maps.shape[2]}", fontsize=8)
        for panel, channel in zip(row[1:], maps.mean((1, 2)).argsort(descending=True).tolist(), strict=False):
            panel.imshow(maps[channel].numpy(), cmap="magma")
            panel.set_title(f"channel {channel}, {maps[channel].mean():.2f}", fontsize=8)
    for panel in panels.ravel():
        panel.set_axis_off()
    path = folder / f"{photo.stem}_layers.png"
    save_figure(figure, path)
    return path


def write_gradients(model: ImageClassifier, photo: Path, folder: Path) -> tuple[Path, list[str]]:
    """Gradients of the top class for a photograph, `PHOTO_gradients.png`; and why some are not there."""
    image = model.preprocess(read_image(photo))[None].to(next(model.parameters()).device)
    with eval_mode(model), torch.no_grad():
        top = model(image, explain=0).logits.argmax(1)
    maps: dict[str, Tensor] = {}
    reasons = []
    for name in _GRADIENTS:
        try:
            maps[name] = map_method(name, model).explain(image, top, torch.zeros(1, dtype=torch.long))[0].cpu()
        except InputError as error:
            reasons.append(str(error))
    figure = Figure(figsize=(3 * (1 + len(maps)), 3.3), dpi=100, layout="constrained")
    panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    panels[0].imshow(displayed(image[0], model.config.preprocessing))
    panels[0].set_title(model.class_names[int(top)][:34], fontsize=9)
    for panel, (name, values) in zip(panels[1:], maps.items(), strict=True):
        # A few pixels have most of the gradient: the rest is seen below the 99th percentile.
        limit = float(np.quantile(values.abs().numpy(), 0.99)) or 1.0
        panel.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        panel.set_title(name, fontsize=9)
    for panel in panels:
        panel.set_axis_off()
    path = folder / f"{photo.stem}_gradients.png"
    save_figure(figure, path)
    return path, reasons


def _as_picture(picture: Tensor) -> np.ndarray:
    return (255 * picture.permute(1, 2, 0)).round().byte().cpu().numpy()
