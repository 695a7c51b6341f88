"""Heads that look at several stages, or at an earlier one: computed a second time cell by cell, and their start."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from glasszoo.common.errors import InputError
from glasszoo.heads import Explained, Head, LocalCAM, MultiscaleCAM, PayAttention, create_head, wanted_stages
from glasszoo.heads.stages import finest, spread

CHANNELS = [5, 8, 12]
GRIDS = [(9, 7), (5, 7), (2, 3)]  # none divides another
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("multiscale_cam", {}),
    ("pay_attention", {"compatibility": "parametrised"}),
    ("pay_attention", {"compatibility": "dot"}),
]


def made(name: str, channels: list[int] = CHANNELS, **options: Any) -> Head:
    torch.manual_seed(0)
    head = create_head(name, channels, 4, stages=len(channels), **options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def stages_of(channels: list[int] = CHANNELS, grids: list[tuple[int, int]] = GRIDS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(channels, grids, strict=True)
    return [torch.randn(2, d, h, w, dtype=torch.float64, generator=generator) for d, (h, w) in sizes]


def laid_over(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The second way to spread: both grids cut into pieces so small that every cell of either is whole pieces."""
    for axis, fine in zip((-2, -1), grid, strict=True):
        coarse = maps.shape[axis]
        pieces = np.moveaxis(np.repeat(maps, fine, axis) / fine, axis, -1)
        maps = np.moveaxis(pieces.reshape(*pieces.shape[:-1], fine, coarse).sum(-1), -1, axis)
    return maps


