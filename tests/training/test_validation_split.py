"""A model chosen on a split of its data set: which images are read, what the card says, and what is refused."""

import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import fit, rows, same, weights
from torch import Tensor

from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import DATASETS, create_dataset
from glasszoo.data.samples import Batch, Sample
from glasszoo.data.shard_index import INDEX, INDEX_FILE
from glasszoo.data.shard_writing import write_shards
from glasszoo.evaluation import evaluate
from glasszoo.models import Backbone, load_pretrained, read_facts
from glasszoo.training import Recipe, Trainer, load_recipe
from glasszoo.training.building import build_data
from glasszoo.training.engine import Engine
from glasszoo.training.recipe import DataRecipe

RECIPE = """
data: {name: FOLDER, validation_split: validation, batch_size: 8}
model: {backbone: test_resnet, image_size: 32, crop_pct: 1.0}
augmentation: {scale: [0.8, 1.0]}
epochs: 2
"""
COUNTS = {"train": 24, "validation": 9, "other": 9, "test": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of coloured noise, listed in an index.csv with four splits; two of them have the same labels."""
    root = tmp_path_factory.mktemp("images")
    lines = ["split,class,image"]
    for split, count in COUNTS.items():
        for number in range(count):
            noise = [Image.effect_noise((32, 32), 20 + 60 * (channel == number % 2)) for channel in range(3)]
            Image.merge("RGB", noise).save(root / f"{split}_{number}.png")
            lines.append(f"{split},{'ab'[number % 2]},{split}_{number}.png")
    (root / "index.csv").write_text("\n".join(lines))
    (root / "LICENSE").write_text("A licence")
    return root


@pytest.fixture(scope="module", params=["folder", "shards"])
def data(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in either form."""
    if request.param == "folder":
        return folder
    root = tmp_path_factory.mktemp("shards")
    for split in COUNTS:
        write_shards(create_dataset(str(folder), split), root, split, images_per_shard=5)
    return root


def recipe(data: Path, tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("FOLDER", str(data)))
    return load_recipe(str(path), overrides)


def ids(data: Path, split: str) -> list[str]:
    dataset = create_dataset(str(data), split)
    return sorted(dataset[index]["id"] for index in range(len(dataset)))  # type: ignore[index]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """Of which images the model learned, and on which it was judged."""
    noted: dict[str, list[str]] = {"learned": [], "judged": []}
    learn, logits = Engine.learn, Engine._logits

    def learning(self: Engine, batch: Batch, *rest: Any) -> Any:
        noted["learned"] += batch.ids
        return learn(self, batch, *rest)

    def judging(self: Engine, model: Any, batch: Batch) -> Tensor:
        noted["judged"] += batch.ids
        return logits(self, model, batch)

    monkeypatch.setattr(Engine, "learn", learning)
    monkeypatch.setattr(Engine, "_logits", judging)
    yield noted


def test_all_training_images_are_learned_from_and_the_split_judges(
    data: Path, tmp_path: Path, seen: dict[str, list[str]]
) -> None:
    fit(recipe(data, tmp_path, "epochs=1"), tmp_path / "run")
    assert sorted(seen["learned"]) == ids(data, "train") and len(seen["learned"]) == 24
    assert sorted(seen["judged"]) == ids(data, "validation") and len(seen["judged"]) == 9


def test_the_card_says_what_it_was_chosen_on(data: Path, tmp_path: Path) -> None:
    run = fit(recipe(data, tmp_path, "epochs=1", "data.validation_split=other"), tmp_path / "run")
    facts = read_facts(run / "best")
    assert facts.data is not None and facts.data.images == {"train": 24, "validation": 9}
    assert facts.data.validation_split == "other" and facts.data.license == "A licence"
    (metric,) = facts.metrics
    assert (metric.name, metric.split, metric.images) == ("top1", "validation", 9)
    assert "after epoch 1, among the images of the data's split 'other', unreadable ones left out" in metric.protocol
    told = (run / "best" / "README.md").read_text(encoding="utf-8")
    assert "split 'other'" in told and "24 train, 9 validation" in told and "carved" not in told


def test_a_stopped_run_goes_on_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: dict[str, list[str]]
) -> None:
    own = recipe(data, tmp_path)
    whole = fit(own, tmp_path / "whole")
    stopped = Trainer(own, tmp_path / "stopped", device="cpu", shows_progress=False)
    train_epoch = stopped._train_epoch

    def until(*arguments: Any) -> dict[str, float]:
        if stopped.progress.done == 1:
            raise RuntimeError("stopped")
        return train_epoch(*arguments)

    monkeypatch.setattr(stopped, "_train_epoch", until)
    with pytest.raises(RuntimeError, match="stopped"):
        stopped.fit()
    seen["learned"].clear(), seen["judged"].clear()
    fit(own, tmp_path / "stopped", resume=True)
    assert sorted(seen["learned"]) == ids(data, "train") and sorted(seen["judged"]) == ids(data, "validation")
    assert same(weights(whole), weights(tmp_path / "stopped")) and rows(whole) == rows(tmp_path / "stopped")
    with pytest.raises(InputError, match="another recipe: 'validation_split: validation' there, '.*: other' now"):
        fit(recipe(data, tmp_path, "data.validation_split=other"), tmp_path / "stopped", resume=True)


