"""Parts: each voting for itself, from true distances; and what its losses measure."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glasszoo.common.errors import InputError
from glasszoo.heads import Parts, create_head
from glasszoo.heads import parts as module


def made(num_features: int = 6, num_classes: int = 4, seed: int = 0, **options: object) -> Parts:
    torch.manual_seed(seed)
    head = create_head("parts", num_features, num_classes, **options).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert isinstance(head, Parts)
    return head.eval()


def second(head: Parts, features: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Evidence `b c h w`, logits `b c`, part by part; `kept` (b k): 0 for dropped parts, else 1 / (1 − dropout)."""
    num_images, _, height, width = features.shape
    evidence = torch.zeros(num_images, head.num_classes, height, width, dtype=features.dtype)
    logits = head.classifier.bias.expand(num_images, -1).clone()
    for image in range(num_images):
        cells = features[image].flatten(1).T
        assignment = (-(torch.cdist(cells, head.prototypes) ** 2)).softmax(1)
        for part in range(head.num_parts):
            share = kept[image, part] * assignment[:, part, None]
            vote = head.modulation[part] * (share * cells).mean(0)
            logits[image] += head.classifier.weight @ vote / head.num_parts
            for label in range(head.num_classes):
                weight = head.classifier.weight[label] * head.modulation[part]
                at_cells = share[:, 0] * (cells @ weight) / (head.num_parts * height * width)
                evidence[image, label] += at_cells.reshape(height, width)
    return evidence, logits


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=15, deadline=None)
@given(
    shape=SHAPES,
    num_classes=st.integers(1, 4),
    num_parts=st.integers(1, 4),
    seed=st.integers(0, 999),
    drop=st.booleans(),
)
def test_logits_and_evidence_a_second_time(
    shape: tuple[int, ...], num_classes: int, num_parts: int, seed: int, drop: bool
) -> None:
    head = made(shape[1], num_classes, seed, num_parts=num_parts, dropout=0.4).train(drop)
    features = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(seed)
    explained = head(features, "all")
    torch.manual_seed(seed)
    ones = torch.ones(shape[0], num_parts, 1, 1, dtype=torch.float64)
    kept = nn.functional.dropout(ones, 0.4, drop)[..., 0, 0]
    evidence, logits = second(head, features, kept)
    scale = explained.logits.abs().max().item()
    torch.testing.assert_close(explained.maps, evidence, rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(explained.logits, logits, rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(explained.offset, head.classifier.bias.expand_as(logits))
    assert explained.parts.shape == (shape[0], num_parts + 1, *shape[2:])
    torch.testing.assert_close(explained.parts.sum(1), torch.ones_like(explained.parts[:, 0]))


def test_evidence_adds_up_after_some_training() -> None:
    torch.manual_seed(0)
    head = create_head("parts", 6, 4, num_parts=3).double().train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    features, labels = torch.randn(8, 6, 7, 7, dtype=torch.float64), torch.arange(8) % 4
    totals = []
    for _ in range(12):
        explained, terms = head.forward_with_losses(features, labels)
        loss = nn.functional.cross_entropy(explained.logits, labels)
        loss = loss + torch.stack([head.loss_weights()[term] * one for term, one in terms.items()]).sum()
        totals.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert totals[-1] < totals[0]
    explained = head.eval()(features, "all")  # type: ignore[assignment]
    assert isinstance(head, Parts)
    evidence, logits = second(head, features, torch.ones(8, 3, dtype=torch.float64))
    torch.testing.assert_close(explained.maps, evidence, rtol=0, atol=1e-9)
    torch.testing.assert_close(explained.maps.sum((-2, -1)) + explained.offset, explained.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(explained.logits, logits, rtol=0, atol=1e-9)


def test_a_cell_belongs_to_the_part_that_it_is_like() -> None:
    head = made(3, 2, num_parts=2)
    with torch.no_grad():
        head.prototypes.copy_(20 * torch.eye(3))
    features = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    features[0, :, 0] = 20 * torch.eye(3)  # cell k is prototype k; the last is the background
    explained = head(features, "all")
    torch.testing.assert_close(explained.parts[0, :, 0], torch.eye(3, dtype=torch.float64))
    assert not explained.maps[..., 2].any()
    for cell in range(2):
        wanted = head.classifier.weight[:, cell] * head.modulation[cell, cell] * 20 / (2 * 3)
        torch.testing.assert_close(explained.maps[0, :, 0, cell], wanted)


def test_starts_near_average_pooling() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 256), torch.randn(5)
    features = torch.randn(20, 256, 7, 7).relu()
    plain = features.mean((-2, -1)) @ weight.T + bias
    for num_parts in (1, 4, 16):
        head = create_head("parts", 256, 5, num_parts=num_parts).eval()
        assert head.fold(weight, bias)
        explained = head(features)
        # Within a tenth of the logits' spread, and the parts are not all alike, or they could not part ways.
        assert (explained.logits - plain).abs().max() < 0.1 * plain.std()
        foreground = explained.parts[:, :-1]
        assert num_parts == 1 or foreground.std(1).mean() > 0.1 / (num_parts + 1)


def test_dropped_parts_are_made_up_for() -> None:
    head = made(dropout=0.3)
    features = torch.randn(1, 6, 4, 4, dtype=torch.float64).expand(4000, -1, -1, -1)
    steady, dropped = head(features[:1], 0).logits, head.train()(features, 0).logits
    deviation = (dropped.mean(0) - steady[0]) / (dropped.std(0) / 4000**0.5)
    assert deviation.abs().max() < 4 and dropped.std(0).min() > 0


@settings(max_examples=15, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 5)] * 4), seed=st.integers(0, 999))
def test_concentration_a_second_time(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.rand(shape, dtype=torch.float64)
    total = 0.0
    for image_maps in maps.numpy():
        for weights in image_maps:
            places = [(row / shape[2], column / shape[3]) for row in range(shape[2]) for column in range(shape[3])]
            points, mass = np.array(places), weights.reshape(-1, 1)
            centroid = (mass * points).sum(0) / mass.sum()
            total += (mass[:, 0] * ((points - centroid) ** 2).sum(1)).sum()
    assert module.concentration(maps).item() == pytest.approx(total / maps.numel(), abs=1e-12)


def test_concentration_of_a_point_and_of_nothing() -> None:
    maps = torch.zeros(1, 2, 6, 5, requires_grad=True)
    point = maps.clone()
    point[0, 0, 4, 1] = 1
    spread = module.concentration(point)
    spread.backward()
    assert spread.item() == pytest.approx(0, abs=1e-12)
    assert maps.grad is not None and torch.isfinite(maps.grad).all()


def test_presence() -> None:
    maps = torch.zeros(3, 2, 7, 7)
    assert module.presence(maps).item() == 1
    maps[1, 0, 2:5, 3:6] = 1  # one part whole, in one image: that is enough
    assert module.presence(maps).item() == pytest.approx(0.5)
    maps[2, 1, 0:2, 0:2] = 1  # the other in a corner, where five of the nine cells lie outside
    assert module.presence(maps).item() == pytest.approx(1 - (1 + 4 / 9) / 2)
    assert module.presence(torch.ones(1, 1, 1, 1)).item() == pytest.approx(8 / 9)


def test_by_default_a_part_is_worth_its_spread_on_a_coarse_grid() -> None:
    weights = made().loss_weights()
    absent, present = torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, 7, 7)
    present[..., 2:5, 2:5] = 1
    costs = [
        weights["concentration"] * module.concentration(maps) + weights["presence"] * module.presence(maps)
        for maps in (absent, present)
    ]
    assert costs[1] < 0.1 * costs[0]


