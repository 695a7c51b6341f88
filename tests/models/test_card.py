"""Model cards: no field is forgotten, what is unknown is said, and programs read what people read."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import Contract, list_heads
from glasszoo.models import (
    BLACK_BOX,
    CardFacts,
    DataFacts,
    ImageClassifier,
    Metric,
    ModelFacts,
    Preprocessing,
    read_facts,
    save_pretrained,
)
from glasszoo.models.card_text import MEANING, card_sections, card_text

SECTIONS = [
    "Model", "Picture", "Data", "Licences", "How it was made", "Metrics", "Intended use", "Limits",
    "What the map does not say",
]  # fmt: skip
FULL = CardFacts(
    data=DataFacts("Leaves", "leaves on a table", "MIT License", {"train": 1200, "validation": 200}),
    weights_license="CC BY-NC 4.0",
    commands=("glasszoo train leaves.yaml --out runs/leaves", "glasszoo evaluate --into-card"),
    seed=7,
    code="glasszoo 0.1.0, commit 0123abc",
    hardware="cpu (a processor, 2 threads)",
    metrics=(
        Metric("top1", 0.912, "share of images ranked right", "Leaves", "test", 300, 0.88, 0.94),
        Metric("insertion", 0.7, "area under a curve", "Leaves", "test", 100, map="built-in"),
        Metric("insertion", 0.3, "area under a curve", "Leaves", "test", 100, map="random"),
    ),
    intended_use="For leaves.",
    limits=("Photographed indoors.",),
    picture="explanation.png",
)


def made(head: str = "cam", backbone: str = "test_resnet", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    size = Preprocessing((3, 96, 128), crop_pct=1.0)
    return glasszoo.create_model(
        backbone, head=head, num_classes=3, class_names=("sound", "rust", "miner"), preprocessing=size, **options
    )


def saved(folder: Path, facts: CardFacts | None = FULL, model: ImageClassifier | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "explanation.png").write_bytes(b"a picture")
    save_pretrained(model or made(), folder, facts)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("head", [*list_heads(), BLACK_BOX])
def test_no_card_lacks_a_field(head: str, tmp_path: Path) -> None:
    card = saved(tmp_path, model=made(head))
    facts = read_facts(tmp_path)
    assert facts.lacking() == []
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in card.split("\n## ")[1:]}
    assert list(sections) == SECTIONS and all(sections.values())
    for told in (
        "leaves on a table", "MIT License", "1,200 train", "200 validation", "CC BY-NC 4.0", "runs/leaves", "Seed: 7",
        "commit 0123abc", "2 threads", "0.912 [0.88, 0.94]", "share of images ranked right", "For leaves.",
        "Photographed indoors.", "sound, rust, miner", "explanation.png",
    ):  # fmt: skip
        assert told in card
    assert "glasszoo, Apache-2.0" in sections["Licences"]
    assert MEANING[made(head).contract] in sections["Limits"]
    assert not any(word in card for word in ("None", "unknown"))


MISSING: dict[str, CardFacts] = {
    "data": replace(FULL, data=None),
    "description of the data": replace(FULL, data=DataFacts("Leaves", None, "MIT", {"train": 1})),
    "licence of the data": replace(FULL, data=DataFacts("Leaves", "leaves", None, {"train": 1})),
    "images of each split": replace(FULL, data=DataFacts("Leaves", "leaves", "MIT")),
    "licence of the weights": replace(FULL, weights_license=None),
    "command": replace(FULL, commands=()),
    "seed": replace(FULL, seed=None),
    "commit": replace(FULL, code=None),
    "hardware": replace(FULL, hardware=None),
    "accuracy on a test split": replace(FULL, metrics=FULL.metrics[1:]),
    "scores of the map": replace(FULL, metrics=(FULL.metrics[0], FULL.metrics[2])),
    "picture": replace(FULL, picture=None),
    "protocol of top1": replace(FULL, metrics=(replace(FULL.metrics[0], protocol=""), *FULL.metrics[1:])),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_field_is_told(name: str, tmp_path: Path) -> None:
    saved(tmp_path, MISSING[name])
    lacking = read_facts(tmp_path).lacking()
    assert name in lacking
    assert name == "data" or lacking == [name]


def test_every_field_of_the_facts_can_be_missed() -> None:
    """A new field has to be judged: can a released card do without it?"""
    empty = replace(CardFacts(), model=ModelFacts.of(made()))
    needed = {"data", "weights_license", "commands", "seed", "code", "hardware", "metrics", "picture"}
    optional = {"intended_use", "limits", "notes", "withholds_images", "model"}
    assert set(asdict(empty)) == needed | optional
    assert set(empty.lacking()) == set(MISSING) - {"protocol of top1"}
    assert "model" in CardFacts().lacking()
    accurate = replace(FULL.metrics[0], split="validation")
    assert "accuracy on a test split" in replace(FULL, metrics=(accurate,)).lacking(), "validation chose the model"
    called = replace(FULL.data or DataFacts(""), validation_split="val")
    accurate = replace(FULL.metrics[0], split="val")
    assert "accuracy on a test split" in replace(FULL, data=called, metrics=(accurate,)).lacking()
    assert "accuracy on a test split" not in replace(FULL, metrics=(accurate, *FULL.metrics[1:])).lacking()


def test_a_pretrained_backbone_needs_a_licence(tmp_path: Path) -> None:
    """Weights from elsewhere without one are named; those from timm carry timm's."""
    model = glasszoo.wrap(timm.create_model("test_resnet", num_classes=3))
    card = saved(tmp_path, model=model)
    assert read_facts(tmp_path).lacking() == ["licence of the backbone's weights"]
    assert "test_resnet, trained elsewhere; licence: unknown" in card


