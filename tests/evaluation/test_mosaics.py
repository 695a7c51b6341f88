"""The grid pointing game within an evaluation: maps whose answer is known, and what is said where it fails."""

import csv
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.samples import ImageDataset
from glasszoo.evaluation import METHODS, Conventions, MapMethod, evaluate, mosaics
from glasszoo.evaluation.results import as_csv
from glasszoo.models import ImageClassifier, Preprocessing

METRIC = "grid_pointing"


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return create_dataset("critters", "test", count=40)


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    torch.manual_seed(0)
    preprocessing = Preprocessing((3, 64, 64), crop_pct=1.0)
    return glasszoo.create_model("test_byobnet", num_classes=8, preprocessing=preprocessing).eval()


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch, dataset: ImageDataset) -> None:
    """The model is taken to be sure of every image."""

    def certain(confidences: Tensor, *given: object, **more: object) -> Tensor:
        return chosen(torch.ones_like(confidences), *given, **more)  # type: ignore[arg-type]

    chosen = mosaics.choose_images
    monkeypatch.setattr(mosaics, "choose_images", certain)


def judged(model: ImageClassifier, dataset: ImageDataset, methods: list[str], **options: object) -> dict[str, Tensor]:
    found = evaluate(
        model, dataset, methods=methods, metrics=[METRIC], conventions=Conventions(bootstrap=50), max_explained=6,
        progress=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return {method.name: method.scores[METRIC] for method in found.methods}


def test_maps_whose_answer_is_known(
    model: ImageClassifier, dataset: ImageDataset, sure: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`numbers` of a mosaic's cells are 4 times its own, plus the cell."""

    def pointing(wrong: int) -> MapMethod:
        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            maps = torch.zeros(len(images), 4)
            maps[torch.arange(len(images)), (indices + wrong) % 4] = 1
            return maps.unflatten(1, (2, 2)).repeat_interleave(64, 1).repeat_interleave(64, 2)

        return MapMethod(f"pointing-{wrong}", "post-hoc", explain)

    for wrong in (0, 1):
        monkeypatch.setitem(METHODS, f"pointing-{wrong}", lambda model, wrong=wrong: pointing(wrong))
    found = judged(model, dataset, ["pointing-0", "pointing-1", "uniform", "random", "built-in"])
    assert all(len(scores) == 6 for scores in found.values())
    assert found["pointing-0"].tolist() == [1] * 6 and found["pointing-1"].tolist() == [0] * 6
    torch.testing.assert_close(found["uniform"], torch.full((6,), 0.25))
    assert found["random"].mean().item() == pytest.approx(0.25, abs=0.06)
    assert found["built-in"].isfinite().all()


def test_nothing_depends_on_the_batch_and_a_kill(
    model: ImageClassifier, dataset: ImageDataset, sure: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judged(model, dataset, ["built-in", "random"])
    monkeypatch.setattr(mosaics, "_AT_ONCE", 1)
    for name, scores in judged(model, dataset, ["built-in", "random"], batch_size=3, store=tmp_path).items():
        torch.testing.assert_close(scores, whole[name], atol=1e-5, rtol=0)


def test_an_unsure_model_says_so_and_the_rest_stands(model: ImageClassifier, dataset: ImageDataset) -> None:
    found = evaluate(
        model, dataset, methods=["built-in"], metrics=["pointing_game", METRIC], max_explained=4, progress=False
    )
    (note,) = found.notes
    assert note == "grid_pointing: a mosaic takes 4 classes with an image of confidence 0.99 or more, but 0 have one"
    (method,) = found.methods
    assert method.metrics == ["pointing_game", METRIC] and found.score(method, METRIC).images == 0


def test_mosaics_are_not_mixed_up_with_images(model: ImageClassifier, dataset: ImageDataset, sure: None) -> None:
    found = evaluate(
        model, dataset, methods=["built-in"], metrics=["pointing_game", METRIC], max_explained=4, progress=False
    )
    header = next(csv.reader(io.StringIO(as_csv(found))))
    assert "built-in/pointing_game" in header and f"built-in/{METRIC}" not in header
