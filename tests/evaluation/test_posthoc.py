"""Post-hoc methods: every one on every small family, analytic models, and a model that is left as it was found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glasszoo import create_model, list_heads
from glasszoo.common.errors import InputError
from glasszoo.evaluation import (
    map_method,
    posthoc_cam,
    posthoc_channels,
    posthoc_fullgrad,
    posthoc_gradients,
    posthoc_perturbation,
)
from glasszoo.evaluation.patches import patch_numbers, patch_sums
from glasszoo.models import BLACK_BOX, ImageClassifier

BACKBONES = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext"]
CAMS = [*posthoc_cam.METHODS, *posthoc_channels.METHODS]
METHODS = [*posthoc_gradients.METHODS, *posthoc_perturbation.METHODS, *CAMS, *posthoc_fullgrad.METHODS]
# docs/posthoc.md says the same.
REFUSED = {
    (method, backbone): activation
    for method in ("guided-backprop", "deconvolution")
    for backbone, activation in (("test_efficientnet", "SiLU"), ("test_convnext", "GELUTanh"))
}
CLASSES, INDICES = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 1])


@pytest.fixture(autouse=True)
def few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posthoc_perturbation, "_MASKS", 60)


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(backbone: str, head: str = "cam") -> ImageClassifier:
    torch.manual_seed(0)
    return create_model(backbone, head=head, num_classes=5).eval()


def state(model: nn.Module) -> list[Any]:
    """All that a method could leave changed."""
    return [
        *(value.clone() for value in model.state_dict().values()),
        *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
        [parameter.requires_grad for parameter in model.parameters()],
        [
            (module.training, getattr(module, "inplace", None), len(module._forward_hooks), len(module._backward_hooks),
             len(module._forward_pre_hooks), type(module))
            for module in model.modules()
        ],
    ]  # fmt: skip


def assert_same(one: list[Any], two: list[Any]) -> None:
    for ours, theirs in zip(one, two, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_every_family(name: str, backbone: str) -> None:
    model = made(backbone)
    if activation := REFUSED.get((name, backbone)):
        with pytest.raises(InputError, match=f"but {backbone} has {activation}"):
            map_method(name, model)
        return
    before, random_state = state(model), torch.random.get_rng_state()
    method = map_method(name, model)
    maps = method.explain(images(), CLASSES, INDICES)
    assert maps.shape == (3, 2, 2) if method.is_on_grid else maps.shape == (3, 64, 64)
    assert maps.isfinite().all() and not maps.requires_grad and (maps.flatten(1).std(1) > 0).all()
    assert_same(before, state(model))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(method.explain(images(), CLASSES, INDICES), maps), "the same again"
    alone = method.explain(images()[1:2], CLASSES[1:2], INDICES[1:2])
    torch.testing.assert_close(alone[0], maps[1], atol=1e-3 * maps.abs().max().item(), rtol=0)
    other = method.explain(images(), (CLASSES + 1) % 5, INDICES)
    assert torch.equal(other, maps) == (name == "eigen-cam"), "which knows no classes"


@pytest.mark.parametrize("name", ["grad-cam", *METHODS, "lrp"])
def test_a_model_in_training_is_explained_as_in_eval_mode_and_trains_on(name: str) -> None:
    model = made("test_byobnet")
    expected = map_method(name, model).explain(images(), CLASSES, INDICES)
    model.train()
    model.backbone.network.stem.eval()  # part of it frozen
    model(images()).logits.sum().backward()  # gradients of a step to come, and batch norms' moments
    for own, fresh in zip(model.buffers(), made("test_byobnet").buffers(), strict=True):
        own.copy_(fresh)
    before = state(model)
    found = map_method(name, model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(found, expected)
    assert_same(before, state(model))


@pytest.mark.parametrize("head", [*list_heads(), BLACK_BOX])
@pytest.mark.parametrize("name", ["gradient", "hires-cam", "score-cam", "ablation-cam", "fullgrad"])
def test_one_method_of_each_kind_on_every_head(name: str, head: str) -> None:
    model = made("test_resnet", head)
    maps = map_method(name, model).explain(images()[:1], CLASSES[:1], INDICES[:1])
    assert maps.shape[0] == 1 and maps.isfinite().all()


@pytest.mark.parametrize("head", ["protopnet", "multiscale_cam", BLACK_BOX])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_other_heads(name: str, head: str) -> None:
    model = made("test_byobnet", head)
    before = state(model)
    method = map_method(name, model)
    maps = method.explain(images(), CLASSES, INDICES)
    assert maps.isfinite().all() and len(maps) == 3
    assert method.is_on_grid == (name in CAMS and head != "multiscale_cam")
    assert_same(before, state(model))


class Linear(nn.Module):
    """Logits that are linear in the pixels, as far as methods look at a classifier."""

    def __init__(self, size: int = 14) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 5)).requires_grad_(False)

    def as_logits(self) -> nn.Module:
        return self.logits

    def forward(self, images: Tensor, explain: int = 0) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(images))

    def contributions(self, images: Tensor, classes: Tensor) -> Tensor:
        return (images * self.logits[1].weight[classes].unflatten(1, images.shape[1:])).sum(1)


@pytest.mark.parametrize("name", ["input-x-gradient", "integrated-gradients", "deeplift"])
def test_contributions_to_a_linear_model_are_exact(name: str) -> None:
    model = Linear()
    maps = map_method(name, model).explain(images(14), CLASSES, INDICES)
    torch.testing.assert_close(maps, model.contributions(images(14), CLASSES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["kernel-shap", "shapley-sampling"])
def test_shapley_values_of_a_linear_model_are_its_contributions(name: str) -> None:
    model, numbers = Linear(), patch_numbers((14, 14), 7)
    found = patch_sums(map_method(name, model).explain(images(14), CLASSES, INDICES), numbers, 49)
    exact = patch_sums(model.contributions(images(14), CLASSES), numbers, 49)
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "least"), [("lime", 0.9), ("occlusion", 0.5), ("rise", 0.2)])
def test_estimates_on_a_linear_model_follow_its_contributions(
    name: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posthoc_perturbation, "_MASKS", 2000)
    model, numbers = Linear(), patch_numbers((14, 14), 7)
    found = patch_sums(map_method(name, model).explain(images(14), CLASSES, INDICES), numbers, 49)
    exact = patch_sums(model.contributions(images(14), CLASSES), numbers, 49)
    for ours, true in zip(found, exact, strict=True):
        assert torch.corrcoef(torch.stack([ours, true]))[0, 1] > least


@pytest.mark.parametrize("backbone", ["test_resnet", "test_byobnet"])
def test_maps_that_claim_to_add_up_do_on_rectified_networks(backbone: str) -> None:
    model = made(backbone)
    with torch.no_grad():
        logits = model(torch.cat([images(), torch.zeros_like(images())]), explain=0).logits
    owed = (logits[:3] - logits[3:]).gather(1, CLASSES[:, None])[:, 0]
    claiming = []
    for name in METHODS:
        method = map_method(name, model)
        if method.completes:
            claiming.append(name)
            total = method.explain(images(), CLASSES, INDICES).sum((1, 2))
            assert ((total - owed) / owed).abs().max() < (0.2 if name == "gradient-shap" else 1e-4), name
    assert claiming == ["integrated-gradients", "gradient-shap", "deeplift", "kernel-shap", "shapley-sampling"]


def test_hires_cam_is_the_built_in_map_of_average_pooling() -> None:
    """Draelos and Carin's identity: gradient times activation is the evidence where the logit is linear in it."""
    model = made("test_resnet")
    built_in, found = (
        map_method(name, model).explain(images(128), CLASSES, INDICES) for name in ("built-in", "hires-cam")
    )
    torch.testing.assert_close(found, built_in, atol=1e-5, rtol=1e-4)


