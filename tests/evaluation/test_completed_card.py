"""A card that an evaluation completed tells what was measured, shows what may be shown, and nothing private."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.data.samples import ImageDataset
from glasszoo.evaluation import Conventions, Evaluation, complete_card, evaluate, publish, report
from glasszoo.evaluation.pictures import comparison_figure
from glasszoo.evaluation.results import as_csv, as_json
from glasszoo.models import (
    BLACK_BOX,
    CardFacts,
    DataFacts,
    ImageClassifier,
    Metric,
    Preprocessing,
    read_facts,
    save_pretrained,
)

FACTS = CardFacts(
    data=DataFacts("critters", "drawn by code", "Apache-2.0", {"train": 5000}),
    weights_license="Apache-2.0",
    commands=("glasszoo train critters",),
    seed=0,
    code="glasszoo 0.1.0",
    hardware="cpu",
    metrics=(Metric("top1", 0.9, "on validation", "critters", "validation", 10),),
)
PLACE = {"data": "critters", "split": "test"}


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return create_dataset("critters", "test", count=10)


def made(head: str = "cam") -> ImageClassifier:
    torch.manual_seed(0)
    size = Preprocessing((3, 64, 64), crop_pct=1.0)
    names = create_dataset("critters", "test", count=1).classes
    model = glasszoo.create_model("test_byobnet", head=head, num_classes=8, class_names=names, preprocessing=size)
    if head == "protopnet":
        training = create_dataset("critters", "train", count=16)
        model.project(Loader(training, model.preprocess, 8))
    return model.eval()


def judged(model: ImageClassifier, dataset: ImageDataset, **choices: object) -> Evaluation:
    conventions = Conventions(steps=4, bootstrap=50, **choices)  # type: ignore[arg-type]
    return evaluate(model, dataset, conventions=conventions, max_explained=6, progress=False)


@pytest.mark.parametrize("head", ["cam", "protopnet", BLACK_BOX])
def test_a_completed_card_lacks_nothing(head: str, dataset: ImageDataset, tmp_path: Path) -> None:
    model = made(head)
    save_pretrained(model, tmp_path, FACTS)
    assert read_facts(tmp_path).lacking()[0] == "accuracy on a test split"
    evaluation = judged(model, dataset)
    facts = complete_card(tmp_path, evaluation, dataset, **PLACE, command="glasszoo evaluate")
    assert facts == read_facts(tmp_path) and facts.lacking() == []
    assert facts.commands == ("glasszoo train critters", "glasszoo evaluate")
    by_key = {metric.key: metric for metric in facts.metrics}
    assert ("top1", "critters", "validation", None) in by_key, "what was known stays"
    top1 = by_key["top1", "critters", "test", None]
    assert (top1.value, top1.low, top1.high) == evaluation.accuracy()["top1"][:3] and top1.images == 10
    for method in evaluation.methods:
        for name, scores in method.scores.items():
            metric = by_key[name, "critters", "test", method.name]
            assert metric.value == pytest.approx(scores.double().nanmean().item()) and metric.images == 6
    assert all(len(metric.protocol) > 20 for metric in facts.metrics if metric.split == "test")
    card = (tmp_path / "README.md").read_text()
    assert all(f"| {metric.name} | " in card and metric.protocol in card for metric in facts.metrics)
    assert (tmp_path / "explanation.png").exists() == (head != BLACK_BOX) == ("](explanation.png)" in card)
    assert ("prototypes", "critters", "test", None) in by_key or head != "protopnet"


def test_the_picture_shows_images(dataset: ImageDataset, tmp_path: Path) -> None:
    """Also where the built-in map was not scored: it is what the card is about."""
    model = made()
    save_pretrained(model, tmp_path)
    evaluation = evaluate(model, dataset, methods=["random"], metrics=[], progress=False)
    complete_card(tmp_path, evaluation, dataset, **PLACE)
    with Image.open(tmp_path / "explanation.png") as picture:
        assert picture.width > 1.5 * picture.height, "four columns, two rows"
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 1000


def test_protocols_tell_the_conventions(dataset: ImageDataset, tmp_path: Path) -> None:
    def told(**choices: object) -> str:
        save_pretrained(model, tmp_path)
        complete_card(tmp_path, judged(model, dataset, **choices), dataset, **PLACE)
        return (tmp_path / "README.md").read_text()

    model = made()
    usual = told()
    assert "probability of the predicted class, from none to all pixels in 4 steps" in usual
    assert "maps stretched over the image" in usual and "the 95% bootstrap interval over images (50 resamples)" in usual
    other = told(target="label", output="logit", placement="receptive_field", confidence=0.9)
    assert "logit of the label" in other and "centre" in other and "the 90% bootstrap" in other
    assert "predicted class, from" not in other and "stretched over the image" not in other


def test_evaluated_again_numbers_are_replaced(dataset: ImageDataset, tmp_path: Path) -> None:
    model = made()
    save_pretrained(model, tmp_path, FACTS)
    evaluation = judged(model, dataset)
    once = complete_card(tmp_path, evaluation, dataset, **PLACE, command="glasszoo evaluate")
    assert complete_card(tmp_path, evaluation, dataset, **PLACE, command="glasszoo evaluate") == once
    elsewhere = complete_card(tmp_path, evaluation, dataset, data="/home/someone/critters2", split="test")
    assert {metric.data for metric in elsewhere.metrics} == {"critters", "critters2"}
    assert "someone" not in (tmp_path / "README.md").read_text()


def test_private_images_stay_private(dataset: ImageDataset, tmp_path: Path) -> None:
    model = made("protopnet")
    folder = tmp_path / "private"
    publish(model, folder, prototypes="withheld", facts=FACTS)
    facts = complete_card(folder, judged(model, dataset), dataset, **PLACE)
    assert facts.withholds_images and facts.picture is None and facts.lacking() == []
    assert "None: the images are private." in (folder / "README.md").read_text()
    assert not list(folder.rglob("*.png"))
    ids = {f"test/{number}" for number in range(10)} | {f"train/{number}" for number in range(16)}
    texts = [path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"]
    assert not any(identifier in text for identifier in ids for text in texts)


def test_a_picture_is_withheld_when_asked_and_never_published_with_the_rest(
    dataset: ImageDataset, tmp_path: Path
) -> None:
    model = made()
    save_pretrained(model, tmp_path / "run", FACTS)
    evaluation = judged(model, dataset)
    facts = complete_card(tmp_path / "run", evaluation, dataset, **PLACE)
    assert (tmp_path / "run" / "explanation.png").exists()
    publish(model, tmp_path / "private", prototypes="withheld", facts=facts)
    assert not list((tmp_path / "private").rglob("*.png")) and read_facts(tmp_path / "private").picture is None
    assert complete_card(tmp_path / "run", evaluation, dataset, **PLACE, withholds_images=True).picture is None
    assert not (tmp_path / "run" / "explanation.png").exists()
    again = complete_card(tmp_path / "run", evaluation, dataset, **PLACE)
    assert again.withholds_images and again.picture is None, "once withheld, they stay so"


def test_another_models_card_is_left_alone(dataset: ImageDataset, tmp_path: Path) -> None:
    model = made()
    save_pretrained(made("gmp"), tmp_path / "gmp", FACTS)
    before = (tmp_path / "gmp" / "README.md").read_bytes()
    evaluation = judged(model, dataset)
    with pytest.raises(InputError, match="gmp holds no checkpoint of glasszoo of the evaluated model"):
        complete_card(tmp_path / "gmp", evaluation, dataset, **PLACE)
    assert (tmp_path / "gmp" / "README.md").read_bytes() == before
    with pytest.raises(InputError, match="no checkpoint: "):
        complete_card(tmp_path / "nowhere", evaluation, dataset, **PLACE)


def test_a_model_without_names_is_told_by_the_data_sets(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    model.config = replace(model.config, class_names=None)
    evaluation = judged(model, dataset)
    rows = [line.split(",") for line in as_csv(evaluation).splitlines()[1:]]
    assert [row[1] for row in rows] == [dataset.classes[label] for label in dataset.labels]
    assert {row[2] for row in rows} <= set(dataset.classes)
    assert as_json(evaluation)["model"]["classes"] == list(dataset.classes)
    titles: list[str] = []

    def watched(pictures: Any, told: list[str], *arguments: Any) -> Figure:
        titles.extend(told)
        return comparison_figure(pictures, told, *arguments)

    monkeypatch.setattr(report, "comparison_figure", watched)
    report.write_report(tmp_path / "report.html", "title", {"model": evaluation}, dataset)
    assert len(titles) == 6 and all(any(name in title for name in dataset.classes) for title in titles)
