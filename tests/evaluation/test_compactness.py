"""Compactness: against Quantus (its numbers in tests/golden), by hand, and at both ends."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasszoo.common.errors import InputError
from glasszoo.evaluation.compactness import gini, normalised_entropy
from glasszoo.evaluation.maps import placed


def test_scores_agree_with_quantus() -> None:
    golden = np.load(Path(__file__).parents[1] / "golden" / "quantus_localisation.npz")
    signed = torch.from_numpy(golden["signed"])
    np.testing.assert_allclose(gini(signed)[0], golden["sparseness_signed"], atol=1e-5, rtol=0)
    # Quantus gives nats, ours the share of the most that there can be.
    most = math.log(signed[0].numel())
    np.testing.assert_allclose(normalised_entropy(signed)[0], golden["complexity_signed"] / most, atol=1e-5, rtol=0)


def test_by_hand() -> None:
    maps = torch.tensor([[[1.0, -3.0]]])
    assert gini(maps).item() == pytest.approx((-1 * 1 + 1 * 3) / (2 * 4))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert normalised_entropy(maps).item() == pytest.approx(entropy)


def test_both_ends() -> None:
    one = torch.zeros(1, 4, 5)
    one[0, 2, 2] = -7
    assert gini(one).item() == pytest.approx(1 - 1 / 20) and normalised_entropy(one).item() == 0
    for even in (torch.zeros(1, 4, 5), torch.ones(1, 4, 5), -torch.ones(1, 4, 5)):
        assert gini(even).item() == pytest.approx(0, abs=1e-7) and normalised_entropy(even).item() == pytest.approx(1)


def test_what_has_no_score() -> None:
    maps = torch.rand(2, 3, 3)
    maps[0, 0, 0] = torch.nan
    for score in (gini, normalised_entropy):
        assert score(maps).isnan().tolist() == [[True, False]]
        assert score(torch.rand(2, 1, 1)).isnan().all()
        with pytest.raises(InputError, match=r"got \(3, 3\)"):
            score(maps[0])


def test_maps_are_stretched_with_their_signs() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 4)
    for score in (gini, normalised_entropy):
        at_image = score(maps, (40, 32))
        torch.testing.assert_close(at_image, score(placed(maps, (40, 32))))
        assert not torch.allclose(at_image, score(maps), atol=1e-3), "resolution matters"
        assert not torch.allclose(at_image, score(maps.abs(), (40, 32)), atol=1e-3), "signs cancel between cells"


@pytest.mark.parametrize("score", [gini, normalised_entropy])
@given(seed=st.integers(0, 10**6), exponent=st.integers(-30, 30), power=st.floats(0.1, 8))
def test_scores_stay_in_range_and_know_no_unit_and_no_sign(score, seed: int, exponent: int, power: float) -> None:
    maps = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed)).abs() ** power
    scores = score(maps)
    assert ((scores >= 0) & (scores <= 1)).all()
    torch.testing.assert_close(score(maps * -(10.0**exponent)), scores, atol=1e-5, rtol=0)


def test_a_sharper_map_is_more_compact() -> None:
    maps = torch.rand(4, 8, 8)
    assert (gini(maps**3) > gini(maps)).all() and (normalised_entropy(maps**3) < normalised_entropy(maps)).all()
