"""Localisation, accuracy, calibration, completeness and intervals: cases solved by hand and outside code."""

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from glasszoo.common.errors import InputError
from glasszoo.evaluation import (
    bootstrap_interval,
    chance_level,
    completeness_gap,
    energy_pointing_game,
    pointing_game,
)
from glasszoo.evaluation.accuracy import expected_calibration_error, topk_correct
from glasszoo.evaluation.maps import placed, ranks, stacked
from glasszoo.heads import Contract, Explained
from glasszoo.models import Grid

MASK = torch.tensor([[[True, False, False, False], [True, False, False, False]]])  # 2 of 8 pixels


def test_energy_is_the_share_of_positive_evidence_in_the_mask() -> None:
    maps = torch.tensor([[[3.0, 1.0, -5.0, 0.0], [-2.0, 0.0, 0.0, 4.0]]])
    assert energy_pointing_game(maps, MASK).item() == pytest.approx(3 / 8)
    assert energy_pointing_game(maps * 1e-20, MASK).item() == pytest.approx(3 / 8), "faint evidence counts as well"
    assert energy_pointing_game(maps * 1e20, MASK).item() == pytest.approx(3 / 8)


def test_a_uniform_map_scores_chance() -> None:
    torch.manual_seed(0)
    masks = torch.rand(5, 12, 9) < 0.3
    torch.testing.assert_close(energy_pointing_game(torch.ones(5, 3, 3), masks)[0], chance_level(masks))


def test_the_truth_scores_one_and_its_opposite_zero() -> None:
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[:, 1:3, 2:5] = True
    maps = torch.stack([masks.float(), (~masks).float()])
    assert energy_pointing_game(maps, masks).tolist() == [[1, 1], [0, 0]]
    assert pointing_game(maps, masks).tolist() == [[1, 1], [0, 0]]


def test_pointing_takes_the_first_of_equal_maxima() -> None:
    assert pointing_game(torch.tensor([[[0.0, 7, 0, 0], [7, 0, 0, 0]]]), MASK).item() == 0
    assert pointing_game(torch.tensor([[[7.0, 7, 0, 0], [0, 0, 0, 0]]]), MASK).item() == 1


def test_a_map_without_positive_evidence_points_nowhere() -> None:
    maps = torch.stack([torch.zeros(1, 2, 4), -torch.ones(1, 2, 4)])
    assert energy_pointing_game(maps, MASK).tolist() == [[0], [0]]
    assert pointing_game(maps, MASK).tolist() == [[0], [0]]


def test_an_empty_mask_has_no_score() -> None:
    masks = torch.stack([MASK[0], torch.zeros(2, 4, dtype=torch.bool)])
    for scores in (energy_pointing_game(torch.rand(3, 2, 2, 4), masks), pointing_game(torch.rand(3, 2, 2, 4), masks)):
        assert scores.isnan().tolist() == [[False, True]] * 3
    assert chance_level(masks).isnan().tolist() == [False, True]


def test_methods_are_scored_as_if_alone_at_any_resolution() -> None:
    torch.manual_seed(0)
    masks, maps = torch.rand(3, 16, 16) < 0.4, torch.randn(2, 3, 4, 5)
    together = energy_pointing_game(maps, masks)
    for method in range(2):
        torch.testing.assert_close(energy_pointing_game(maps[method], masks)[0], together[method])
        torch.testing.assert_close(
            energy_pointing_game(placed(maps[method, None], (16, 16)), masks)[0], together[method]
        )


def test_masks_must_be_bool() -> None:
    with pytest.raises(InputError, match=r"bool masks of shape \(b, h, w\) expected, got uint8 \(1, 2, 4\)"):
        energy_pointing_game(torch.rand(1, 2, 4), MASK.byte())


def test_maps_are_stacked_by_method() -> None:
    assert stacked(torch.rand(3, 2, 2), 3).shape == (1, 3, 2, 2)
    with pytest.raises(InputError, match=r"got \(3, 2, 2\)"):
        stacked(torch.rand(3, 2, 2), 4)


def test_ranks_break_ties_in_reading_order() -> None:
    assert ranks(torch.tensor([[1.0, 3.0], [3.0, 2.0]])).tolist() == [3, 0, 1, 2]
    assert ranks(torch.zeros(2, 2, 3)).tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_agrees_with_sklearn(k: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 7), torch.randint(7, (200,))
    ours = topk_correct(logits, labels, k).double().mean().item()
    assert ours == pytest.approx(top_k_accuracy_score(labels, logits, k=k))


