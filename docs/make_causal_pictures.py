"""Draws docs/why.png and docs/counterfactual.png from two critters: `python docs/make_causal_pictures.py`."""

import tempfile
from pathlib import Path

from PIL import Image

from glasszoo import load_pretrained
from glasszoo.data import create_dataset
from glasszoo.evaluation.contrastive import contrast_images
from glasszoo.evaluation.counterfactual import show_counterfactual

DOCS = Path(__file__).parent


def main() -> None:
    """Write the pictures."""
    model = load_pretrained("cam_test_byobnet.s64_critters")
    data = create_dataset("critters", "test", count=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = [folder / "one.png", folder / "two.png"]
        for number, path in zip((0, 3), photographs, strict=True):
            Image.fromarray(data[number]["image"].permute(1, 2, 0).numpy()).save(path)
        (told,) = contrast_images(model, photographs[:1], folder, None, None)
        (DOCS / "why.png").write_bytes(told.picture.read_bytes())
        swapped = show_counterfactual(model, *photographs, folder)
        (DOCS / "counterfactual.png").write_bytes(swapped.picture.read_bytes())
        print(told.why, told.instead, told.evidence.margin, swapped.before, swapped.target, swapped.found.edits)


if __name__ == "__main__":
    main()
