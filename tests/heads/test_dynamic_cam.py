"""Classifiers of more than one layer: each step's weights pulled back, and evidence against another way to it."""

from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor, nn

from glasszoo.common.errors import InputError
from glasszoo.heads import DynamicCAM, create_head
from glasszoo.heads.steps import STEPS, Activation, Linear, Norm, Pool, Step, Window

STEP_CASES: dict[str, tuple[type[Step], dict[str, Any]]] = {
    **{f"pool {kind}": (Pool, {"pool_type": kind}) for kind in ("avg", "max", "avgmax", "catavgmax")},
    "linear": (Linear, {"out_features": 5}),
    **{f"norm {kind}": (Norm, {"norm_type": kind, "eps": 1e-3}) for kind in ("layer", "rms", "simple")},
    **{f"activation {name}": (Activation, {"function": name}) for name in Activation.FUNCTIONS},
    "window": (Window, {"out_features": 5, "kernel_size": 3}),
    "window over a small grid": (Window, {"out_features": 5, "kernel_size": 6}),
}


def random_step(case: str) -> tuple[Step, Tensor]:
    """In double precision, no parameter at its start, and what it is given: 8 channels, 5 × 4 cells."""
    torch.manual_seed(0)
    kind, options = STEP_CASES[case]
    step = kind(8, **options).double()
    for parameter in step.parameters():
        nn.init.normal_(parameter)
    return step, torch.randn(2, 8, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("case", STEP_CASES)
@pytest.mark.parametrize("is_same_everywhere", [True, False])
def test_weights_pulled_back_give_the_same_sum(case: str, is_same_everywhere: bool) -> None:
    step, given = random_step(case)
    made = step(given)
    assert made.shape[1] == step.out_features
    weight = torch.randn(2, 3, made.shape[1], *((1, 1) if is_same_everywhere else made.shape[2:]), dtype=torch.float64)
    pulled, constant = step.pull(weight, given)
    before = (pulled * given[:, None]).sum((2, 3, 4)) + constant
    assert torch.allclose(before, (weight * made[:, None]).sum((2, 3, 4)), rtol=1e-10, atol=1e-10)
    assert constant.shape == (2, 3) and pulled.shape[:3] == (2, 3, 8)


@pytest.mark.parametrize("case", ["pool avg", "pool max", "pool avgmax", "pool catavgmax", "linear", "window"])
def test_where_a_step_is_linear_its_weights_are_the_gradient(case: str) -> None:
    step, given = random_step(case)
    given.requires_grad_()
    made = step(given)
    weight = torch.randn(2, 1, *made.shape[1:], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight[:, 0] * made).sum(), given)
    assert torch.allclose(step.pull(weight, given)[0][:, 0].expand_as(gradient), gradient)


@pytest.mark.parametrize("name", Activation.FUNCTIONS)
def test_an_activation_is_zero_at_zero_and_its_gain_goes_on_there(name: str) -> None:
    step = Activation(1, function=name)
    points = torch.tensor([0.0, 1e-3, -1e-3]).view(1, 3, 1, 1)
    assert step(points)[0, 0] == 0
    gain = step.pull(torch.ones(1, 1, 3, 1, 1), points)[0].flatten()
    assert gain.isfinite().all() and gain[2] - 1e-2 <= gain[0] <= gain[1] + 1e-2


def test_what_a_norm_removes_is_no_evidence() -> None:
    """A shift of all channels alike, at one cell, changes neither logits nor the map."""
    torch.manual_seed(0)
    head, features = DynamicCAM(8, 3), torch.randn(1, 8, 3, 3)
    nn.init.normal_(head.steps[1].weight)  # type: ignore[arg-type]
    shifted = features.clone()
    shifted[:, :, 1, 1] += 100
    one, other = head(features, "all"), head(shifted, "all")
    assert torch.allclose(one.logits, other.logits, atol=1e-4) and torch.allclose(one.maps, other.maps, atol=1e-4)


MOBILE = [
    {"kind": "pool"},
    {"kind": "linear", "out_features": 12},
    {"kind": "activation", "function": "hardswish"},
    {"kind": "norm", "norm_type": "layer", "eps": 1e-6},
    {"kind": "linear"},
]


def test_evidence_is_what_each_cell_brings_carried_forward() -> None:
    """The other way round: each cell's share of every tensor, pushed through the layers, gain and deviation held."""
    torch.manual_seed(0)
    head = create_head("dynamic_cam", 8, 4, steps=MOBILE).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    explained = head(features, "all")
    _, first, _, norm, last = head.steps  # type: ignore[misc]
    cells = einsum(first.weight, features, "e d, b d h w -> b e h w")
    pooled = cells.mean((2, 3)) + first.bias
    gained = cells * (nn.functional.hardswish(pooled) / pooled)[..., None, None]
    deviation = nn.functional.hardswish(pooled).var(1, correction=0).add(1e-6).sqrt()[:, None, None, None]
    centred = (gained - gained.mean(1, keepdim=True)) / deviation * norm.weight[:, None, None]
    expected = einsum(last.weight, centred, "c e, b e h w -> b c h w") / 15
    assert torch.allclose(explained.maps, expected)
    bare = nn.Sequential(nn.Linear(8, 12), nn.Hardswish(), nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 4)).double()
    for layer, step in ((bare[0], first), (bare[2], norm), (bare[3], last)):
        layer.load_state_dict(step.state_dict())
    assert torch.allclose(explained.logits, bare(features.mean((2, 3))))


def test_average_pooling_and_a_linear_layer_are_cam() -> None:
    torch.manual_seed(0)
    cam, dynamic = (
        create_head("cam", 8, 4),
        create_head("dynamic_cam", 8, 4, steps=[{"kind": "pool"}, {"kind": "linear"}]),
    )
    dynamic.steps[1].load_state_dict(cam.classifier.state_dict())  # type: ignore[index, union-attr]
    features = torch.randn(2, 8, 3, 5)
    for one, other in zip(cam(features, 2), dynamic(features, 2), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps must end in"),
        ([{"kind": "pool"}], "steps must end in"),
        ([{"kind": "pool"}, {"kind": "linear", "out_features": 3}], "steps must end in"),
        ([{"kind": "pol"}, {"kind": "linear"}], "unknown kind of step 'pol': did you mean 'pool'"),
        ([{"kind": "pool", "pool_type": "mean"}, {"kind": "linear"}], "unknown value of pool_type 'mean'"),
        ([{"kind": "activation", "function": "tanh"}, {"kind": "linear"}], "unknown value of function 'tanh'"),
        ([{"kind": "norm", "epsilon": 1}, {"kind": "linear"}], "step 'norm' does not take these options"),
        ([{"out_features": 3}, {"kind": "linear"}], "names no kind"),
    ],
)
def test_wrong_steps_are_named(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head("dynamic_cam", 8, 4, steps=steps)


def test_steps_that_do_not_pool_are_named() -> None:
    head = create_head("dynamic_cam", 8, 4, steps=[{"kind": "linear"}])
    with pytest.raises(InputError, match="leave a grid of 3 × 5 cells: one of them must pool"):
        head(torch.randn(2, 8, 3, 5))


def test_every_kind_of_step_is_tested() -> None:
    assert {kind for kind, _ in STEP_CASES.values()} == set(STEPS.values())
