"""ProtoPNet of glasszoo against that of CaBRNet, on the same images: `python benchmarks/prototypes.py cabrnet`.

    python -m venv /tmp/cabrnet && /tmp/cabrnet/bin/pip install cabrnet
    python benchmarks/prototypes.py cabrnet --cabrnet-python /tmp/cabrnet/bin/python [--backbones …] [--rounds 5]

An epoch of the joint phase and a projection, in turn: glasszoo in this process, CaBRNet in one of its own
(`cabrnet_side.py`), which sleeps meanwhile. Each round builds a new model; the first warms up and is left out. Times
are taken inside: an epoch (reading, forward, losses, backward, step) and a projection, no imports, no validation, no
checkpoints. Written: milliseconds an image, the share of the epoch spent waiting for data, and how many times as fast
glasszoo is (`ratio`, median of the rounds, with quartiles).

Same on both sides: the images (PNG files of 256 pixels), read from disk in each epoch by the main process, resized to
`--size` with the same filter and normalised, without augmentation, since CaBRNet has none of its own (its recipes
augment on disk); batch size; architecture (timm's and torchvision's ResNet-18 and MobileNetV2); random weights; two 1×1
convolutions to `--dim` channels; prototypes; squared distances and the log-ratio; cross entropy, cluster, separation
and L1 terms; backbone, add-on and prototypes train and the last layer does not; fp32; the number of threads.

What differs is each library's own default: glasszoo trains with AdamW and in channels_last, CaBRNet with Adam, as in
its recipes, and in torch's usual layout. CaBRNet fetches all loss terms after each batch; glasszoo looks at its own
after every tenth. glasszoo keeps as many patches of each prototype as make sure that no two of a class become the same;
CaBRNet keeps the nearest one, so that several can. `--similarity cosine` takes glasszoo's default head instead:
cells and prototypes are compared by cosine, connections are non-negative, and the L1 term is left out.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.augmentation import Augmentation
from glasszoo.data.samples import ImageDataset
from glasszoo.data.subsets import Subset
from glasszoo.heads import Phase
from glasszoo.training import Recipe, Trainer
from glasszoo.training.building import build_data, build_model
from glasszoo.training.recipe import DataRecipe, ModelRecipe

STORED = 256  # side in pixels of critters on disk
# timm's name: torchvision's, and the node that gives the features.
ARCHITECTURES = {"resnet18": ("resnet18", "layer4"), "mobilenetv2_100": ("mobilenet_v2", "features")}
PIL_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
Row = dict[str, object]
Round = dict[str, float]  # images, seconds of training and projection, waiting (0..1), parameters of the backbone


def compare(options: argparse.Namespace) -> list[Row]:
    """Two rows for each backbone."""
    side = {"size": STORED} if options.data == "critters" else {}
    dataset = first_of_each_class(create_dataset(options.data, "train", **side), options.images + options.held_out)
    with tempfile.TemporaryDirectory() as folder:
        data = export(dataset, options.held_out, Path(folder), options.batch)
        return [row for name in options.backbones for row in rows_of(name, data, dataset.classes, options)]


def first_of_each_class(dataset: ImageDataset, count: int) -> Subset:
    """The first `count` images of each class.

    Raises:
        InputError: A class has fewer.
    """
    places = [(dataset.labels == label).nonzero()[:count, 0].tolist() for label in range(len(dataset.classes))]
    for name, own in zip(dataset.classes, places, strict=True):
        if len(own) < count:
            raise InputError(f"class {name!r} has {len(own)} images, but {count} of each class are wanted")
    return Subset(dataset, [place for own in places for place in own])


def export(dataset: ImageDataset, held_out: int, folder: Path, batch: int) -> DataRecipe:
    """Write the images as PNG files below `folder/all/CLASS`; link those that train from `folder/train/CLASS`.

    `held_out` images of each class are the validation split, which glasszoo's trainer wants; nobody is timed on them.
    """
    for number in range(len(dataset)):
        sample = dataset[number]
        image = sample["image"] if hasattr(sample["image"], "save") else to_pil_image(sample["image"])
        path = folder / "all" / dataset.classes[sample["label"]] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    recipe = DataRecipe(
        name=str(folder / "all"),
        validation=held_out * len(dataset.classes) / len(dataset),
        batch_size=batch,
    )
    training, _ = build_data(recipe, seed=0)
    if len(training) % batch:
        raise InputError(f"{len(training)} training images are no whole batches of {batch}: change --images or --batch")
    for number in range(len(training)):
        name = training[number]["id"]
        link = folder / "train" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / "all" / name)
    return recipe


def our_recipe(backbone: str, data: DataRecipe, options: argparse.Namespace) -> Recipe:
    """One epoch of the joint phase, the images as they are."""
    similarity = {"similarity": "l2", "connection": "signed"} if options.similarity == "l2" else {}
    kwargs = {"per_class": options.per_class, "dim": options.dim, **similarity}
    trains = ("backbone.*", "head.prototypes", "head.add_on.*")
    return Recipe(
        data=data,
        model=ModelRecipe(
            backbone=backbone,
            head="protopnet",
            head_kwargs=kwargs,
            image_size=options.size,
            crop_mode="squash",
            crop_pct=1.0,
        ),
        augmentation=Augmentation(crop=False, hflip=0.0),
        epochs=1,
        phases=(Phase("joint", epochs=1, trains=trains),),
    )


def our_round(recipe: Recipe, folder: Path) -> Round:
    """An epoch as metrics.csv tells it, and a projection."""
    trainer = Trainer(recipe, folder, device="cpu", shows_progress=False)
    trainer.fit()
    with (folder / "metrics.csv").open() as file:
        epoch = next(csv.DictReader(file))
    images = len(trainer.loaders.projection.dataset)
    begin = time.perf_counter()
    trainer.model.project(trainer.loaders.projection)
    projection = time.perf_counter() - begin
    parameters = sum(parameter.numel() for parameter in trainer.model.backbone.parameters())
    return {
        "images": images,
        "training": images / float(epoch["images_per_second"]),
        "projection": projection,
        "waiting": float(epoch["waiting_for_data"]),
        "parameters": parameters,
    }


class CaBRNetSide:
    """The process of `cabrnet_side.py`."""

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        script = Path(__file__).with_name("cabrnet_side.py")
        environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"])}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([python, str(script)], env=environment, **pipes)
        self.versions = self.answer(json.dumps(settings))

    def answer(self, line: str = "") -> dict[str, Any]:
        """What it says to `line`; without one it measures a round."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise InputError(f"cabrnet_side.py stopped with {self._process.wait()}; its reason stands above")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def settings_for(backbone: str, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, Any]:
    """What CaBRNet's side has to know."""
    architecture, layer = ARCHITECTURES[backbone]
    preprocessing = build_model(recipe.model, classes).config.preprocessing
    return {
        "folder": str(Path(recipe.data.name).with_name("train")),
        "architecture": architecture,
        "layer": layer,
        "classes": len(classes),
        "per_class": recipe.model.head_kwargs["per_class"],
        "dim": recipe.model.head_kwargs["dim"],
        "size": recipe.model.image_size,
        "batch": recipe.data.batch_size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": PIL_FILTERS[preprocessing.interpolation],
        "threads": torch.get_num_threads(),
    }


