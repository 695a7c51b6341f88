"""The catalogue of backbones: families, what is remembered, and what a name's facts say."""

import json
from pathlib import Path

import pytest
import timm

from glasszoo.common.errors import InputError
from glasszoo.models import catalogue, facts_of, list_backbones
from glasszoo.models.anatomy import NotConvolutional
from glasszoo.models.catalogue import family_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_families_are_timms_modules() -> None:
    assert list_backbones("dla3*", "dla") == ["dla34"] and list_backbones("dla3*", "resnet") == []
    assert family_of("repvgg_a0") == "byobnet" and family_of("bagnet9") == "bagnet"
    with pytest.raises(InputError, match="unknown family 'resnte': did you mean 'resnet'"):
        list_backbones("*", "resnte")


def test_an_architecture_is_examined_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list_backbones("test_*net*")
    (remembered,) = cache.iterdir()
    verdicts = json.loads(remembered.read_text())
    assert timm.__version__ in remembered.name and [name for name in verdicts if verdicts[name]] == found
    assert "test_vit" not in verdicts  # nobody asked

    def again(name: str) -> bool:
        raise AssertionError(f"{name} examined again")

    monkeypatch.setattr(catalogue, "is_convolutional", again)
    assert list_backbones("test_*net*") == found
    remembered.write_text("{")  # a truncated file is no verdict
    with pytest.raises(AssertionError, match="examined again"):
        list_backbones("test_*net*")


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLASSZOO_CACHE", str(tmp_path / "file"))
    assert list_backbones("test_resnet") == ["test_resnet"]


def test_facts() -> None:
    facts = facts_of("resnet18")
    assert (facts.family, facts.num_features, facts.reduction, facts.receptive_field) == ("resnet", 512, 32, (435, 435))
    assert "a1_in1k" in facts.pretrained and facts.sees_whole_image is False
    assert facts_of("gcresnet33ts").sees_whole_image  # one weighted mean over the image is no attention
    with pytest.raises(NotConvolutional):
        facts_of("test_vit")
