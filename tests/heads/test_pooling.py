"""Pooling heads: each against a second computation, at its limits, and over many shapes, seeds and options."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit, logsumexp
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import Explained, GeM, Head, NoisyOr, Phase, create_head

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gmp", {}),
    ("lse", {}),
    ("lse", {"sharpness": 0.01, "learned": False}),
    ("lse", {"sharpness": 8.0, "learned": False}),
    ("gem", {}),
    ("gem", {"power": 20.0, "learned": False}),
    ("gem", {"power": 1.0}),
    ("topk", {}),
    ("topk", {"modalities": 3, "top": 3, "bottom": 0.5, "alpha": 1.5}),
    ("topk", {"top": 0.3, "bottom": 0}),
    ("topk", {"top": 1.0, "alpha": 0.0}),
    ("topk", {"top": 9, "bottom": 9}),
    ("noisy_or", {}),
    ("sparse_cam", {"classes": "all"}),
]
IDS = [f"{name}-{json.dumps(options)}" for name, options in OPTIONS]


def made(name: str, seed: int = 0, num_features: int = 6, num_classes: int = 4, **options: Any) -> Head:
    torch.manual_seed(seed)
    head = create_head(name, num_features, num_classes, **options)
    for parameter in head.parameters():  # no identity may hold by a start value such as a zero bias
        if parameter.ndim:  # the power of GeM stays what the options say
            torch.nn.init.normal_(parameter, std=0.5)
    return head.double()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cell_by_cell(features: Tensor, weight: Tensor) -> np.ndarray:
    """Class maps `b c n`: one dot product a class and cell."""
    b, _, h, w = features.shape
    weight = weight.detach()
    return np.array(
        [
            [[float(weight[c] @ features[i, :, y, x]) for y in range(h) for x in range(w)] for c in range(len(weight))]
            for i in range(b)
        ]
    )


def check(explained: Explained, logits: np.ndarray, maps: np.ndarray, offset: np.ndarray) -> None:
    for ours, theirs in zip(
        (explained.logits, explained.maps.flatten(2), explained.offset), (logits, maps, offset), strict=True
    ):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=1e-10)


# --- a second computation of each ------------------------------------------------------------------------------------


def test_gmp_is_the_largest_cell() -> None:
    head, features = made("gmp"), drawn(3, 6, 4, 5)
    bias = head.classifier.bias.detach().numpy()
    class_maps = cell_by_cell(features, head.classifier.weight)
    evidence = np.zeros_like(class_maps)
    for i, c in np.ndindex(3, 4):
        evidence[i, c, class_maps[i, c].argmax()] = class_maps[i, c].max()
    check(head(features, "all"), class_maps.max(-1) + bias, evidence, np.broadcast_to(bias, (3, 4)))


@pytest.mark.parametrize("options", [{}, {"sharpness": 8.0, "learned": False}])
def test_lse_is_the_log_mean_exp_with_its_entropy(options: dict[str, Any]) -> None:
    head, features = made("lse", **options), drawn(3, 6, 4, 5)
    bias, r = head.classifier.bias.detach().numpy(), head.sharpness().detach().numpy()[:, None]
    class_maps = cell_by_cell(features, head.classifier.weight)
    logits = logsumexp(r * class_maps, axis=-1, b=1 / 20) / r[:, 0] + bias
    attention = np.exp(r * class_maps) / np.exp(r * class_maps).sum(-1, keepdims=True)
    offset = (entropy(attention, axis=-1) - math.log(20)) / r[:, 0] + bias
    check(head(features, "all"), logits, attention * class_maps, offset)


def test_gem_shares_are_feature_times_gradient() -> None:
    """Euler: a function that grows in proportion to its arguments is the sum of argument times derivative."""
    head = made("gem", power=2.5)
    features = drawn(2, 6, 3, 4).abs().add(0.01).requires_grad_()
    explained = head(features, "all")
    pooled = (features.detach().numpy() ** 2.5).mean((-2, -1)) ** (1 / 2.5)
    weight, bias = (parameter.detach().numpy() for parameter in head.classifier.parameters())
    gradients = [torch.autograd.grad(logits.sum(), features, retain_graph=True)[0] for logits in explained.logits.mT]
    maps = torch.stack([(features * gradient).sum(1) for gradient in gradients], dim=1).flatten(2).detach().numpy()
    check(explained, pooled @ weight.T + bias, maps, np.broadcast_to(bias, (2, 4)))


@pytest.mark.parametrize(
    ("options", "highest", "lowest", "alpha"),
    [
        ({}, 4, 4, 0.7),  # a fifth of 20 cells
        ({"top": 3, "bottom": 0.5, "alpha": 1.5, "modalities": 3}, 3, 10, 1.5),
        ({"top": 0.3, "bottom": 0}, 6, 0, 0.7),
        ({"top": 0.01, "bottom": 99, "alpha": 1.0}, 1, 20, 1.0),  # at least one, at most all
        ({"top": 0.125, "bottom": 0.175, "alpha": 1.0}, 2, 4, 1.0),  # 2.5 and 3.5: halves to even
        ({"top": 5, "alpha": 0.0}, 5, 5, 0.0),
    ],
)
def test_topk_is_the_mean_of_sorted_cells(options: dict[str, Any], highest: int, lowest: int, alpha: float) -> None:
    head, features = made("topk", **options), drawn(3, 6, 4, 5)
    modalities = options.get("modalities", 1)
    per_modality = cell_by_cell(features, head.classifier.weight).reshape(3, 4, modalities, 20)
    bias = head.classifier.bias.detach().numpy().reshape(4, modalities).mean(-1)
    class_maps = per_modality.mean(2)
    logits, evidence = np.zeros((3, 4)), np.zeros((3, 4, 20))
    for i, c in np.ndindex(3, 4):
        order = sorted(range(20), key=lambda cell: class_maps[i, c, cell])
        for cell in order[-highest:]:
            evidence[i, c, cell] += class_maps[i, c, cell] / highest
        if lowest and alpha:
            evidence[i, c] /= 2
            for cell in order[:lowest]:
                evidence[i, c, cell] += alpha * class_maps[i, c, cell] / lowest / 2
        logits[i, c] = evidence[i, c].sum() + bias[c]
    check(head(features, "all"), logits, evidence, np.broadcast_to(bias, (3, 4)))


def test_noisy_or_is_the_chance_that_not_every_cell_fails() -> None:
    head, features = made("noisy_or"), drawn(3, 6, 4, 5)
    bias = head.classifier.bias.detach().numpy()
    present = expit(cell_by_cell(features, head.classifier.weight) + bias[:, None] - math.log(20))
    p = 1 - (1 - present).prod(-1)
    check(head(features, "all"), np.log(p / (1 - p)), -np.log(1 - present), np.log(p))


def test_sparse_cam_is_cam() -> None:
    sparse, cam, features = made("sparse_cam"), made("cam"), drawn(2, 6, 3, 4)
    assert all(torch.equal(one, two) for one, two in zip(sparse(features, "all"), cam(features, "all"), strict=True))


# --- over shapes, seeds and options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
@settings(deadline=None, max_examples=12)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_evidence_adds_up(
    name: str, options: dict[str, Any], batch: int, height: int, width: int, scale: float, single: bool, seed: int
) -> None:
    head, features = made(name, seed, **options), scale * drawn(batch, 6, height, width, seed=seed)
    if single:
        head, features = head.float(), features.float()
    explained = head(features, "all")
    gap = (explained.maps.sum((-2, -1)) + explained.offset - explained.logits).abs().max()
    assert gap <= (1e-4 if single else 1e-9) * explained.logits.abs().max()


@settings(deadline=None, max_examples=20)
@given(sharpness=st.floats(0.01, 100), learned=st.booleans(), scale=st.floats(0.01, 30), seed=st.integers(0, 2**16))
def test_lse_lies_between_mean_and_maximum(sharpness: float, learned: bool, scale: float, seed: int) -> None:
    head, features = made("lse", seed, sharpness=sharpness, learned=learned), scale * drawn(2, 6, 3, 5, seed=seed)
    mean, largest = made("cam", seed), made("gmp", seed)
    for other in (mean, largest):
        other.load_state_dict({k: v for k, v in head.state_dict().items() if k != "raw_sharpness"})
    logits = head(features).logits
    assert (logits >= mean(features).logits - 1e-9).all() and (logits <= largest(features).logits + 1e-9).all()


@settings(deadline=None, max_examples=20)
@given(
    name_and_options=st.sampled_from([entry for entry in OPTIONS if entry[0] in ("gmp", "topk")]),
    seed=st.integers(0, 2**16),
)
def test_unchosen_cells_do_not_count(name_and_options: tuple[str, dict[str, Any]], seed: int) -> None:
    """`select`: the logit's gradient is zero wherever the evidence is."""
    name, options = name_and_options
    head, features = made(name, seed, **options), drawn(2, 6, 4, 4, seed=seed).requires_grad_()
    explained = head(features, 1)
    (gradient,) = torch.autograd.grad(explained.logits.gather(1, explained.classes).sum(), features)
    assert ((explained.maps[:, 0] != 0) == (gradient != 0).any(1)).all()


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_evidence_can_be_trained(name: str, options: dict[str, Any]) -> None:
    """Gradients of logits, maps and offset against finite differences."""
    head, features = made(name, num_features=3, num_classes=2, **options), drawn(2, 3, 2, 3).requires_grad_()
    parameters = tuple(head.parameters())

    def outputs(features: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        explained = head(features, "all")
        return explained.logits, explained.maps, explained.offset

    if name == "gem":  # what is not positive has no gradient, and a clamped power passes one on by design
        features = features.detach().abs().add(0.1).requires_grad_()
        parameters = tuple(head.classifier.parameters())
    assert torch.autograd.gradcheck(outputs, (features, *parameters))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_options_survive_json(name: str, options: dict[str, Any]) -> None:
    features = drawn(2, 6, 4, 4)
    again = made(name, **json.loads(json.dumps(options)))
    assert torch.equal(made(name, **options)(features).logits, again(features).logits)


@pytest.mark.parametrize("name", ["gmp", "lse", "gem", "topk", "noisy_or"])
def test_a_model_in_half_precision(name: str) -> None:
    """No autocast widens the features here: heads that pool class maps, or take powers, widen their own."""
    options, scale = ({"power": 20.0, "learned": False}, 30) if name == "gem" else ({}, 3)
    half, features = made(name, **options).bfloat16(), (drawn(2, 6, 7, 7).abs() * scale).bfloat16()
    explained, wanted = half(features, "all"), copy.deepcopy(half).double()(features.double(), "all")
    for ours, theirs in ((explained.logits, wanted.logits), (explained.maps, wanted.maps)):
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
    gap = (explained.maps.sum((-2, -1)) + explained.offset - explained.logits).abs().max()
    assert gap <= (0.02 if name == "gem" else 1e-4) * explained.logits.abs().max()


# --- analytic cases --------------------------------------------------------------------------------------------------


def test_ties_share_the_maximum() -> None:
    head = made("gmp")
    features = torch.ones(1, 6, 2, 3, dtype=torch.float64)
    features[..., 0, 0] = -1e6 * head.classifier.weight[2].detach()  # far below for class 2
    features.requires_grad_()
    explained = head(features, torch.tensor([2]))
    value = head.classifier.weight[2].sum().detach()
    torch.testing.assert_close(explained.maps[0, 0], value / 5 * torch.tensor([[0, 1, 1], [1, 1, 1]]))
    explained.logits[0, 2].backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad[0, :, 1, 1], head.classifier.weight[2].detach() / 5)