def test_what_is_unknown_is_said(tmp_path: Path) -> None:
    save_pretrained(made(), tmp_path)
    sections = card_sections(read_facts(tmp_path))
    assert "unknown what the model was trained on" in sections["Data"]
    assert "These weights: unknown" in sections["Licences"] and "none, trained from scratch" in sections["Licences"]
    assert sections["How it was made"].count("unknown") == 4
    assert sections["Metrics"] == "Not measured." and sections["Picture"] == "None yet."
    assert "3 classes" in sections["Intended use"]


def test_limits_follow_from_the_model(tmp_path: Path) -> None:
    def limits(model: ImageClassifier) -> str:
        return card_sections(replace(FULL, model=ModelFacts.of(model)))["Limits"]

    model = made("local_cam", head_kwargs={"stage": -3})
    assert model.grid is not None and model.grid.receptive_field[0] < 96
    height, width = model.grid.receptive_field
    told = limits(model)
    assert f"{width} × {height} pixels, up to {height * width / (96 * 128):.0%} of the image" in told
    assert "No pixel outside its field" in told
    squeezed = made(backbone="test_efficientnet")
    assert squeezed.grid is not None and squeezed.grid.sees_whole_image
    assert "let every cell see some of every pixel" in limits(squeezed) and "No pixel outside" not in limits(squeezed)
    assert set(MEANING) == set(Contract) and len(set(MEANING.values())) == len(Contract)


def test_a_black_box_has_no_map_to_speak_of() -> None:
    facts = replace(FULL, picture=None, metrics=FULL.metrics[:1], model=ModelFacts.of(made(BLACK_BOX)))
    assert facts.lacking() == []
    sections = card_sections(facts)
    assert sections["Picture"] == "None: a black box gives no map."
    assert "There is no map" in sections["What the map does not say"]


def test_the_hub_reads_the_metadata(tmp_path: Path) -> None:
    saved(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.license == "cc-by-nc-4.0" and data.library_name == "glasszoo" and data.datasets == ["leaves"]
    assert data.pipeline_tag == "image-classification" and {"cam", "interpretability"} <= set(data.tags)
    top1, insertion = data.eval_results
    assert (top1.metric_type, top1.metric_value, top1.dataset_name, top1.dataset_split) == (
        "accuracy", 0.912, "Leaves", "test",
    )  # fmt: skip
    assert (insertion.metric_type, insertion.metric_name) == ("insertion", "insertion of built-in")


@pytest.mark.parametrize(
    ("license", "id", "name"),
    [
        ("MIT License", "mit", None),
        ("Apache-2.0", "apache-2.0", None),
        ("A licence of ours", "other", "A licence of ours"),
    ],
)
def test_licences_by_the_hubs_ids(license: str, id: str, name: str | None) -> None:
    facts = replace(FULL, weights_license=license, model=ModelFacts.of(made()))
    front = yaml.safe_load(card_text(facts).split("---")[1])
    assert (front["license"], front.get("license_name")) == (id, name)


def test_only_a_repository_of_the_hub_is_a_base_model() -> None:
    for source, expected in (
        ("timm/test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"),
        ("https://x.org/a.pth", None),
    ):
        model = replace(ModelFacts.of(made()), backbone_weights="test_resnet", backbone_source=source)
        assert yaml.safe_load(card_text(replace(FULL, model=model)).split("---")[1]).get("base_model") == expected


def test_facts_come_back(tmp_path: Path) -> None:
    saved(tmp_path)
    model = made()
    facts = read_facts(tmp_path)
    assert facts == replace(FULL, model=ModelFacts.of(model)) and facts.model is not None
    assert facts.model.parameters == sum(weight.numel() for weight in model.parameters())
    assert read_facts(tmp_path / "elsewhere") == CardFacts()


def test_a_broken_card_is_named(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    for content, message in (
        ("{", "truncated or no JSON"),
        ('{"sed": 1}', "unknown key in .*'sed': did you mean 'seed'"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_facts(tmp_path)
    values = json.loads(replace(FULL, model=ModelFacts.of(made())).to_json())
    values["model"]["contract"] = "linea"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="model: contract 'linea': did you mean 'linear'"):
        read_facts(tmp_path)


def test_a_later_number_takes_the_place_of_an_earlier_one() -> None:
    better = replace(FULL.metrics[0], value=0.95)
    elsewhere = replace(better, data="Other leaves")
    assert FULL.with_metrics((better, elsewhere)).metrics == (better, *FULL.metrics[1:], elsewhere)


def test_a_picture_of_another_model_goes(tmp_path: Path) -> None:
    saved(tmp_path, replace(FULL, picture=None))
    assert not (tmp_path / "explanation.png").exists() and "explanation.png" not in (tmp_path / "README.md").read_text()
    save_pretrained(made(), tmp_path, FULL)
    assert read_facts(tmp_path).lacking() == ["picture"], "it is not there, whatever the facts say"


def test_many_classes_are_not_all_told() -> None:
    names = tuple(f"kind {number}" for number in range(40))
    model = glasszoo.create_model("test_resnet", num_classes=40, class_names=names)
    told = card_sections(replace(FULL, model=ModelFacts.of(model)))["Model"]
    assert (
        "40 classes: kind 0, kind 1" in told and "kind 29 and 10 more (config.json)" in told and "kind 30" not in told
    )
    unnamed = replace(FULL, model=ModelFacts.of(glasszoo.create_model("test_resnet", num_classes=40)))
    assert "which have no names" in card_sections(unnamed)["Model"]
