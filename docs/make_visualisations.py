"""Draws docs/visualised.jpg and docs/layers.jpg: `python docs/make_visualisations.py`, about six minutes on one core.

What classes and prototypes of shipped checkpoints look for, 256 steps from seed 0; and the layers of a critter.
"""

import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from glasszoo import load_pretrained
from glasszoo.data import create_dataset
from glasszoo.evaluation.feature_visualisation import Unit, visualise
from glasszoo.evaluation.pictures import save_figure
from glasszoo.evaluation.visualisation_files import unit_title, write_layers

ROOT = Path(__file__).parents[1]
# Checkpoint, side of the pictures, units. ImageNet's numbers: monarch, goose, volcano, daisy, tarantula, jellyfish.
SHOWN = [
    ("cam_mobilenetv2_100.coral_in1k", 128, [Unit("class", number) for number in (323, 99, 980, 985, 76, 107)]),
    (
        "cam_mobilenetv2_100.coral_in1k",
        128,
        [Unit("channel", 4, 1), Unit("channel", 5, 2), Unit("channel", 20, 3), Unit("channel", 84, 3),
         Unit("channel", 10), Unit("channel", 700)],
    ),
    ("scouter_mobilenetv2_100.finetune_coffee", 160, [Unit("class", number) for number in range(4)]),
    ("mgproto_mobilenetv2_100.finetune_coffee", 160, [Unit("part", number) for number in (0, 10, 20, 30)]),
    ("protopnet_mobilenetv2_100.s64_critters", 64, [Unit("part", number) for number in (0, 9, 10, 30)]),
    ("cam_test_byobnet.s64_critters", 64, [Unit("class", number) for number in range(6)]),
]  # fmt: skip


def main() -> None:
    """Write the pictures."""
    columns = max(len(units) for _, _, units in SHOWN)
    figure = Figure(figsize=(2.2 * columns, 2.6 * len(SHOWN)), dpi=80, layout="constrained")
    panels = figure.subplots(len(SHOWN), columns)
    for row, (name, size, units) in zip(panels, SHOWN, strict=True):
        model, begin = load_pretrained(name), time.perf_counter()
        found = visualise(model, units, size=size, progress=False)
        print(f"{name}: {len(units)} pictures of {size} pixels in {time.perf_counter() - begin:.0f} s")
        for panel in row:
            panel.set_axis_off()
        for panel, unit, picture, answers in zip(row, units, found.pictures, found.answers.T, strict=False):
            panel.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set_title(f"{unit_title(model, unit)[:26]}\n{answers[0]:.1f} → {answers[-1]:.1f}", fontsize=8)
        place = {"transform": row[0].transAxes, "rotation": 90, "ha": "right", "va": "center", "fontsize": 7}
        row[0].text(-0.06, 0.5, name.replace(".", "\n."), **place)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "visualised.png"
        save_figure(figure, drawn)
        critter = Path(folder) / "critter.png"
        image = create_dataset("critters", "test", size=224, count=1)[0]["image"]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(critter)
        layers = write_layers(load_pretrained(SHOWN[0][0]), critter, Path(folder))
        for name, path in (("visualised", drawn), ("layers", layers)):
            Image.open(path).convert("RGB").save(ROOT / "docs" / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