def test_a_probe_keeps_the_features_of_each_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"

    def probed(name: str, *overrides: str) -> list[dict[str, str]]:
        own = recipe(data, tmp_path, "probe=true", "optimizer.lr=1e-2", f"feature_cache={cache}", *overrides)
        return rows(fit(own, tmp_path / name))

    first = probed("first")
    assert len(list(cache.iterdir())) == 2  # training and validation
    other = probed("other", "data.validation_split=other")
    assert len(list(cache.iterdir())) == 3  # the same training images, and others with the same labels
    assert [row["train_loss"] for row in first] == [row["train_loss"] for row in other]
    assert first[0]["val_loss"] != other[0]["val_loss"]
    probed("carved", "data.validation_split=null", "data.validation=0.25")
    assert len(list(cache.iterdir())) == 5

    def refuse(self: Backbone, images: Tensor) -> None:
        raise AssertionError("the backbone was run")

    monkeypatch.setattr(Backbone, "forward", refuse)
    assert probed("second") == first


@pytest.mark.parametrize("split", ["test", "test[:50%]", "validation+test", "full/test"])
def test_the_test_split_is_refused(split: str, folder: Path) -> None:
    with pytest.raises(InputError, match="but the test split is read once, after training: a model chosen on it"):
        build_data(DataRecipe(str(folder), validation_split=split), seed=0)


@pytest.mark.parametrize(
    "split",
    [
        "train", "training", "trainval", "train[:50%]", "train+validation", "full/train", "2021_train",
        "genus/2021_train_mini",
    ],
)  # fmt: skip
def test_training_images_are_refused(split: str, folder: Path) -> None:
    with pytest.raises(InputError, match="but the model learns from these images: name another split, or leave it out"):
        build_data(DataRecipe(str(folder), validation_split=split), seed=0)


def test_a_split_that_is_not_there_is_named(data: Path) -> None:
    with pytest.raises(InputError, match="unknown split of .* 'vaildation': did you mean 'validation'"):
        build_data(DataRecipe(str(data), validation_split="vaildation"), seed=0)


