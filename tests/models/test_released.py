"""Checkpoints that come with glasszoo: they load with no network, explain, say all of themselves, and stay small."""

from pathlib import Path

import pytest
import torch

import glasszoo
from glasszoo.commands import explain
from glasszoo.common.errors import InputError
from glasszoo.models import DEFAULT, list_pretrained, released

ROOT = Path(__file__).parents[2]
NAMES = list_pretrained()


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_its_evidence_adds_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = glasszoo.load_pretrained(name)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    head, _, rest = name.partition("_test_" if "_test_" in name else "_mobilenetv2")
    assert model.config.head == head and rest and model.config.class_names
    images = torch.randn(2, *model.config.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        explained = model(images, 3)
    whole = model.contract.explained_quantity(explained.logits).gather(1, explained.classes)
    assert (explained.maps.sum((-2, -1)) + explained.offset - whole).abs().max() <= 1e-4 * whole.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_its_card_lacks_nothing(name: str) -> None:
    found = released(name)
    assert found.facts.lacking() == [] and (found.folder / str(found.facts.picture)).is_file()
    assert "dirty" not in str(found.facts.code)
    assert found.score("top1") is not None and found.score("insertion", "built-in") is not None
    card = (found.folder / "README.md").read_text()
    assert str(found.facts.weights_license) in card or str(found.facts.weights_license).lower() in card


def test_there_is_one_of_each_family_and_all_are_small() -> None:
    heads = {name.partition("_mobilenetv2")[0].partition("_test_")[0] for name in NAMES}
    assert DEFAULT in NAMES and {"cam", "mgproto", "scouter"} <= heads
    sizes = [path.stat().st_size for path in (ROOT / "zoo").rglob("*") if path.is_file()]
    assert sum(sizes) < 40e6


def test_explain_takes_the_default() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    assert parser.parse_args(["photo.jpg"]).model == DEFAULT


def test_an_unknown_name_lists_the_nearest_and_every_source() -> None:
    with pytest.raises(InputError, match=rf"{DEFAULT}.*local-dir:PATH, hf-hub:.*wandb:.*https://"):
        glasszoo.load_pretrained("cam_mobilenetv2_100.coral_in2k")
