"""Class names: timm's own, a file of labels beside the weights, ImageNet's where it is ImageNet, and never a guess."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.data import ImageNetInfo

import glasszoo
from glasszoo.models.class_names import timm_class_names

IMAGENET = {"tag": "a1_in1k", "num_classes": 1000}


def test_imagenets_names_belong_to_imagenets_weights() -> None:
    names = timm_class_names(IMAGENET, 1000)
    assert names is not None and len(names) == 1000 and names[0] == "tench, Tinca tinca" and "tabby, tabby cat" in names
    for tag, other, count in (("miil_in21k", "imagenet-21k-miil", 11221), ("augreg_in12k", "imagenet-12k", 11821)):
        expected = tuple(ImageNetInfo(other).label_descriptions())
        assert timm_class_names({"tag": tag, "num_classes": count}, count) == expected
    assert timm_class_names({"tag": "miil_in21k_ft_in1k", "num_classes": 1000}, 1000) == names


@pytest.mark.parametrize(
    "cfg",
    [
        {"tag": "coral_inat_bird", "num_classes": 1000},
        {"tag": "pin1k5", "num_classes": 1000},
        {"num_classes": 1000},
        {"tag": "a1_in12k", "num_classes": 11821},  # and a new classifier of a thousand classes
    ],
)
def test_a_thousand_classes_are_not_always_imagenets(cfg: dict[str, Any]) -> None:
    assert timm_class_names(cfg, 1000) is None


def test_every_imagenet_tag_of_timm_is_known() -> None:
    """The rule reads tags; a CNN's weights that it would leave nameless are named here."""
    pooled = [name for pattern in ("resnet*", "mobilenet*", "efficientnet*", "tf_*", "regnet*", "convnext*")
              for name in timm.list_pretrained(pattern)]  # fmt: skip
    cfgs = {name: timm.get_pretrained_cfg(name) for name in pooled}
    nameless = [
        name
        for name, cfg in cfgs.items()
        if cfg.num_classes in (1000, 11821, 11221, 21841, 21843)
        and timm_class_names({"tag": cfg.tag, "num_classes": cfg.num_classes}, cfg.num_classes) is None
    ]
    assert len(pooled) > 200 and nameless == []


def test_their_own_names_come_first() -> None:
    assert timm_class_names(IMAGENET | {"label_names": ("a", "b")}, 2) == ("a", "b")
    assert timm_class_names({"label_names": {"1": "b", "0": "a", "10": "k"}}, 3) == ("a", "b", "k")
    told = {"label_names": ["n1", "n2"], "label_descriptions": {"n2": "tench", "n1": "goldfish"}}
    assert timm_class_names(told, 2) == ("goldfish", "tench")
    assert timm_class_names(IMAGENET | {"label_names": ["a"]}, 1000) is None, "names of other weights"


def test_labels_beside_the_weights(tmp_path: Path) -> None:
    """A folder that timm saved, with the labels.txt that other tools write."""
    names = ["Limpkin", "Roadside Hawk", "Cassin's Finch"]
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path)
    model = glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.config.class_names is None and model.class_names == ("0", "1", "2")
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    assert list(glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True).class_names) == names
    assert glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).config.class_names is None
    own = glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True, class_names=["x", "y", "z"])
    assert own.class_names == ("x", "y", "z")
    config = json.loads((tmp_path / "config.json").read_text()) | {"label_names": ["p", "q", "r"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True).class_names == ("p", "q", "r")
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    config.pop("label_names")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert glasszoo.create_model(f"local-dir:{tmp_path}", pretrained=True).config.class_names is None


def test_wrap_knows_imagenets_names() -> None:
    theirs = timm.create_model("test_resnet")  # 1000 classes, with the tag r160_in1k
    assert glasszoo.wrap(theirs).class_names[0] == "tench, Tinca tinca"
    theirs.reset_classifier(7)
    assert glasszoo.wrap(theirs).class_names == tuple("0123456")


def test_weights_at_hand_bring_their_names(shared: Callable[[str], Path]) -> None:
    birds = glasszoo.create_model(f"local-dir:{shared('weights/mobilenetv2_100.coral_inat_bird')}", pretrained=True)
    assert birds.class_names[1] == "Aramus guarauna (Limpkin)" and len(birds.class_names) == 965
    things = glasszoo.create_model(f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}", pretrained=True)
    assert things.class_names[0] == "tench, Tinca tinca"
