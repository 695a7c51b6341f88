"""Checkpoints: what is saved comes back to the bit, and what is broken is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import list_heads
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, open_model, save_pretrained

CLASSES = ("leaf", "stone", "water")


def made(backbone: str = "test_resnet", head: str = "cam") -> ImageClassifier:
    torch.manual_seed(0)
    model = glasszoo.create_model(
        backbone,
        head=head,
        num_classes=3,
        class_names=CLASSES,
        preprocessing=Preprocessing((3, 96, 128), crop_mode="squash", crop_pct=1.0),
    )
    model.train()(torch.randn(4, 3, 64, 64))  # the batch norms have statistics of their own
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(made(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("head", [*list_heads(), BLACK_BOX])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext"])
def test_what_is_saved_comes_back_to_the_bit(backbone: str, head: str, tmp_path: Path) -> None:
    model = made(backbone, head)
    save_pretrained(model, tmp_path)
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "card.json", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert again.config == model.config and again.class_names == CLASSES and not again.training
    images = torch.randn(2, 3, 96, 128)
    assert all(torch.equal(one, two) for one, two in zip(model(images, "all"), again(images, "all"), strict=True))


def test_reloading_needs_no_pretrained_weights(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """The folder that the backbone's weights came from may be gone; nothing points to it."""
    weights = tmp_path / "weights"
    shutil.copytree(shared("weights/mobilenetv2_100.coral_in1k"), weights)
    model = glasszoo.create_model(f"local-dir:{weights}", pretrained=True, num_classes=3).eval()
    save_pretrained(model, tmp_path / "checkpoint")
    shutil.rmtree(weights)
    assert "pretrained" not in json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert str(tmp_path) not in (tmp_path / "checkpoint" / "config.json").read_text()
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'checkpoint'}")
    assert again.config.backbone_kwargs == {"pad_type": "same"}
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images).logits, again(images).logits)


def test_open_model_tells_our_folders_from_timms(shared: Callable[[str], Path], saved: Path) -> None:
    assert open_model(f"local-dir:{saved}").num_classes == 3
    assert open_model(f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}").num_classes == 1000


def test_the_card_names_licences(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: glasszoo" in card and "Apache-2.0" in card


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        glasszoo.load_pretrained(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, f"no checkpoint: .*{name} is missing")


@pytest.mark.parametrize("size", [0, 4, 1000, 50_000])
def test_truncated_weights_are_named(saved: Path, size: int) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:size])
    refused(saved, r"model\.safetensors is truncated or no safetensors file")


def test_a_missing_weight_is_named(saved: Path) -> None:
    damage(saved, lambda weights: weights.pop("head.classifier.bias"))
    refused(saved, r"model\.safetensors lacks the weight 'head\.classifier\.bias'")


def test_a_surplus_weight_is_named(saved: Path) -> None:
    damage(saved, lambda weights: weights.update({"head.extra": torch.zeros(1)}))
    refused(saved, "holds the weight 'head.extra', which the configuration does not know")


def test_weights_for_other_classes_are_named(saved: Path) -> None:
    configure(saved, num_classes=5, class_names=None)
    refused(saved, r"'head\.classifier\.weight' has shape \(3, 96\), but the configuration needs \(5, 96\)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "cam"}, "unknown key in .*config.json 'heads': did you mean 'head'"),
        ({"num_classes": "many"}, "config.json: num_classes: a whole number expected, got 'many'"),
        ({"num_classes": 0, "class_names": None}, "num_classes=0"),
        ({"class_names": ["a"]}, "1 class names given for 3 classes"),
        ({"preprocessing": {"crop_mode": "centre"}}, "unknown crop_mode 'centre': did you mean 'center'"),
        ({"architecture": "resnet5"}, "unknown backbone 'resnet5'"),
        ({"head": "camm"}, "unknown head 'camm'"),
    ],
)
def test_a_bad_configuration_is_named(saved: Path, changes: dict[str, object], message: str) -> None:
    configure(saved, **changes)
    refused(saved, message)


def test_a_configuration_that_is_no_json_is_named(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    refused(saved, "config.json is no JSON")


def test_unknown_sources_are_named(saved: Path) -> None:
    with pytest.raises(InputError, match=f"for a folder say local-dir:{saved}"):
        glasszoo.load_pretrained(str(saved))
    with pytest.raises(InputError, match="unknown checkpoint 'cam_resnet50': .*local-dir:PATH, hf-hub:ORG/NAME"):
        glasszoo.load_pretrained("cam_resnet50")


def test_a_failed_save_loses_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(made(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
