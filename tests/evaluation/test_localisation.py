"""Localisation: against Quantus (its numbers in tests/golden) and scikit-learn, and cases solved by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.evaluation.localisation import (
    chance_level,
    energy_pointing_game,
    pointing_game,
    relevance_rank_accuracy,
    roc_auc,
    roc_auc_chance,
    topk_intersection,
)

ALL = (energy_pointing_game, pointing_game, relevance_rank_accuracy, roc_auc, lambda a, m: topk_intersection(a, m, 5))
BY_ORDER = ALL[2:]
MASK = torch.tensor([[[True, False, False, False], [True, False, False, False]]])  # 2 of 8 pixels


@pytest.fixture(scope="module")
def quantus() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parents[1] / "golden" / "quantus_localisation.npz"))


@pytest.fixture(scope="module")
def masks(quantus: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(quantus["masks"])


def agree(ours: Tensor, theirs: np.ndarray) -> bool:
    return bool(np.allclose(ours[0].numpy(), theirs, atol=1e-5, rtol=0))


def test_scores_agree_with_quantus(quantus: dict[str, np.ndarray], masks: Tensor) -> None:
    positive, signed = torch.from_numpy(quantus["positive"]), torch.from_numpy(quantus["signed"])
    assert agree(energy_pointing_game(positive, masks), quantus["mass_positive"])
    assert agree(energy_pointing_game(positive, masks), quantus["attribution_localisation"])
    assert agree(relevance_rank_accuracy(signed, masks), quantus["rank_signed"])
    assert agree(topk_intersection(signed, masks, 50), quantus["top_50_signed"])
    assert agree(roc_auc(signed, masks), quantus["auc_signed"])
    assert agree(pointing_game(signed, masks), quantus["pointing_signed"])


def test_quantus_counts_an_empty_mask_as_a_hit_and_cannot_weigh(quantus: dict[str, np.ndarray], masks: Tensor) -> None:
    """It writes NaN into an array of bool, where NaN is True; ours is NaN, which is counted and shown."""
    empty = masks.clone()
    empty[0] = False
    assert quantus["pointing_empty"][0] == 1
    assert pointing_game(torch.from_numpy(quantus["signed"]), empty).isnan().tolist() == [[True] + [False] * 4]
    assert str(quantus["pointing_weighted"]).startswith("TypeError")


def test_quantus_does_not_clip_the_mass(quantus: dict[str, np.ndarray], masks: Tensor) -> None:
    """Its relevance mass of a signed map leaves 0..1, where evidence for and against cancel; ours counts that for."""
    theirs, signed = quantus["mass_signed"], torch.from_numpy(quantus["signed"])
    assert theirs.min() < 0 and theirs.max() > 1
    ours = energy_pointing_game(signed, masks)
    assert ours.min() >= 0 and ours.max() <= 1
    assert agree(energy_pointing_game(signed.clamp(min=0), masks), ours[0].numpy())


def test_quantus_takes_evidence_against_as_evidence(quantus: dict[str, np.ndarray], masks: Tensor) -> None:
    """Its attribution localisation takes absolute values unless told otherwise."""
    signed = torch.from_numpy(quantus["signed"])
    assert agree(energy_pointing_game(signed.abs(), masks), quantus["attribution_localisation_signed"])
    assert not agree(energy_pointing_game(signed, masks), quantus["attribution_localisation_signed"])


def test_quantus_weighs_by_the_batch(quantus: dict[str, np.ndarray], masks: Tensor) -> None:
    """Its size of an image is that of all images of the batch but two (`x_batch[2:].size`); ours knows no weight."""
    of_five, of_four = (quantus[f"attribution_localisation_weighted_{count}"] for count in (5, 4))
    assert np.allclose(of_five[:4] * 3, of_four * 2)
    size = quantus["masks"][0].size
    expected = quantus["attribution_localisation"] * quantus["masks"].sum((1, 2)) / (3 * 3 * size)
    assert np.allclose(of_five, expected)


@pytest.mark.parametrize("has_ties", [False, True])
def test_roc_auc_agrees_with_sklearn(has_ties: bool) -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(2, 4, 15, 11), torch.rand(4, 15, 11) < torch.tensor([0.02, 0.3, 0.7, 0.99])[:, None, None]
    if has_ties:
        maps = maps.round()
    ours = roc_auc(maps, masks)
    for method, image in np.ndindex(2, 4):
        theirs = roc_auc_score(masks[image].flatten(), maps[method, image].flatten())
        assert ours[method, image].item() == pytest.approx(theirs, abs=1e-6)


def test_roc_auc_counts_all_pairs_of_a_large_image() -> None:
    torch.manual_seed(0)
    maps, masks = torch.rand(1, 600, 600), torch.rand(1, 600, 600) < 0.5
    assert roc_auc(maps, masks).item() == pytest.approx(roc_auc_score(masks.flatten(), maps.flatten()), abs=1e-6)


def test_roc_auc_is_undefined_where_there_is_one_kind_of_pixel() -> None:
    masks = torch.stack([MASK[0], torch.zeros_like(MASK[0]), torch.ones_like(MASK[0])])
    assert roc_auc(torch.rand(2, 3, 2, 4), masks).isnan().tolist() == [[False, True, True]] * 2
    assert roc_auc_chance(masks)[0] == 0.5 and roc_auc_chance(masks).isnan().tolist() == [False, True, True]


def test_the_mask_itself_is_found_and_its_opposite_is_not() -> None:
    maps = torch.stack([MASK.float(), -MASK.float()])
    assert relevance_rank_accuracy(maps, MASK).tolist() == [[1], [0]]
    assert roc_auc(maps, MASK).tolist() == [[1], [0]]
    assert topk_intersection(maps, MASK, 2).tolist() == [[1], [0]]
    assert topk_intersection(maps, MASK, 4).tolist() == [[0.5], [0]], "of four pixels two can hit"


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0])
def test_a_constant_map_scores_chance_by_order(value: float) -> None:
    maps = torch.full((1, 2, 4), value)
    assert relevance_rank_accuracy(maps, MASK).tolist() == [chance_level(MASK).tolist()]
    assert topk_intersection(maps, MASK, 3)[0].tolist() == pytest.approx(chance_level(MASK).tolist())
    assert roc_auc(maps, MASK).tolist() == [roc_auc_chance(MASK).tolist()]


def test_equal_values_at_the_limit_count_by_their_share() -> None:
    # The highest value is in the mask; for the second place three are equal, one of them in the mask.
    maps = torch.tensor([[[9.0, 5, 5, 0], [5, 0, 0, 0]]])
    assert relevance_rank_accuracy(maps, MASK).item() == pytest.approx((1 + 1 / 3) / 2)
    assert topk_intersection(maps, MASK, 3).item() == pytest.approx((1 + 2 / 3) / 3)
    assert topk_intersection(maps, MASK, 100).item() == pytest.approx(2 / 8), "all eight pixels, of which two hit"


def test_k_must_be_positive() -> None:
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        topk_intersection(torch.rand(1, 2, 4), MASK, 0)


@pytest.mark.parametrize("score", ALL)
def test_nothing_is_invented(score) -> None:
    maps = torch.rand(2, 3, 2, 4)
    maps[1, 1, 0, 0] = torch.nan
    masks = MASK.repeat(3, 1, 1)
    masks[2] = False
    assert score(maps, masks).isnan().tolist() == [[False, False, True], [False, True, True]]
    assert score(maps[:, :0], masks[:0]).shape == (2, 0)


@pytest.mark.parametrize("score", ALL)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), levels=st.integers(1, 9))
def test_scores_stay_in_range_and_know_no_unit(score, seed: int, scale: float, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = (torch.randn(2, 3, 4, 5, generator=generator) * levels).round()  # with ties
    masks = torch.rand(3, 8, 10, generator=generator) < 0.3
    scores = score(maps, masks)
    known = scores[~scores.isnan()]
    assert ((known >= 0) & (known <= 1)).all()
    # By a power of two, so that ties stay ties.
    scaled = score(maps * 2 ** round(np.log2(scale)), masks)
    torch.testing.assert_close(scaled, scores, equal_nan=True)


@pytest.mark.parametrize("score", BY_ORDER)
def test_the_order_of_pixels_does_not_matter(score) -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(1, 4, 6).round(), torch.rand(1, 4, 6) < 0.4
    torch.testing.assert_close(score(maps.flip(1, 2), masks.flip(1, 2)), score(maps, masks))