def test_lse_keeps_its_digits_where_it_is_nearly_a_mean() -> None:
    """In fp32 log(mean(exp(r m))) / r loses 1 / r of its digits; the value in fp64 is the reference."""
    head, features = made("lse", sharpness=0.01, learned=False), drawn(4, 6, 8, 8)
    wanted = head(features).logits
    error = (head.float()(features.float()).logits - wanted).abs().max()
    assert error <= 2e-6 * wanted.abs().max()
    exponents = 0.01 * torch.einsum("cd,bdhw->bchw", head.classifier.weight, features.float())
    plain = exponents.exp().mean((-2, -1)).log() / 0.01 + head.classifier.bias
    assert (plain - wanted).abs().max() > 2 * error, "the plain formula would have done"


def test_lse_of_one_loud_cell_among_many() -> None:
    """All shares but one vanish: the mean of exp is 1 / N, far from the 1 that small exponents leave."""
    head = made("lse", num_features=1, num_classes=1, sharpness=10.0, learned=False).float()
    torch.nn.init.ones_(head.classifier.weight)
    torch.nn.init.zeros_(head.classifier.bias)
    features = torch.zeros(1, 1, 57, 71)
    features[..., 5, 6] = 20.0
    explained = head(features)
    wanted = math.log(57 * 71) / 10
    torch.testing.assert_close(explained.logits[0, 0].item(), 20 - wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(explained.offset[0, 0].item(), -wanted, rtol=1e-6, atol=0)


def test_gem_of_large_powers_and_features_stays_finite() -> None:
    features = torch.tensor([0.0, 1e-9, 500.0, 1000.0]).reshape(1, 1, 2, 2)
    head = create_head("gem", 1, 1, power=20.0)
    torch.nn.init.ones_(head.classifier.weight)
    explained = head(features)
    wanted = 1000 * ((1 + 0.5**20) / 4) ** (1 / 20)
    torch.testing.assert_close(explained.logits[0, 0].item(), wanted, rtol=1e-5, atol=0)
    explained.logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize(("outside", "inside"), [(-3.0, 1.0), (0.99, 1.0), (25.0, 20.0)])
def test_gems_power_is_clamped_but_can_come_back(outside: float, inside: float) -> None:
    head, features = made("gem"), drawn(2, 6, 3, 3).abs()
    assert isinstance(head, GeM) and head.raw_power is not None
    torch.nn.init.constant_(head.raw_power, outside)
    torch.testing.assert_close(head.power(), torch.tensor(inside, dtype=torch.float64))
    head(features).logits[:, 0].sum().backward()
    assert head.raw_power.grad is not None and head.raw_power.grad != 0


def test_a_mean_of_modalities_is_one_linear_map() -> None:
    several, one, features = made("topk", modalities=4), made("topk"), drawn(2, 6, 4, 4)
    one.load_state_dict({key: value.unflatten(0, (4, 4)).mean(1) for key, value in several.state_dict().items()})
    for ours, theirs in zip(several(features, "all"), one(features, "all"), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("side", [1, 7, 40])
def test_noisy_or_starts_at_one_over_classes_on_any_grid(side: int) -> None:
    head = create_head("noisy_or", 6, 200)
    p = head(torch.zeros(1, 6, side, side)).logits.sigmoid()
    torch.testing.assert_close(p, torch.full_like(p, 1 / 200), rtol=0.01, atol=0)


@pytest.mark.parametrize("level", [-500.0, -80.0, 0.0, 80.0, 500.0])
def test_noisy_or_is_finite_however_sure(level: float) -> None:
    head = made("noisy_or", num_features=1, num_classes=1).float()
    torch.nn.init.ones_(head.classifier.weight)
    torch.nn.init.zeros_(head.classifier.bias)
    features = torch.full((1, 1, 3, 3), level, requires_grad=True)
    explained, losses = head.forward_with_losses(features, torch.ones(1, 1), explain=1)
    (explained.logits.sum() + losses["binary_cross_entropy"]).backward()
    assert features.grad is not None and torch.isfinite(features.grad).all()
    assert (explained.maps >= 0).all() and (explained.offset <= 0).all()
    if abs(level) < 100:  # one cell of nine has the odds exp(level) / 9; the logit of nine such cells is
        total = np.float64(9 * np.logaddexp(0, level - math.log(9)))
        wanted = total + np.log(-np.expm1(-total))
        torch.testing.assert_close(explained.logits[0, 0].item(), wanted, rtol=1e-5, atol=1e-5)


# --- losses and phases -----------------------------------------------------------------------------------------------


def test_noisy_ors_loss_is_the_likelihood_of_the_labels() -> None:
    head, features = made("noisy_or"), drawn(3, 6, 4, 5)
    assert isinstance(head, NoisyOr)
    p = head(features).logits.sigmoid().detach().numpy()
    labels = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    wanted = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1).mean()
    (loss,) = head.forward_with_losses(features, torch.from_numpy(labels))[1].values()
    assert loss.item() == pytest.approx(wanted)
    of_ids, of_rows = (
        head.forward_with_losses(features, targets)[1]["binary_cross_entropy"]
        for targets in (torch.tensor([1, 3, 0]), torch.eye(4)[[1, 3, 0]])
    )
    assert torch.equal(of_ids, of_rows)


def concentration(head: Head, features: Tensor, targets: Tensor) -> Tensor:
    (loss,) = head.forward_with_losses(features, targets)[1].values()
    return loss


def test_spread_of_known_maps() -> None:
    head = create_head("sparse_cam", 1, 2)
    torch.nn.init.ones_(head.classifier.weight)
    one_cell, some, even = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), -3.0)
    one_cell[..., 1, 2], some[..., :2, :2] = 5.0, 2.0
    for features, wanted in ((one_cell, 1 / 4), (some, 4 / 8), (even, 1.0), (torch.zeros(1, 1, 4, 4), 0.0)):
        assert concentration(head, features, torch.tensor([0])).item() == pytest.approx(wanted)
        assert concentration(head, 1000 * features, torch.tensor([1])).item() == pytest.approx(wanted)
    head.zero_grad()
    concentration(head, torch.zeros(1, 1, 4, 4), torch.tensor([0])).backward()
    assert head.classifier.weight.grad is not None and not head.classifier.weight.grad.any()