class Grey:
    """A data set whose splits may say different things of their images."""

    def __init__(self, split: str, named: tuple[str, ...], without_targets: str = "train validation") -> None:
        self.classes = ("a", "b") if split == "train" else named
        self.labels, self.groups = torch.tensor([0, 1]), torch.arange(2)
        if split not in without_targets:
            self.targets = torch.eye(2, dtype=torch.uint8)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(image=Image.new("RGB", (32, 32)), label=index, id=str(index))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"named": ("a", "b", "c")}, "the split 'validation' has 3 classes, but 'train' has 2"),
        ({"named": ("a",)}, "the split 'validation' has 1 classes, but 'train' has 2"),
        ({"named": ("a", "c")}, "class 1 of the split 'validation' is 'c', but 'b' of 'train'"),
        (
            {"named": ("a", "b"), "without_targets": "validation"},
            "the split 'train' says of each image which classes are in it, but 'validation' does not",
        ),
        (
            {"named": ("a", "b"), "without_targets": "train"},
            "the split 'validation' says of each image which classes are in it, but 'train' does not",
        ),
    ],
)
def test_labels_that_mean_something_else_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "grey", Grey)
    with pytest.raises(InputError, match=message):
        build_data(DataRecipe("grey", options, validation_split="validation"), seed=0)
    training, validation = build_data(DataRecipe("grey", {"named": ("a", "b")}, validation_split="validation"), seed=0)
    assert len(training) == len(validation) == 2


def write_numbered(path: Path, labels: list[int]) -> None:
    """A shard as others write it: images and numbers of their classes, and nothing that names these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(image, "png")
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            for kind, content in (("png", image.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


def test_classes_without_names_need_not_all_be_in_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    write_numbered(data / "train/0.tar", [0, 1, 2, 0, 1, 2, 0, 1])
    write_numbered(data / "validation/0.tar", [0, 1, 0])
    assert create_dataset(str(data), "validation").classes == ("0", "1")
    run = fit(recipe(data, tmp_path, "epochs=1"), tmp_path / "run")
    model = load_pretrained(f"local-dir:{run / 'best'}")
    assert model.num_classes == 3 and len(rows(run)) == 1
    judged = evaluate(
        model, create_dataset(str(data), "validation"), methods=["built-in"], max_explained=2, progress=False
    )
    assert judged.class_names == ("0", "1", "2") and judged.logits.shape == (3, 3)
    write_numbered(data / "validation/0.tar", [0, 3])
    with pytest.raises(InputError, match="'validation' has an image of class 3, but 'train' has 3 classes"):
        build_data(DataRecipe(str(data), validation_split="validation"), seed=0)


def peak(act: Callable[[], Any]) -> int:
    """The most memory (bytes) that Python and NumPy held in the meantime."""
    tracemalloc.start()
    act()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_no_memory_is_taken_beside_that_of_the_splits(tmp_path: Path) -> None:
    for split, count in (("train", 20_000), ("validation", 100)):
        (tmp_path / split).mkdir()
        index = np.zeros(count, INDEX)
        index["label"], index["group"] = np.arange(count) % 2, np.arange(count)
        np.save(tmp_path / split / INDEX_FILE, index)
        (tmp_path / split / "0.tar").touch()

    def opened() -> Any:
        return [create_dataset(str(tmp_path), split) for split in ("train", "validation")]

    alone = peak(opened)
    assert peak(lambda: build_data(DataRecipe(str(tmp_path), validation_split="validation"), seed=0)) < 1.1 * alone
    assert peak(lambda: build_data(DataRecipe(str(tmp_path)), seed=0)) > 2 * alone  # what carving takes is seen so


def test_prototypes_are_pruned_by_the_split_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["model.head=protopnet", "model.head_kwargs={per_class: 2, dim: 8}", "probe=true", "epochs=3"]
    made = recipe(folder, tmp_path, *changes)
    trained = Trainer(made, tmp_path / "run", device="cpu", shows_progress=False).fit()
    asked = ["prune", "--model", f"local-dir:{trained.best}", "--data", str(folder), "--budget", "2"]
    told = {}
    for out, more in {"split": ["--validation-split", "validation"], "carved": ["--validation", "0.4"]}.items():
        assert main([*asked, *more, "--out", str(tmp_path / out)]) == 0
        told[out] = capsys.readouterr().out
    assert f" {trained.score:.2%}" in told["split"].splitlines()[2] != told["carved"].splitlines()[2]
