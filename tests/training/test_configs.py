"""Every shipped recipe says where it comes from, and runs: each of its phases on generated images, small and narrow."""

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glasszoo.heads import Phase, list_heads
from glasszoo.models import ImageClassifier, create_model
from glasszoo.training import Recipe, Trainer, list_recipes, load_recipe
from glasszoo.training.phases import freeze, planned

STRESSES = ("miner", "rust", "phoma", "cercospora")  # the columns that coffee_multilabel asks for
COLOURS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (220, 40, 30)}
# The recipe's own architecture, so that its patterns find what they name, but narrow.
NARROW: dict[str, dict[str, Any]] = {
    "resnet": {"channels": (16, 16, 32, 32), "stem_width": 16},
    "convnext": {"dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1)},
}
GENERAL = [name for name in list_recipes() if load_recipe(name).model.head == "cam"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six coloured squares each, with masks and boxes; and with several labels an image."""
    root = tmp_path_factory.mktemp("squares")
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        for place in range(6):
            image, mask = Image.new("RGB", (48, 40), (90, 90, 90)), Image.new("L", (48, 40))
            left, top = 4 * place, 3 * place
            image.paste(colour, (left, top, left + 20, top + 20))
            mask.paste(255, (left, top, left + 20, top + 20))
            paths = [f"{name}{place}.png", f"{name}{place}_mask.png"]
            image.save(root / paths[0])
            mask.save(root / paths[1])
            stresses = [int(number == column) for column in range(3)] + [int(place < 2)]
            rows.append(["train", name, *paths, left, top, left + 20, top + 20, *stresses])
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["split", "class", "image", "mask", "x1", "y1", "x2", "y2", *STRESSES], *rows])
    return root


@cache
def header(name: str) -> str:
    text = (files("glasszoo") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    return text[: text.index("\ndata:")]


@pytest.mark.parametrize("name", list_recipes())
def test_a_header_says_what_a_reader_needs(name: str) -> None:
    text = header(name)
    assert all(line.startswith("#") for line in text.splitlines())
    fields = dict(re.findall(r"^# (Paper|Source|Hardware|Time|Expected|Run): +(\S.*)$", text, re.MULTILINE))
    assert {"Hardware", "Time", "Expected", "Run"} <= fields.keys() and fields.keys() & {"Paper", "Source"}
    assert fields["Run"].startswith(f"glasszoo train {name}")
    # A number has a place that it comes from, or it is said that there is none.
    assert re.search(r"not run here|docs/\w+\.md|README\.md|card|seed 0", text, re.IGNORECASE)


def narrowed(backbone: str) -> tuple[str, dict[str, Any]]:
    """An architecture whose parameters have the names of `backbone`'s, and its arguments."""
    architecture = backbone.partition(".")[0].replace("mobilenetv2_100", "mobilenetv2_035")
    return architecture, next((kwargs for family, kwargs in NARROW.items() if architecture.startswith(family)), {})


def small(name: str, folder: Path) -> Recipe:
    """The recipe with its own head, losses, phases, augmentation and optimizer, for two steps of each phase."""
    recipe = load_recipe(name)
    architecture, kwargs = narrowed(recipe.model.backbone)
    model = replace(
        recipe.model,
        backbone=architecture,
        pretrained=False,
        weights=None,
        backbone_kwargs=recipe.model.backbone_kwargs | kwargs,
        image_size=64,
    )
    is_drawn = recipe.data.name == "critters"
    accumulate = recipe.optimizer.accumulate
    data = replace(
        recipe.data,
        name=recipe.data.name if is_drawn else str(folder),
        options={"size": 64, "count": 24} if is_drawn else recipe.data.options,
        validation=0.2,
        batch_size=max(1, (8 if is_drawn else 6) // accumulate),
        num_workers=0,
    )
    own = recipe.phases or create_model(architecture, head=model.head, num_classes=3, backbone_kwargs=kwargs).phases()
    phases = tuple(replace(phase, epochs=1) for phase in own)
    return replace(recipe, model=model, data=data, phases=phases, epochs=len(phases))


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_runs_through_all_its_phases(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = small(name, folder)
    assert recipe.phases is not None
    trainer = Trainer(recipe, tmp_path / "run", device="cpu", shows_progress=False)
    assert len(trainer.loaders.training) >= 2 * recipe.optimizer.accumulate, "two steps of the optimizer"
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trained = trainer.fit()
    assert 0 <= trained.score <= 1 and trained.best.is_dir()
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == [phase.name for phase in recipe.phases]
    assert {f"top1_after_{change}" for change in changes(recipe.phases)} <= rows[-1].keys()
    patterns = [pattern for phase in recipe.phases for pattern in phase.trains]
    for key, value in trainer.model.named_parameters():
        # Weights that no phase trains stay what they were.
        if not any(fnmatch(key, pattern) for pattern in patterns) or (recipe.probe and key.startswith("backbone.")):
            assert torch.equal(before[key], value), key
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.named_parameters())


def changes(phases: tuple[Phase, ...]) -> Iterator[str]:
    for phase in phases:
        yield from ["projection"] * phase.project + ["pruning"] * phase.prune


@pytest.mark.parametrize("name", GENERAL)
def test_a_general_recipe_takes_every_head(name: str) -> None:
    recipe = load_recipe(name)
    for head in list_heads():
        # Phases of a recipe stand in place of the head's own.
        own = load_recipe(name, [f"model.head={head}", *(["phases=null"] if recipe.phases else [])])
        assert own.model.head == head and replace(own, model=recipe.model, phases=recipe.phases) == recipe
        # PIP-Net's first phase trains its prototypes; without an add-on these are the backbone, which a probe freezes.
        options = {"num_prototypes": 32} if head == "pipnet" and recipe.probe else {}
        model = narrow_model(own.model.backbone, head, own.model.output_stride, **options)
        for phase in planned(model.phases(), own.epochs):
            freeze(model, phase, own.probe)


@cache
def narrow_model(backbone: str, head: str, output_stride: int | None, **options: int) -> ImageClassifier:
    """For twelve classes, of the narrowest kin of `backbone`; recipes share it."""
    architecture, kwargs = narrowed(backbone)
    return create_model(
        architecture,
        head=head,
        num_classes=12,
        output_stride=output_stride,
        head_kwargs=options,
        backbone_kwargs=kwargs,
    )