def test_orthogonality() -> None:
    features = torch.zeros(2, 3, 1, 3)
    features[:, :, 0] = torch.eye(3)
    apart, alike = torch.eye(3).expand(2, 3, 3)[:, :, None], torch.full((2, 3, 1, 3), 1 / 3)
    assert module.orthogonality(apart, features).item() == pytest.approx(0, abs=1e-12)
    assert module.orthogonality(alike, features).item() == pytest.approx(6 / 9)  # all off the diagonal


def test_losses_take_background_where_it_belongs() -> None:
    head = made(num_parts=3)
    state = head.score(torch.randn(2, 6, 5, 5, dtype=torch.float64))
    losses = head.losses(state, torch.zeros(2).long())
    assert set(losses) == set(head.loss_weights())
    foreground = state.parts[:, :3]
    assert torch.equal(losses["concentration"], module.concentration(foreground))
    assert torch.equal(losses["presence"], module.presence(foreground))
    assert torch.equal(losses["orthogonality"], module.orthogonality(state.parts, state.features))


def test_presence_over_two_devices_has_the_gradient_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices played one after the other: DDP's mean of their gradients is that of the whole batch on one."""
    torch.manual_seed(0)
    maps = torch.rand(4, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    joint = module.presence(maps)
    (wanted,) = torch.autograd.grad(joint, maps)
    local = [nn.functional.avg_pool2d(maps[half], 3, 1, 1).amax((0, 2, 3)).detach() for half in (slice(2), slice(2, 4))]
    largest = torch.maximum(*local)

    def all_reduce(tensor: Tensor, op: object = torch.distributed.ReduceOp.SUM) -> None:
        is_maximum = op == torch.distributed.ReduceOp.MAX
        tensor.copy_(largest if is_maximum else sum((own == largest).double() for own in local))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    losses = [module.presence(maps[half]) for half in (slice(2), slice(2, 4))]
    for loss in losses:
        torch.testing.assert_close(loss, joint)
    (ours,) = torch.autograd.grad((losses[0] + losses[1]) / 2, maps)
    torch.testing.assert_close(ours, wanted)


def test_what_must_not_decay_is_there() -> None:
    head = made()
    assert head.no_weight_decay() == {"prototypes", "modulation"} < {key for key, _ in head.named_parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 0}, "num_parts=0: must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0: must be between 0 and 0.99"),
        ({"dropout": -0.1}, "dropout=-0.1: must be between 0"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head("parts", 8, 5, **options)