def replaced_relus(model: ImageClassifier, new: nn.Module) -> None:
    network = model.backbone.network
    for name in [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, new)


class LooseReLU(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.relu()


def test_relus_that_no_hook_finds_are_refused() -> None:
    model = made("test_resnet")
    expected = map_method("guided-backprop", model).explain(images(), CLASSES, INDICES)
    replaced_relus(model, nn.ReLU())  # one module at all places, which hooks do find
    assert torch.equal(map_method("guided-backprop", model).explain(images(), CLASSES, INDICES), expected)
    deeplift = map_method("deeplift", model)
    with pytest.raises(InputError, match="deeplift needs an activation module for every place, but test_resnet runs"):
        deeplift.explain(images(), CLASSES, INDICES)
    replaced_relus(model, LooseReLU())
    with pytest.raises(InputError, match="but test_resnet has some that are no modules, where it finds none"):
        map_method("guided-backprop", model)


def test_masks_of_rise_are_open_by_half() -> None:
    masks = posthoc_perturbation.rise_masks(400, (50, 64), seed=3)
    assert masks.shape == (400, 50, 64) and masks.min() >= 0 and masks.max() <= 1
    assert masks.mean().item() == pytest.approx(0.5, abs=0.02)
    assert masks.mean(0).std() < 0.06, "no place is favoured"
    assert torch.equal(masks, posthoc_perturbation.rise_masks(400, (50, 64), seed=3))
    assert not torch.equal(masks, posthoc_perturbation.rise_masks(400, (50, 64), seed=4))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glasszoo.evaluation.methods.find_spec", lambda name: None)
    for name, module in (("deeplift", "captum"), ("layer-cam", "pytorch_grad_cam")):
        with pytest.raises(InputError, match=rf"{name} needs {module}: pip install 'glasszoo\[posthoc\]'"):
            map_method(name, made("test_resnet"))
