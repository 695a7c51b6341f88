"""Score-CAM, Ablation-CAM, Eigen-CAM and FullGrad: as pytorch-grad-cam where that is right, and where it is not."""

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from glasszoo import create_model
from glasszoo.evaluation import map_method
from glasszoo.evaluation.posthoc import features_and_output, prepared
from glasszoo.evaluation.posthoc_fullgrad import full_gradients
from glasszoo.models import BLACK_BOX, ImageClassifier

CLASSES, INDICES = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 1])


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(backbone: str, head: str = "cam") -> ImageClassifier:
    """Untrained, but with norms that add something."""
    torch.manual_seed(0)
    model = create_model(backbone, head=head, num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.bias.normal_(0, 0.2)
    return model


def raised(model: ImageClassifier, by: float) -> None:
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if name.endswith("classifier.bias")).add_(by)


def theirs(technique: str, model: ImageClassifier) -> Tensor:
    """What pytorch-grad-cam has before it rectifies."""
    kept: list[Any] = []
    kind = getattr(pytorch_grad_cam, technique)
    with kind(model=model.as_logits(), target_layers=[model.backbone.deepest]) as cam, redirect_stderr(StringIO()):
        found = cam.get_cam_image
        cam.get_cam_image = lambda *given, **more: kept.append(found(*given, **more)) or kept[-1]
        cam(images(), [ClassifierOutputTarget(number) for number in CLASSES.tolist()])
    return torch.from_numpy(np.asarray(kept[0]))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_byobnet"])  # features that are not negative
@pytest.mark.parametrize("head", ["cam", "gated_attention"])
def test_ablation_cam_is_the_peer_s_times_the_logit(head: str, backbone: str) -> None:
    model = made(backbone, head)
    with torch.no_grad():
        logits = model(images(), explain=0).logits.gather(1, CLASSES[:, None])[..., None]
    expected = theirs("AblationCAM", model) * logits
    found = map_method("ablation-cam", model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_ablation_cam_knows_no_bias_and_no_sign_of_the_logit(backbone: str) -> None:
    """Of features times weights a channel's fall is its mean times its weight, whatever the bias."""
    model = made(backbone, "cam")
    expected = map_method("ablation-cam", model).explain(images(), CLASSES, INDICES)
    with torch.no_grad():
        features, _ = features_and_output(model, images())
        assert isinstance(features, Tensor)
        if backbone == "test_resnet":
            weights = model.head.get_parameter("classifier.weight").reshape(5, -1)[CLASSES]
            by_hand = torch.einsum("b d, b d h w -> b h w", weights * features.mean((2, 3)), features)
            torch.testing.assert_close(expected, by_hand, rtol=1e-3, atol=1e-5)
        else:
            assert features.min() < 0, "where the peer sets channels to -1e7"
    raised(model, -100)
    found = map_method("ablation-cam", model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())
    assert ((expected > 0) & (expected.abs() > 0.01 * expected.abs().max())).any()


def test_score_cam_is_the_peer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stretches with aligned corners."""
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size, mode="bilinear"))
    model = made("test_resnet")
    expected = theirs("ScoreCAM", model)
    found = map_method("score-cam", model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_eigen_cam_is_the_peer_s_with_a_sign(backbone: str) -> None:
    model = made(backbone)
    expected, found = theirs("EigenCAM", model), map_method("eigen-cam", model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    with torch.no_grad():
        lengths = features_and_output(model, images())[0].norm(dim=1)
    for own, length in zip(found, lengths, strict=True):
        assert torch.corrcoef(torch.stack([own.flatten(), length.flatten()]))[0, 1] > 0


@pytest.mark.parametrize("head", ["cam", BLACK_BOX])
@pytest.mark.parametrize("backbone", ["test_resnet", "vgg11_bn", "densenet121", "regnetx_002"])
def test_full_gradients_of_rectified_networks_sum_up_to_the_logit(backbone: str, head: str) -> None:
    """Srinivas and Fleuret, proposition 1; timm's own norms, in-place sums and the classifier's bias included."""
    model = made(backbone, head)
    with torch.no_grad():
        logits = model(images(), explain=0).logits.gather(1, CLASSES[:, None])[:, 0]
    with prepared(model):
        found = full_gradients(model, images(), CLASSES)
    total = torch.stack([part.flatten(1).sum(1) for part in found]).sum(0)
    torch.testing.assert_close(total, logits, rtol=1e-3, atol=1e-4)


class Plain(nn.Module):
    """A network of the modules that the peer knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip


def test_fullgrad_is_the_peer_s_where_that_knows_all_layers() -> None:
    model = made("test_resnet", BLACK_BOX)
    plain = Plain().eval()
    model.backbone.forward = plain.layers[:5].forward  # type: ignore[method-assign]
    model.backbone.classify = plain.layers[5:].forward  # type: ignore[method-assign]
    found = map_method("fullgrad", model).explain(images(), CLASSES, INDICES)
    targets = [ClassifierOutputTarget(number) for number in CLASSES.tolist()]
    with pytorch_grad_cam.FullGrad(model=plain.layers, target_layers=[]) as cam:
        expected = torch.from_numpy(cam(images().requires_grad_(), targets))
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    torch.testing.assert_close((found - low) / (high - low), expected, rtol=1e-3, atol=1e-3)