def test_the_penalty_is_on_the_classes_said() -> None:
    features, targets = drawn(3, 6, 4, 4), torch.tensor([2, 0, 2])
    for classes, trained in (("target", [True, False, True, False]), ("all", [True] * 4)):
        head = made("sparse_cam", classes=classes)
        concentration(head, features, targets).backward()
        assert (head.classifier.weight.grad != 0).any(1).tolist() == trained
    every = [concentration(made("sparse_cam"), features, torch.full((3,), c)) for c in range(4)]
    torch.testing.assert_close(concentration(made("sparse_cam", classes="all"), features, targets), sum(every) / 4)


def test_the_penalty_makes_maps_sparser_and_not_just_smaller() -> None:
    head, features, targets = made("sparse_cam"), drawn(8, 6, 5, 5).relu(), torch.arange(8) % 4
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    spread, size = concentration(head, features, targets).item(), head.classifier.weight.norm().item()
    for _ in range(40):
        optimizer.zero_grad()
        concentration(head, features, targets).backward()
        optimizer.step()
    assert concentration(head, features, targets).item() < 0.95 * spread
    assert head.classifier.weight.norm().item() > 0.95 * size


def test_default_weights_and_phases() -> None:
    assert made("sparse_cam").loss_weights() == {"evidence_spread": 0.1}
    assert made("topk").phases() == [Phase(lr_scale={"backbone.*": 0.1})]
    for name in ("gmp", "lse", "gem", "noisy_or", "sparse_cam"):
        assert made(name).phases() == [Phase()]
    assert made("lse").no_weight_decay() == {"raw_sharpness"} and made("gem").no_weight_decay() == {"raw_power"}
    assert not made("lse", learned=False).no_weight_decay() and not made("gem", learned=False).no_weight_decay()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lse", {"sharpness": 0.0}, "sharpness=0.0: must be between 0.01 and 100"),
        ("lse", {"sharpness": 1000.0}, "sharpness=1000.0: must be between 0.01 and 100"),
        ("gem", {"power": 0.5}, "power=0.5: must be between 1 and 20"),
        ("gem", {"power": 21}, "power=21: must be between 1 and 20"),
        ("topk", {"modalities": 0}, "modalities=0: must be at least 1"),
        ("topk", {"alpha": -0.1}, "alpha=-0.1: must be at least 0"),
        ("topk", {"top": 0}, "top=0: a share of the cells above 0.0 and up to 1.0, or a number of cells from 1"),
        ("topk", {"top": 1.5}, "top=1.5: a share"),
        ("topk", {"top": True}, "top=True: a share"),
        ("topk", {"bottom": -1}, "bottom=-1: a share"),
        ("topk", {"bottom": 2.0}, "bottom=2.0: a share"),
        ("sparse_cam", {"classes": "targets"}, "unknown value of classes 'targets': did you mean 'target'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head(name, 6, 4, **options)


# --- start values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("sparse_cam", {}, 1e-12),
        ("topk", {"top": 1.0, "alpha": 0.0, "modalities": 3}, 1e-12),
        ("topk", {"top": 1.0, "alpha": 1.0}, 1e-12),
        ("gem", {"power": 1.0}, 1e-4),  # zeros count as 1e-6
        ("lse", {"sharpness": 0.01}, 0.02),  # r / 2 times a variance of about 1
    ],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_starts_as_the_folded_classifier(name: str, options: dict[str, Any], tolerance: float, has_bias: bool) -> None:
    weight, bias = drawn(4, 6, seed=2), drawn(4, seed=3) if has_bias else None
    features = drawn(3, 6, 5, 4).relu()
    head = made(name, **options)
    if name == "lse":  # `made` threw the start value of the sharpness away
        head.load_state_dict({"raw_sharpness": create_head(name, 6, 4, **options).raw_sharpness}, strict=False)
    assert head.fold(weight, bias)
    wanted = functional.linear(features.mean((-2, -1)), weight, bias)
    torch.testing.assert_close(head(features).logits, wanted, atol=tolerance, rtol=0)