def rows_of(backbone: str, data: DataRecipe, classes: tuple[str, ...], options: argparse.Namespace) -> list[Row]:
    """A row for training and one for projection."""
    recipe = our_recipe(backbone, data, options)
    settings = settings_for(backbone, recipe, classes)
    side = CaBRNetSide(options.cabrnet_python, settings)
    pairs = []
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as run:
            pairs.append((our_round(recipe, Path(run)), side.answer()))
        ours, theirs = pairs[-1]
        print(f"{backbone}, round {number}: glasszoo {told(ours)}; CaBRNet {told(theirs)}", flush=True)
    side.close()
    return [compared(work, pairs[1:], backbone, settings, side.versions) for work in ("training", "projection")]


def told(numbers: Round) -> str:
    """A round in words."""
    return ", ".join(f"{work} {numbers[work]:.2f} s" for work in ("training", "projection"))


def compared(
    work: str,
    pairs: list[tuple[Round, Round]],
    backbone: str,
    settings: dict[str, Any],
    versions: dict[str, str],
) -> Row:
    """Milliseconds an image of both, and how many times as fast glasszoo is."""
    ours, theirs = pairs[0]
    for same in ("images", "parameters"):
        if ours[same] != theirs[same]:
            raise InputError(f"{backbone}: {ours[same]} {same} in glasszoo, {theirs[same]} in CaBRNet")
    each = [[1000 * one[work] / one["images"] for one in side] for side in zip(*pairs, strict=True)]
    waiting = [median(one["waiting"] for one in side) for side in zip(*pairs, strict=True)]
    ratios = [theirs / ours for ours, theirs in zip(*each, strict=True)]
    cuts = [f"{cut:.3f}" for cut in quantiles(ratios, n=4)]
    return {
        "backbone": backbone,
        "work": work,
        "images": ours["images"],
        "classes": settings["classes"],
        "prototypes": settings["classes"] * settings["per_class"],
        "glasszoo_ms": f"{median(each[0]):.2f}",
        "cabrnet_ms": f"{median(each[1]):.2f}",
        **dict(zip(("low", "ratio", "high"), cuts, strict=True)),
        "rounds": len(pairs),
        "glasszoo_waiting": f"{waiting[0]:.3f}" if work == "training" else "",
        "cabrnet_waiting": f"{waiting[1]:.3f}" if work == "training" else "",
        "batch": settings["batch"],
        "size": settings["size"],
        "threads": settings["threads"],
        "glasszoo_torch": torch.__version__,
        "cabrnet_torch": versions["torch"],
        "cabrnet": versions["cabrnet"],
    }
