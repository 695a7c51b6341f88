"""LRP: relevance is conserved through timm's blocks, zennit's own rule where it has one, and refusals."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zennit.rules import ZPlus

from glasszoo import create_model
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.evaluation import evaluate, map_method, posthoc_lrp
from glasszoo.evaluation.posthoc import prepared
from glasszoo.evaluation.posthoc_lrp import _Kept, _positive_rule, _Shared, at_features
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing

CLASSES, INDICES = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 1])
FAMILIES = [
    "test_resnet", "resnet18", "vgg11_bn", "densenet121", "regnetx_002", "regnety_002", "mobilenetv2_050",
    "mobilenetv3_small_050", "test_efficientnet", "test_convnext", "test_byobnet",
]  # fmt: skip


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(backbone: str, head: str = "cam") -> ImageClassifier:
    """Untrained, but with norms that have something to merge."""
    torch.manual_seed(0)
    model = create_model(backbone, head=head, num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(0.5, 0.6)  # some are negative, and turn the signs of a convolution's weights
                module.bias.normal_(0, 0.2)
    return model


def owed(model: ImageClassifier) -> Tensor:
    with prepared(model):
        return at_features(model, images(), CLASSES).flatten(1).sum(1)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_relevance_is_conserved(backbone: str) -> None:
    model = made(backbone)
    maps = map_method("lrp", model).explain(images(), CLASSES, INDICES)
    assert maps.shape == (3, 64, 64) and (maps.flatten(1).std(1) > 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), owed(model), rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["cam", BLACK_BOX])
def test_what_is_owed_is_the_logit_less_the_bias(head: str) -> None:
    model = made("test_resnet", head)
    logits = model(images(), explain=0).logits.gather(1, CLASSES[:, None])[:, 0]
    bias = next(value for name, value in model.named_parameters() if name.endswith(("classifier.bias", "fc.bias")))
    torch.testing.assert_close(owed(model), (logits - bias[CLASSES]).detach(), rtol=1e-4, atol=1e-5)


def test_an_evaluation_tells_how_much_relevance_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("test_byobnet", num_classes=8, preprocessing=Preprocessing((3, 64, 64), crop_pct=1.0))
    data = create_dataset("critters", "test", count=6)

    def gap() -> float:
        found = evaluate(model, data, methods=["lrp"], metrics=["gini"], progress=False)
        return found.methods[0].gap

    assert gap() < 5e-3
    whole = posthoc_lrp.relevance
    monkeypatch.setattr(posthoc_lrp, "relevance", lambda *given: 0.9 * whole(*given))
    assert gap() == pytest.approx(0.1, abs=5e-3)


@pytest.mark.parametrize("head", ["gated_attention", "protopnet", BLACK_BOX])
def test_other_heads_have_maps(head: str) -> None:
    model = made("test_resnet", head)
    maps = map_method("lrp", model).explain(images(), CLASSES, INDICES)
    torch.testing.assert_close(maps.sum((1, 2)), owed(model), rtol=5e-3, atol=1e-6)


def test_the_model_is_left_as_it_was_and_images_are_alone() -> None:
    model = made("regnety_002").train()
    state, hooks = copy.deepcopy(model.state_dict()), [len(module._forward_hooks) for module in model.modules()]
    method = map_method("lrp", model)
    assert model.training
    model.eval()
    maps = method.explain(images(), CLASSES, INDICES)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(method.explain(images(), CLASSES, INDICES), maps)
    alone = method.explain(images()[1:2], CLASSES[1:2], INDICES[1:2])
    torch.testing.assert_close(alone[0], maps[1], atol=1e-3 * maps.abs().max().item(), rtol=0)
    assert not torch.equal(method.explain(images(), (CLASSES + 1) % 5, INDICES), maps)
    with torch.no_grad():
        assert torch.equal(model(images()).logits, model(images()).logits), "no rule is left in force"


def attributed(rule: object, layer: nn.Module, given: Tensor) -> Tensor:
    handle = rule.copy().register(layer)  # type: ignore[attr-defined]
    given = given.clone().requires_grad_()
    out = layer(given)
    relevance = torch.rand(out.shape, generator=torch.Generator().manual_seed(3))
    (found,) = torch.autograd.grad(out, given, grad_outputs=relevance)
    handle.remove()
    torch.testing.assert_close(found.sum(), relevance.sum(), rtol=1e-3, atol=0)
    return found


def test_where_something_is_positive_the_rule_is_zennit_s() -> None:
    torch.manual_seed(0)
    layer, given = nn.Conv2d(8, 4, 3), torch.randn(2, 8, 9, 9)
    ours, theirs = (attributed(rule, layer, given) for rule in (_positive_rule(), ZPlus(zero_params="bias")))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_where_nothing_is_positive_it_shares_by_size_and_then_evenly() -> None:
    layer = nn.Conv2d(2, 1, 1)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([-1.0, -3.0]).reshape(1, 2, 1, 1)
        layer.bias[:] = 5.0
    given = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    handle = _positive_rule().copy().register(layer)
    out = layer(given.requires_grad_())
    (found,) = torch.autograd.grad(out, given, grad_outputs=torch.full_like(out, 8.0))
    handle.remove()
    torch.testing.assert_close(found.flatten(1), torch.tensor([[2.0, 6.0], [4.0, 4.0]]))


def test_sums_and_products_by_hand() -> None:
    one, two = torch.tensor([3.0, 0.0, 0.0], requires_grad=True), torch.tensor([-1.0, 2.0, 0.0], requires_grad=True)
    shared = torch.autograd.grad(_Shared.apply(one, two), (one, two), grad_outputs=torch.tensor([8.0, 8.0, 8.0]))
    assert [grad.tolist() for grad in shared] == [[6, 0, 4], [2, 8, 4]]
    gated = _Kept.apply(one, (0.1 * one).detach())
    assert gated.tolist() == pytest.approx([0.3, 0, 0])
    assert torch.autograd.grad(gated, one, grad_outputs=torch.ones(3))[0].tolist() == [1, 1, 1]


def test_what_has_no_rule_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="lrp has no rule for ScaledStdConv2d in test_nfnet"):
        map_method("lrp", made("test_nfnet"))
    with pytest.raises(InputError, match="starts at one feature map, but the head 'multiscale_cam' looks at several"):
        map_method("lrp", made("test_resnet", "multiscale_cam"))