def test_topk_of_few_classes_of_ties_and_of_nan() -> None:
    labels = torch.tensor([0, 1])
    assert topk_correct(torch.randn(2, 3), labels, 5).tolist() == [True, True]
    assert topk_correct(torch.zeros(2, 3), labels, 1).tolist() == [False, False]
    assert topk_correct(torch.full((2, 3), torch.nan), labels, 1).tolist() == [False, False]


def test_calibration_error_by_hand() -> None:
    # Two at 0.8, one of them right; two at 0.6, both right: (2 · |0.8 − 0.5| + 2 · |0.6 − 1|) / 4.
    probabilities = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    labels = torch.tensor([0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.35, abs=1e-6)
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, torch.tensor([0, 1])) == 0
    with pytest.raises(InputError, match="b > 0"):
        expected_calibration_error(torch.zeros(0, 2), torch.zeros(0).long())


def test_calibrated_predictions_have_no_error() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(200_000, generator=generator)
    is_right = torch.rand(200_000, generator=generator) < confidence
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    assert expected_calibration_error(probabilities, (~is_right).long()) < 0.01


@pytest.mark.parametrize("contract", [Contract.LINEAR, Contract.PROBABILITY])
def test_completeness_gap(contract: Contract) -> None:
    logits = torch.tensor([[-0.5, -2.0]])
    quantity = contract.explained_quantity(logits)
    classes = torch.tensor([[1, 0]])
    offset = torch.tensor([[0.25, 0.25]])
    maps = ((quantity.gather(1, classes) - offset) / 4)[..., None, None].expand(1, 2, 2, 2).clone()
    explained = Explained(logits, classes, maps, offset, torch.zeros(1, 0, 2, 2))
    assert completeness_gap(explained, contract).abs().max() < 1e-6
    maps[0, 1, 0, 0] += 0.3
    gap = completeness_gap(explained, contract)[0]
    torch.testing.assert_close(gap, torch.tensor([0.0, 0.3]) / quantity.abs().max(), atol=1e-6, rtol=0)


def test_interval_covers_the_mean_at_its_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(torch.randn(40, generator=generator), 300, 0.9, trial)[1:3]
        covered += low <= 0 <= high
    assert 0.82 <= covered / 200 <= 0.95


def test_interval_leaves_nan_out_and_counts_it() -> None:
    interval = bootstrap_interval(torch.tensor([1.0, torch.nan, 3.0]), 150, 0.95, 0)
    assert (interval.mean, interval.images, interval.missing) == (2, 2, 1)
    assert 1 <= interval.low <= interval.high <= 3
    nothing = bootstrap_interval(torch.full((2,), torch.nan), 100, 0.95, 0)
    assert nothing.images == 0 and nothing.missing == 2 and nothing.mean != nothing.mean


@pytest.mark.parametrize(
    ("cells", "size"), [((7, 7), (224, 224)), ((3, 5), (40, 33)), ((1, 1), (8, 8)), ((8, 8), (4, 6))]
)
def test_a_stretched_map_is_torchs_interpolation(cells: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *cells)
    expected = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(placed(maps, size), expected, atol=1e-5, rtol=0)


def test_cells_stand_where_they_look() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    grid = Grid(stride=8.0, centre=(0.5, 3.5), receptive_field=(9, 9))
    done = placed(maps, (32, 32), grid)[0, 0]
    assert done[::8, 3::8].equal(maps[0, 0]), "at its centre a cell has its own value"
    assert done[4, 3].item() == pytest.approx((maps[0, 0, 0, 0] + maps[0, 0, 1, 0]).item() / 2)
    assert done[31, 31] == maps[0, 0, 3, 3] and done[0, 0] == maps[0, 0, 0, 0], (
        "beyond the outermost cells values go on"
    )


def test_a_tiling_grid_is_the_stretched_map() -> None:
    maps = torch.randn(1, 2, 7, 5)
    tiling = Grid(stride=32.0, centre=(16.0, 16.0), receptive_field=(32, 32))
    torch.testing.assert_close(placed(maps, (224, 160), tiling), placed(maps, (224, 160)), atol=1e-6, rtol=0)
