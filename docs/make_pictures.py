"""Draws the README's pictures of critters: `python docs/make_pictures.py [local-dir:CHECKPOINT]`.

With a checkpoint, such as the demo's local-dir:runs/demo/cam/best, also the picture of its evidence.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import glasszoo
from glasszoo.data.critter_interventions import keep_only, remove, replace_background, swap
from glasszoo.data.critter_render import render
from glasszoo.data.critter_scenes import sample_scenes
from glasszoo.data.critters import Critters
from glasszoo.data.samples import collate
from glasszoo.evaluation.pictures import comparison_figure, displayed, save_figure
from glasszoo.evaluation.scoring import EVIDENCE

SIZE, GAP = 128, 4
HERE = Path(__file__).parent


def sheet(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Pictures `n h w 3` side by side."""
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (SIZE + GAP) - GAP, rows * (SIZE + GAP) - GAP), "white")
    for place, image in enumerate(images):
        page.paste(Image.fromarray(image), (place % columns * (SIZE + GAP), place // columns * (SIZE + GAP)))
    return page


def contact_sheet() -> Image.Image:
    """Four critters of each class, a class a column."""
    classes = len(Critters().classes)
    rule = Critters().rule
    indices = np.arange(32 * classes)
    scenes = sample_scenes(indices, 0, split="train")
    labels = rule.label(scenes)
    chosen = np.stack([np.flatnonzero(labels == label)[:4] for label in range(classes)], axis=1).ravel()
    return sheet(render(scenes.take(chosen), SIZE).images, classes)


def interventions() -> Image.Image:
    """One critter; its mask; head removed; only head and tail kept; tail swapped; another background; the tag."""
    scene = sample_scenes([11], 0, split="test")
    drawn = render(scene, SIZE)
    parts = np.array([0, 60, 255, 110, 255, 110, 110], dtype=np.uint8)[drawn.regions]
    changed = [
        remove(scene, "head"),
        keep_only(scene, ["head", "tail"]),
        swap(scene, "tail", "puff"),
        replace_background(scene, 1),
        sample_scenes([11], 0, split="test", tag="aligned"),
    ]
    images = [drawn.images, np.repeat(parts[..., None], 3, axis=3), *(render(each, SIZE).images for each in changed)]
    return sheet(np.concatenate(images), len(images))


@torch.inference_mode()
def explained(source: str) -> None:
    """Eight test critters and the evidence for what the model takes them for; the decisive parts are outlined."""
    model = glasszoo.load_pretrained(source)
    size = model.config.preprocessing.input_size[1]
    batch = collate([model.preprocess(sample) for sample in Critters("test", size=size).__getitems__(range(8))])
    out = model(batch.images)
    titles = [
        f"{model.class_names[number]}\nlogit {logits[number]:.1f}"
        for number, logits in zip(out.classes[:, 0].tolist(), out.logits, strict=True)
    ]
    pictures = [displayed(image, model.config.preprocessing) for image in batch.images]
    figure = comparison_figure(pictures, titles, {"evidence": out.maps[:, 0]}, batch.masks == EVIDENCE)
    save_figure(figure, HERE / "explained.png")


if __name__ == "__main__":
    contact_sheet().quantize(256).save(HERE / "critters.png", optimize=True)
    interventions().quantize(128).save(HERE / "interventions.png", optimize=True)
    for checkpoint in sys.argv[1:]:
        explained(checkpoint)
