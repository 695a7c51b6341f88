"""Which timm models are CNNs, and what a name that is none is told."""

import pytest
import torch
from torch import nn

from glasszoo import create_model, list_backbones
from glasszoo.common.errors import InputError
from glasszoo.models.anatomy import NotConvolutional, examine
from glasszoo.models.timm_classifier import NoSteps


@pytest.mark.parametrize("name", ["test_mambaout", "vgg11", "mobilenetv3_small_050", "densenet121", "inception_v3"])
def test_the_traps_give_what_timms_head_pools(name: str) -> None:
    """Channels last, a collapsing head, a last convolution after the features, no padding: all by forward_features."""
    model = create_model(name, num_classes=3).eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 160, 192))
    assert features.ndim == 4 and features.shape[1] == model.num_features
    assert features.shape[2] < features.shape[3]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_vit", "are tokens"),
        ("poolformerv2_s12", None),
        ("efficientvit_b0", "come from attention"),
        ("mixer_s16_224", "do not follow the size of the image"),
    ],
)
def test_cnn_or_not(name: str, reason: str | None) -> None:
    if reason is None:
        assert examine(name).reduction == 32
    else:
        with pytest.raises(NotConvolutional, match=reason):
            examine(name)


def test_list_backbones_by_wildcard() -> None:
    assert list_backbones("test_*net*") == [
        "test_byobnet",
        "test_efficientnet",
        "test_efficientnet_evos",
        "test_efficientnet_gn",
        "test_efficientnet_ln",
        "test_nfnet",
        "test_resnet",
    ]


def test_output_stride() -> None:
    model = create_model("test_resnet", num_classes=3, output_stride=8).eval()
    assert model.backbone.reduction == 8
    assert model(torch.randn(1, 3, 64, 64)).maps.shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "unknown backbone 'resnet5': did you mean 'resnet50'"),
        ({"name": "resnet50.a1_in2k"}, "unknown pretrained tag of resnet50 'a1_in2k': did you mean 'a1_in1k'"),
        ({"name": "halonet26t"}, "halonet26t is no CNN: .*; the nearest CNNs are .*resnet26t"),
        ({"name": "densenet121", "output_stride": 8}, "timm cannot build densenet121 with output_stride=8"),
        ({"name": "test_resnet", "backbone_kwargs": {"depth": 3}}, "timm cannot build test_resnet with .*depth"),
        ({"name": "test_resnet", "head": "camm"}, "unknown head 'camm': did you mean 'cam'"),
        ({"name": "test_resnet", "num_classes": 0}, "num_classes=0"),
        ({"name": "test_resnet", "class_names": ["a", "b"], "num_classes": 3}, "2 class names given for 3 classes"),
        ({"name": "/some/folder"}, "Use .*'local-dir:/some/folder'"),
        ({"name": "local-dir:/no/folder", "pretrained": True}, "Config file not found: /no/folder/config.json"),
        ({"name": "test_resnet", "head_kwargs": {"bias": 1}}, "unknown option of head 'cam' 'bias'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model(**arguments)  # type: ignore[arg-type]


def test_no_weights_to_load() -> None:
    with pytest.raises(InputError, match="timm has no pretrained weights for 'resnet50t'"):
        create_model("resnet50t", pretrained=True)


def test_a_hidden_classifier_is_read() -> None:
    """mobilenetv3 has a convolution and an activation between pooling and classifier: naive CAM would be wrong."""
    for architecture, kinds in (
        ("test_resnet", ["pool", "linear"]),
        ("mobilenetv3_small_050", ["pool", "linear", "activation", "linear"]),
    ):
        backbone = create_model(architecture, head="black_box", num_classes=4).backbone
        assert [step.kind for step in backbone.classifier_steps()] == kinds


def test_what_no_step_stands_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = create_model("test_resnet", head="black_box", num_classes=4).backbone
    backbone.network.fc = nn.Sequential(backbone.network.fc, nn.Conv1d(4, 4, 1))
    with pytest.raises(NoSteps, match="Conv1d fc.1"):
        backbone.classifier_steps()
    forward = type(backbone.network).forward_head
    backbone.network.fc = backbone.network.fc[0]
    monkeypatch.setattr(type(backbone.network), "forward_head", lambda self, x: forward(self, x * 1.0))
    with pytest.raises(NoSteps, match="the operation mul"):
        backbone.classifier_steps()


def test_steps_are_held_against_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm's head in another mode than the one that was read: nothing is taken over on trust."""
    backbone = create_model("test_resnet", head="black_box", num_classes=4).backbone
    monkeypatch.setattr(backbone, "classify", lambda features: features.amax((2, 3))[:, :4])
    with pytest.raises(NoSteps, match="something that these steps miss"):
        backbone.classifier_steps()
