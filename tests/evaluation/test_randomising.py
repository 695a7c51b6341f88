"""Randomised copies: nothing of the original is left, the original is untouched, and they work as models."""

import copy

import pytest
import timm
import torch
from torch import nn

from glasszoo import create_model
from glasszoo.evaluation.randomising import randomised
from glasszoo.models import BLACK_BOX, ImageClassifier

BACKBONES = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext"]
HEADS = [
    "cam",
    "attention_branch",
    "class_attention",
    "gem",
    "lse",
    "mgproto",
    "parts",
    "pipnet",
    "protopool",
    "scouter",
]
CASES = [*[(backbone, head) for backbone in BACKBONES for head in ("cam", "protopnet", "prototree", BLACK_BOX)]]
CASES += [("test_resnet", head) for head in HEADS[1:]]


def trained(backbone: str, head: str) -> ImageClassifier:
    """A model none of whose parameters and statistics stands at its start value."""
    torch.manual_seed(0)
    model = create_model(backbone, head=head, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter) + 0.01)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.add_(0.1)  # type: ignore[union-attr]
                module.running_var.mul_(1.5)  # type: ignore[union-attr]
    return model.eval()


@pytest.mark.parametrize(("backbone", "head"), CASES)
def test_all_parameters_are_drawn_anew_and_the_model_is_untouched(backbone: str, head: str) -> None:
    model = trained(backbone, head)
    state = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    fresh = randomised(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    drawn = dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():
        # A weight of a layer has no entry left; a norm or a clamped connection may share a value by chance.
        assert not torch.equal(parameter, drawn[name]), name
        assert drawn[name].isfinite().all() and drawn[name].shape == parameter.shape, name
        assert (parameter == drawn[name]).float().mean() < 0.05, name
    with torch.no_grad():
        before, after = model(images), fresh(images)
    assert after.logits.isfinite().all() and after.maps.isfinite().all()
    assert not torch.allclose(before.logits, after.logits, rtol=1e-3)
    with torch.no_grad():
        features = fresh.backbone(images)
    one, two = features if isinstance(features, torch.Tensor) else features[-1]
    assert not torch.allclose(one, two, rtol=1e-3), "the image still matters"


def test_statistics_of_norms_start_over() -> None:
    fresh = randomised(trained("test_resnet", "cam"))
    norms = [module for module in fresh.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    for norm in norms:
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_what_a_reset_forgets_is_drawn_as_well() -> None:
    """Timm's standardised convolutions have a gain that `reset_parameters` leaves alone."""
    torch.manual_seed(0)
    layer = timm.layers.ScaledStdConv2d(4, 6, 3)
    layer.gain.data += torch.rand_like(layer.gain)
    fresh = randomised(layer)
    assert (fresh.gain != layer.gain).all() and fresh.gain.isfinite().all()
    assert (fresh.weight != layer.weight).all()


class Loose(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


def test_loose_parameters_keep_mean_and_deviation() -> None:
    values = 3 + 0.5 * torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = randomised(Loose(values)).values
    assert drawn.mean().item() == pytest.approx(3.25, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5 / 12**0.5, rel=0.03)
    assert torch.corrcoef(torch.stack([values, drawn.detach()]))[0, 1].abs() < 0.03


@pytest.mark.parametrize(("value", "deviation"), [(1e-6, 1e-6), (-2.0, 2.0), (0.0, 0.02)])
def test_equal_loose_parameters_are_drawn_by_their_size(value: float, deviation: float) -> None:
    drawn = randomised(Loose(torch.full((20_000,), value))).values
    assert drawn.mean().item() == pytest.approx(value, abs=0.03 * deviation)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.03)
    single = randomised(Loose(torch.tensor(value))).values
    assert single.item() != value and single.isfinite()


def test_the_seed_decides_and_the_global_state_is_left() -> None:
    model = trained("test_resnet", "protopnet")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other = (randomised(model, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_the_copy_is_in_eval_mode_and_keeps_what_trains() -> None:
    model = trained("test_resnet", "cam").train()
    model.backbone.requires_grad_(False)
    fresh = randomised(model)
    assert model.training and not any(module.training for module in fresh.modules())
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
