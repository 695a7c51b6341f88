"""SSIM, rank correlation and discrete entropy: scikit-image, SciPy, NumPy, Quantus, and cases solved by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import entropy, rankdata, spearmanr
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.evaluation.map_similarity import discrete_entropy, mean_ranks, rank_correlation, similarity, ssim

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "skimage_quantus.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_ssim_agrees_with_skimage() -> None:
    for other, expected in (("nearly", "ssim"), ("after", "ssim_after")):
        scores = ssim(golden("before"), golden(other))
        torch.testing.assert_close(scores, golden(expected), atol=1e-10, rtol=0)


def test_quantus_flattens_the_maps_for_its_ssim() -> None:
    """Quantus compares rows of pixels (a 1-D window of 7): the shape of the map plays no part. Ours sees both axes."""
    nearly, before = golden("nearly"), golden("before")
    assert (ssim(before, nearly) - golden("quantus_ssim")).abs().max() > 0.01
    swapped = [maps.transpose(1, 2) for maps in (before, nearly)]
    torch.testing.assert_close(ssim(*swapped), ssim(before, nearly))


@pytest.mark.parametrize("shape", [(7, 7), (1, 1), (3, 9), (2, 30)])
def test_ssim_of_maps_smaller_than_the_window(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, *shape))
    data_range = max(x.max(), y.max()) - min(x.min(), y.min())

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="reflect", truncate=3.5)

    mean_x, mean_y = smooth(x), smooth(y)
    spread = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * (smooth(x * y) - mean_x * mean_y) + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (spread + c2)
    assert ssim(torch.tensor(x)[None], torch.tensor(y)[None]).item() == pytest.approx(expected.mean(), abs=1e-10)


def test_ssim_of_constant_maps_by_hand() -> None:
    one, two, zero = (torch.full((1, 4, 4), value) for value in (1.0, 2.0, 0.0))
    assert ssim(one, one).item() == ssim(zero, zero).item() == 1
    # Data range 1, no variance: (2 · 1 · 2 + 0.0001) / (1 + 4 + 0.0001).
    assert ssim(one, two).item() == pytest.approx(4.0001 / 5.0001)


def test_ssim_ignores_the_unit_but_not_the_height() -> None:
    torch.manual_seed(0)
    maps, others = torch.randn(2, 3, 9, 9).double()
    torch.testing.assert_close(ssim(1e-20 * maps, 1e-20 * others), ssim(maps, others))
    assert (ssim(maps, maps) - ssim(maps, maps / 2)).min() > 0.1


def test_rank_correlation_agrees_with_scipy_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    for high in (3, 1000):
        first, second = torch.randint(-high, high, (2, 6, 5, 7), generator=generator).float()
        expected = [spearmanr(x.flatten(), y.flatten())[0] for x, y in zip(first, second, strict=True)]
        torch.testing.assert_close(rank_correlation(first, second), torch.tensor(expected).double())
        torch.testing.assert_close(mean_ranks(first.flatten(1)).numpy(), rankdata(first.flatten(1), axis=1))


def test_rank_correlation_knows_order_alone() -> None:
    maps = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rank_correlation(maps, 3 * maps.exp() - 8), torch.ones(3).double())
    torch.testing.assert_close(rank_correlation(maps, -maps), -torch.ones(3).double())
    assert rank_correlation(maps, torch.zeros(3, 6, 6)).isnan().all()


def test_last_correlation_agrees_with_quantus() -> None:
    scores = rank_correlation(golden("before"), golden("after"))
    torch.testing.assert_close(scores, golden("last_correlation"), atol=1e-6, rtol=0)


def test_entropy_agrees_with_quantus_and_numpy() -> None:
    torch.testing.assert_close(discrete_entropy(golden("before")), golden("entropy_before"), atol=1e-10, rtol=0)
    assert discrete_entropy(torch.ones(1, 5, 5)).item() == float(GOLDEN["entropy_constant"]) == 0
    maps = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    expected = [entropy(np.histogram(map_, bins=7)[0]) for map_ in maps]
    torch.testing.assert_close(discrete_entropy(maps, 7), torch.tensor(expected))


def test_entropy_by_hand() -> None:
    halves = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, -3.0]]])
    torch.testing.assert_close(discrete_entropy(halves, 2)[0], torch.tensor(2.0).double().log())
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert discrete_entropy(1e-20 * halves, 100)[1].item() == pytest.approx(expected)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_map_has_no_score_and_spoils_no_other(broken: float) -> None:
    first, second = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    damaged = first.clone()
    damaged[1, 2, 2] = broken
    for whole, scores in (
        (similarity(first, second), similarity(damaged, second)),
        (similarity(second, first), similarity(second, damaged)),
        ((discrete_entropy(first),), (discrete_entropy(damaged),)),
    ):
        for expected, found in zip(whole, scores, strict=True):
            assert found.isnan().tolist() == [False, True, False]
            assert torch.equal(found[::2], expected[::2])


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"one shape \(b, h, w\) expected, got \(1, 2, 3\) and \(1, 3, 2\)"):
        similarity(torch.rand(1, 2, 3), torch.rand(1, 3, 2))
    with pytest.raises(InputError, match="two bins, got 1"):
        discrete_entropy(torch.rand(1, 2, 3), 1)
    with pytest.raises(InputError, match=r"\(b, h, w\) expected, got \(2, 3\)"):
        discrete_entropy(torch.rand(2, 3))