def by_hand(head: Head, stages: list[Tensor], weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Logits `b c` and maps `b c h w`, a cell at a time, from weights `b h w` of the cells of each stage."""
    assert isinstance(head, MultiscaleCAM | PayAttention)
    batch, classes = len(stages[0]), head.num_classes
    maps = np.zeros((batch, classes, *GRIDS[0]))
    for stage, weight, classifier in zip(stages, weights, head.classifiers, strict=True):
        coarse = np.zeros((batch, classes, *stage.shape[-2:]))
        for image, row, column in np.ndindex(batch, *stage.shape[-2:]):
            votes = classifier.weight.detach().numpy() @ stage[image, :, row, column].numpy()
            coarse[image, :, row, column] = weight[image, row, column] * votes
        maps += laid_over(coarse, GRIDS[0])
    return maps.sum((-2, -1)) + head.classifier.bias.detach().numpy(), maps


def attention_by_hand(head: PayAttention, stages: list[Tensor]) -> list[np.ndarray]:
    """As the paper has it: the global feature is added to each cell, and both meet at the global one's length."""
    weights = []
    for number, stage in enumerate(stages):
        scores = np.zeros((len(stage), *stage.shape[-2:]))
        for image, row, column in np.ndindex(scores.shape):
            cell, g = stage[image, :, row, column], stages[-1][image].mean((1, 2))
            if head.queries is not None:
                g = g[: len(cell)]  # any vector at all: softmax does not see it
                scores[image, row, column] = (head.queries[number] @ (cell + g)).item()
            else:
                there = head.projections[number].weight.T @ cell if number < len(stages) - 1 else cell
                scores[image, row, column] = (head.temperatures[number] / len(cell) ** 0.5 * (there @ g)).item()
        exponentials = np.exp(scores)
        weights.append(exponentials / exponentials.sum((1, 2), keepdims=True))
    return weights


def check(explained: Explained, logits: np.ndarray, maps: np.ndarray) -> None:
    np.testing.assert_allclose(explained.logits.detach().numpy(), logits, atol=1e-12)
    np.testing.assert_allclose(explained.maps.detach().numpy(), maps, atol=1e-12)


@given(st.lists(st.integers(1, 13), min_size=4, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_spreading_divides_cells_by_area(sizes: list[int], seed: int) -> None:
    height, width, fine_height, fine_width = sizes
    maps = torch.randn(2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    grid = (fine_height, fine_width)
    spreaded = spread(maps, grid)
    np.testing.assert_allclose(spreaded.numpy(), laid_over(maps.numpy(), grid), atol=1e-12)
    torch.testing.assert_close(spreaded.sum((1, 2)), maps.sum((1, 2)), atol=1e-12, rtol=0)
    # What is even stays even: nothing leans to a side where cells are cut.
    torch.testing.assert_close(
        spread(torch.ones_like(maps), grid), maps.new_full((2, *grid), height * width / (fine_height * fine_width))
    )


def test_spreading_whole_cells_repeats_them() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    repeated = functional.interpolate(maps, scale_factor=4, mode="nearest") / 16
    assert torch.equal(spread(maps, (8, 12)), repeated)
    assert spread(maps, (2, 3)) is maps
    assert finest([torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 5, 5)]) == (5, 5)


def test_multiscale_cam_is_a_classifier_at_each_cell_of_each_stage() -> None:
    head, stages = made("multiscale_cam"), stages_of()
    check(head(stages, "all"), *by_hand(head, stages, [np.full((2, h, w), 1 / (h * w)) for h, w in GRIDS]))


@pytest.mark.parametrize("compatibility", ["parametrised", "dot"])
def test_pay_attention_is_the_papers(compatibility: str) -> None:
    head, stages = made("pay_attention", compatibility=compatibility), stages_of()
    assert isinstance(head, PayAttention)
    with torch.no_grad():
        attention = attention_by_hand(head, stages)
        explained = head(stages, "all")
    check(explained, *by_hand(head, stages, attention))
    assert explained.parts.shape == (2, 3, *GRIDS[0])
    for number, weights in enumerate(attention):
        np.testing.assert_allclose(explained.parts[:, number].numpy(), laid_over(weights, GRIDS[0]), atol=1e-12)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_evidence_adds_up(data: st.DataObject) -> None:
    name, options = data.draw(st.sampled_from(OPTIONS))
    count = data.draw(st.integers(2, 4))
    channels = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    side = st.integers(1, 9)
    grids = data.draw(st.lists(st.tuples(side, side), min_size=count, max_size=count))
    head, stages = made(name, channels, **options), stages_of(channels, grids, data.draw(st.integers(0, 99)))
    explained = head(stages, "all")
    gap = (explained.maps.sum((-2, -1)) + explained.offset - explained.logits).abs().max()
    assert gap <= 1e-9 * explained.logits.abs().max()
    assert explained.maps.shape[-2:] == explained.parts.shape[-2:] == max(grids, key=lambda grid: grid[0] * grid[1])


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_starts_as_the_classifier_of_the_final_features(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head, stages = create_head(name, CHANNELS, 4, **options).double(), stages_of()
    weight, bias = torch.randn(4, 12).double(), torch.randn(4).double()
    assert head.fold(weight, bias)
    expected = functional.linear(stages[-1].mean((2, 3)), weight, bias)
    torch.testing.assert_close(head(stages).logits, expected, atol=1e-14, rtol=1e-14)
    cam = create_head("cam", 12, 4).double()
    assert cam.fold(weight, bias)
    if name == "multiscale_cam":
        assert torch.equal(head(stages).logits, cam(stages[-1]).logits)
    else:
        uniform = torch.full((2, 3, *GRIDS[0]), 1 / 63, dtype=torch.float64)
        torch.testing.assert_close(head(stages).parts, uniform, atol=1e-14, rtol=0)
    coarse = cam(stages[-1], "all").maps.detach().numpy()
    np.testing.assert_allclose(head(stages, "all").maps.detach().numpy(), laid_over(coarse, GRIDS[0]), atol=1e-14)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_everything_learns_within_three_steps_from_the_start(name: str, options: dict[str, Any]) -> None:
    """Zeros do not hold each other at zero: shallow classifiers move at once, and with them what they hide."""
    torch.manual_seed(0)
    head, stages = create_head(name, CHANNELS, 4, **options).double(), stages_of()
    labels = torch.tensor([0, 3])
    assert isinstance(head, MultiscaleCAM | PayAttention)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        logits = head(stages).logits
        functional.cross_entropy(logits, labels).backward()
        if step == 0:
            error = (logits.softmax(1) - functional.one_hot(labels, 4)).detach() / 2
            for classifier, stage in zip(head.classifiers, stages, strict=True):
                assert classifier.weight.grad is not None
                torch.testing.assert_close(classifier.weight.grad, error.T @ stage.mean((2, 3)))
        if step == 2:
            for key, parameter in head.named_parameters():
                assert parameter.grad is not None and parameter.grad.any(), key
        optimizer.step()


def test_a_strong_query_looks_at_one_cell() -> None:
    head, stages = made("pay_attention"), stages_of()
    assert isinstance(head, PayAttention) and head.queries is not None
    with torch.no_grad():
        head.queries[0].copy_(500 * functional.one_hot(torch.tensor(3), 5))
        attention = head(stages).parts[:, 0]
    places = stages[0][:, 3].flatten(1).argmax(1)
    torch.testing.assert_close(attention.flatten(1), functional.one_hot(places, 63).double(), atol=1e-6, rtol=0)


def test_local_cam_takes_over_only_a_classifier_of_the_final_features() -> None:
    weight, bias = torch.randn(3, 6), torch.randn(3)
    features = torch.randn(2, 6, 4, 5)
    assert not create_head("local_cam", 6, 3).fold(weight, bias)
    head = create_head("local_cam", 6, 3, stage=-1)
    assert head.fold(weight, bias)
    torch.testing.assert_close(head(features).logits, functional.linear(features.mean((2, 3)), weight, bias))


def test_heads_say_which_stages_they_want() -> None:
    assert wanted_stages("cam") == wanted_stages("local_cam", stage=-1) == (-1,)
    assert wanted_stages("local_cam") == (-3,) and LocalCAM(4, 3).stage == -3
    assert wanted_stages("multiscale_cam") == wanted_stages("pay_attention") == (-3, -2, -1)
    assert wanted_stages("multiscale_cam", stages=2) == (-2, -1)


@pytest.mark.parametrize(
    ("name", "num_features", "options", "message"),
    [
        ("multiscale_cam", CHANNELS, {"stages": 1}, "stages=1: must be at least 2"),
        ("pay_attention", CHANNELS, {"stages": 0}, "stages=0: must be at least 2"),
        (
            "pay_attention",
            CHANNELS,
            {"compatibility": "dott"},
            "unknown value of compatibility 'dott': did you mean 'dot'",
        ),
        ("multiscale_cam", 12, {}, "'multiscale_cam' looks at 3 stages: num_features=12 does not fit"),
        ("multiscale_cam", CHANNELS, {"stages": 2}, r"looks at 2 stages: num_features=\[5, 8, 12\] does not fit"),
        ("cam", CHANNELS, {}, "'cam' looks at 1 stages"),
        ("local_cam", 12, {"stage": 0}, r"'local_cam' asks for stages \(0,\): they count from the end"),
        ("local_cam", 12, {"stag": -1}, "unknown option of head 'local_cam' 'stag': did you mean 'stage'"),
    ],
)
def test_bad_options_are_named(name: str, num_features: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head(name, num_features, 3, **options)


def test_a_wrong_number_of_stages_is_named() -> None:
    with pytest.raises(InputError, match=r"stages=2: num_features=\[5, 8, 12\] does not fit"):
        MultiscaleCAM(CHANNELS, 3, stages=2)
