"""The pictures that W&B is shown: which images, what is drawn, and what lies over it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import fit, recipe
from wandb_files import Logged, offline_runs

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Batch
from glasszoo.data.subsets import Subset
from glasszoo.evaluation.pictures import blended, displayed
from glasszoo.models import ImageClassifier
from glasszoo.training import Trainer
from glasszoo.training.wandb_media import Showcase, spread_over_classes


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_DATA"))


def shown(trainer: Trainer, model: ImageClassifier) -> Batch:
    """The batch that is shown, read anew."""
    showcase = trainer.report._showcase
    subset = Subset(showcase._dataset, showcase.places)
    return next(iter(Loader(subset, model.preprocess, len(subset))))


def pictures(logged: Logged, epoch: int) -> dict[str, list]:
    (row,) = [row for row in logged.history if row.get("epoch") == epoch]
    return {name.partition(".")[2]: value for name, value in row.items() if name.startswith("explanations.")}


def test_evidence_of_the_same_images_every_few_epochs_under_their_truth(tmp_path: Path) -> None:
    own = recipe(tmp_path, "epochs=5")
    trainer = Trainer(own, tmp_path / "run", device="cpu", wandb="offline", wandb_images_every=2, shows_progress=False)
    (logged,) = offline_runs(trainer.fit().folder)
    assert [row["epoch"] for row in logged.history if "explanations.count" in row] == [2, 4, 5]
    model = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'run' / 'last'}")
    batch, found = shown(trainer, model), pictures(logged, 5)
    assert found["count"] == len(batch.ids) == 16
    with torch.no_grad():
        explained = model(batch.images, 1)
    limit = explained.maps.abs().max().item()
    names, differences = model.class_names, []
    for place in range(16):
        picture = displayed(batch.images[place], model.config.preprocessing)
        expected = blended(picture, explained.maps[place, 0], limit)
        with Image.open(logged.file(found["filenames"][place])) as image:
            drawn = np.array(image)
        assert drawn.shape == (32, 32, 3) and np.abs(drawn / 255 - expected).max() < 0.5 / 255 + 1e-5
        differences.append(np.abs(drawn / 255 - picture / 255).max())
        label, top = int(batch.labels[place]), int(explained.logits[place].argmax())
        percent = f"{explained.logits[place].softmax(0).max():.1%}"
        assert found["captions"][place] == f"{names[top]} {percent}, truly {names[label]} · {batch.ids[place]}"
        boxes = json.loads(logged.file(found["all_boxes"][place]["truth"]["path"]).read_text())["box_data"]
        corners = [[box["position"][edge] for edge in ("minX", "minY", "maxX", "maxY")] for box in boxes]
        assert corners == batch.boxes[place].tolist()
        assert [(b["class_id"], b["box_caption"], b["domain"]) for b in boxes] == [(label, names[label], "pixel")]
        with Image.open(logged.file(found["all_masks"][place]["truth"]["path"])) as image:
            assert np.array_equal(np.array(image), batch.masks[place].numpy())
    assert max(differences) > 0.1 and bool((batch.masks == 255).any()) and bool((batch.masks == 128).any())
    told = logged.config["_wandb"]
    key = "explanations_wandb_delimeter_truth"
    assert told["mask/class_labels"][key]["value"] == {"255": "evidence", "128": "rest of the object"}
    labels = {str(label): names[label] for label in set(batch.labels.tolist())}
    assert told["bounding_box/class_labels"][key]["value"] == labels
    early, late = pictures(logged, 2), pictures(logged, 5)
    ids = [[caption.rpartition(" · ")[2] for caption in found["captions"]] for found in (early, late)]
    assert ids[0] == ids[1] == batch.ids and early["filenames"] != late["filenames"]


def test_without_pictures_nothing_of_an_image_leaves_the_run(tmp_path: Path) -> None:
    own = recipe(tmp_path, "epochs=5", "model.head=protopnet")
    (logged,) = offline_runs(fit(own, tmp_path / "run", wandb="offline", wandb_images_every=0))
    assert not list(logged.folder.rglob("*.png"))
    (row,) = [row for row in logged.history if "prototypes.path" in row and "epoch" in row]
    assert "source" not in logged.table(row, "prototypes")[0]


def test_a_probe_and_a_black_box_are_shown_as_well(tmp_path: Path) -> None:
    probe = fit(recipe(tmp_path, "epochs=1", "probe=true", "augmentation={}"), tmp_path / "probe", wandb="offline")
    assert pictures(offline_runs(probe)[0], 1)["count"] == 16
    own = recipe(tmp_path, "epochs=1", "model.head=black_box")
    trainer = Trainer(own, tmp_path / "dark", device="cpu", wandb="offline", shows_progress=False)
    (logged,) = offline_runs(trainer.fit().folder)
    found, batch = pictures(logged, 1), shown(trainer, trainer.model)
    with Image.open(logged.file(found["filenames"][3])) as image:
        assert np.array_equal(np.array(image), displayed(batch.images[3], trainer.model.config.preprocessing))


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder in which one image has a box alone, one a mask alone, one nothing, and one cannot be read."""
    folder = tmp_path / "few"
    folder.mkdir()
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "class", "image", "mask", "x1", "y1", "x2", "y2"])
        for number, (mask, box) in enumerate((("", (1, 2, 3, 4)), ("m.png", [""] * 4), ("", [""] * 4), ("", [""] * 4))):
            writer.writerow(["train", "ab"[number % 2], f"{number}.png", mask, *box])
            Image.new("RGB", (40, 40), (number * 40, 0, 0)).save(folder / f"{number}.png")
    Image.new("L", (40, 40), 255).save(folder / "m.png")
    (folder / "3.png").write_text("no image")
    return folder


def test_what_is_not_known_is_not_drawn(few: Path) -> None:
    model = glasszoo.create_model("test_resnet", head="cam", num_classes=2, class_names=("a", "b"))
    model.train()
    model.backbone.eval()
    before = {name: module.training for name, module in model.named_modules()}
    found = Showcase(create_dataset(str(few), "train"), seed=0).explanations(model)["explanations"]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert [(image._boxes is not None, image._masks is not None) for image in found] == [
        (True, False), (False, True), (False, False),
    ]  # fmt: skip
    for number in range(3):
        (few / f"{number}.png").write_text("no image")
    assert Showcase(create_dataset(str(few), "train"), seed=0).explanations(model) == {}


def test_images_are_spread_over_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 3)
    chosen = spread_over_classes(labels, 11, seed=0)
    assert chosen == sorted(set(chosen)) and labels[chosen].bincount().tolist() == [4, 4, 3]
    assert chosen == spread_over_classes(labels, 11, seed=0) != spread_over_classes(labels, 11, seed=1)
    assert spread_over_classes(labels, 200, seed=0) == list(range(103))
    many = torch.arange(100).repeat_interleave(5)
    assert len(set(many[spread_over_classes(many, 16, seed=0)].tolist())) == 16
    assert sorted(many[spread_over_classes(many, 16, seed=0)].tolist()) != list(range(16)), "the first classes always"