def test_fold_of_heads_that_only_start_there() -> None:
    weight, bias = drawn(4, 6, seed=2), drawn(4, seed=3)
    gmp, noisy_or = made("gmp"), made("noisy_or")
    assert not gmp.fold(weight, bias) and torch.equal(gmp.classifier.weight, weight)
    assert noisy_or.fold(weight, bias) and torch.equal(noisy_or.classifier.weight, weight)
    torch.testing.assert_close(noisy_or.classifier.bias, bias - math.log(4))


@pytest.fixture(scope="module")
def photographs(shared: Callable[[str], Path]) -> tuple[Tensor, Tensor, Head]:
    """Features of butterflies whose class ImageNet has, their ImageNet ids, and timm's classifier as a CAM head."""
    model = glasszoo.create_model(
        f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}", head="cam", pretrained=True
    ).eval()
    images, labels = [], []
    for label, folder in ((321, "009_Vanessa_atalanta"), (323, "001_Danaus_plexippus"), (324, "008_Pieris_rapae")):
        for file in sorted(shared(f"data/leeds_butterfly/images/{folder}").glob("*.jpg"))[:4]:
            images.append(model.preprocess(Image.open(file).convert("RGB")))
            labels.append(label)
    with torch.no_grad():
        features = model.backbone(torch.stack(images))
    return features, torch.tensor(labels), model.get_classifier()


@pytest.mark.parametrize("name", ["lse", "gem", "topk", "noisy_or", "sparse_cam"])
def test_starts_at_the_accuracy_of_timms_classifier(photographs: tuple[Tensor, Tensor, Head], name: str) -> None:
    features, labels, cam = photographs
    head = create_head(name, *reversed(cam.classifier.weight.shape))
    assert head.fold(cam.classifier.weight, cam.classifier.bias)
    accuracy, wanted = ((each(features, 0).logits.argmax(1) == labels).double().mean() for each in (head, cam))
    assert wanted > 0.9 and accuracy >= wanted - 0.02
