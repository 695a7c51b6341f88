"""ROAD: pytorch-grad-cam's imputation, systems solved by hand, exact shares, batch invariance."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import Tensor
from torch.nn import functional

from glasszoo.common.errors import InputError
from glasszoo.evaluation.maps import ranks
from glasszoo.evaluation.road import SHARES, imputed, road

INDICES = torch.tensor([4, 0, 17])
ZEROS = torch.zeros(3).long()


def smooth(*shape: int, seed: int = 0, size: int = 56) -> Tensor:
    drawn = torch.randn(*shape, 7, 7, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(drawn, size=(size, size), mode="bicubic")


def mean_of(images: Tensor, classes: Tensor) -> Tensor:
    return images.mean((1, 2, 3)).sigmoid()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scattered", [True, False])
def test_imputation_agrees_with_grad_cam(share: float, scattered: bool) -> None:
    images = smooth(2, 3)
    maps = (
        torch.rand(2, 56, 56, generator=torch.Generator().manual_seed(1)) if scattered else smooth(2, 1, seed=1)[:, 0]
    )
    is_removed = (ranks(maps) < round(share * 56**2)).unflatten(1, (56, 56))
    found = imputed(images, is_removed)
    for image, removed, own in zip(images, is_removed, found, strict=True):
        gap = (own - NoisyLinearImputer(noise=0)(image, (~removed).float())).abs()
        assert gap.max() < 2e-2 and gap.mean() < 2e-3
    assert torch.equal(found.where(~is_removed[:, None], 0), images.where(~is_removed[:, None], 0))


def test_one_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3) ** 2
    for place, expected in (
        ((1, 1), (2 * (1 + 9 + 25 + 49) + 0 + 4 + 36 + 64) / 12),
        ((0, 0), (2 * (1 + 9) + 16) / 5),  # what lies outside the image weighs nothing
    ):
        is_removed = torch.zeros(1, 3, 3, dtype=torch.bool)
        is_removed[0, place[0], place[1]] = True
        found = imputed(image, is_removed, tolerance=1e-7)
        assert found[0, 0, place[0], place[1]].item() == pytest.approx(expected, rel=1e-5)


def test_the_solution_solves_the_system() -> None:
    images, is_removed = smooth(2, 3).double(), torch.rand(2, 56, 56) < 0.7
    found = imputed(images, is_removed, tolerance=1e-10)
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]).double().expand(3, 1, 3, 3)
    mean = functional.conv2d(found, kernel, padding=1, groups=3) / functional.conv2d(
        torch.ones_like(found), kernel, padding=1, groups=3
    )
    gap = (mean - found).abs().where(is_removed[:, None], 0)
    assert gap.max() < 1e-7


def test_exactly_so_many_pixels_are_removed_whatever_the_map() -> None:
    """A map with 70 % zeros: pytorch-grad-cam's percentile is 0 there, and it removes the whole image."""
    sparse = smooth(3, 1, seed=2, size=40)[:, 0].relu()
    sparse = sparse.where(ranks(sparse).unflatten(1, (40, 40)) < 480, 0)
    assert (sparse == 0).float().mean() > 0.69
    theirs = sparse[0].numpy() >= np.percentile(sparse[0].numpy(), 10)
    assert theirs.all()
    images = 5 + torch.rand(3, 3, 40, 40)
    for maps in (sparse, torch.zeros_like(sparse), -sparse):
        seen = []

        def watch(filled: Tensor, classes: Tensor) -> Tensor:
            seen.append(filled)  # noqa: B023
            return filled.mean((1, 2, 3))

        road(watch, images, maps, ZEROS, INDICES, noise=100.0)
        changed = (torch.cat(seen).unflatten(0, (len(SHARES), 2, 3)) != images).all(3).flatten(-2).sum(-1)
        expected = torch.tensor([round(share * 1600) for share in SHARES])
        assert (changed == expected[:, None, None]).all()


def test_by_hand() -> None:
    """The output is the brightness; the map finds the bright half, and its surroundings are dark."""
    images = torch.zeros(1, 1, 10, 10)
    images[..., :5] = 1
    found = road(mean_of, images, images[:, 0], ZEROS[:1], INDICES[:1], shares=(0.5,), noise=0)
    assert found.most_relevant_first.item() == pytest.approx(0.5, abs=1e-6), "all is dark"
    assert found.least_relevant_first.item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=1e-5)
    assert found.combined.item() == pytest.approx((torch.tensor(1.0).sigmoid().item() - 0.5) / 2, abs=1e-5)


def test_a_better_map_scores_better() -> None:
    images = smooth(3, 1)
    good, bad = images[:, 0], -images[:, 0]
    found = road(mean_of, images, torch.stack([good, torch.rand(3, 56, 56), bad]), ZEROS, INDICES)
    assert (found.combined[0] > found.combined[1]).all() and (found.combined[1] > found.combined[2]).all()
    torch.testing.assert_close(found.combined[0], -found.combined[2], atol=1e-3, rtol=0)


def test_nothing_depends_on_batch_and_chunk() -> None:
    images, maps = smooth(3, 3).double(), torch.stack([smooth(3, 1, seed=3)[:, 0], torch.rand(3, 56, 56)])
    options = {"shares": (0.3, 0.8)}
    whole = road(mean_of, images, maps, ZEROS, INDICES, **options)
    for rows in (slice(0, 1), slice(1, 3)):
        part = road(mean_of, images[rows], maps[:, rows], ZEROS[rows], INDICES[rows], chunk=2, **options)
        for expected, found in zip(whole, part, strict=True):
            torch.testing.assert_close(found, expected[:, rows], atol=1e-6, rtol=0)
    other = road(mean_of, images, maps, ZEROS, INDICES, seed=1, **options)
    assert not torch.equal(other.combined, whole.combined)


def test_refusals() -> None:
    with pytest.raises(InputError, match="every pixel is removed"):
        imputed(smooth(1, 3), torch.ones(1, 56, 56, dtype=torch.bool))
    with pytest.raises(InputError, match="between 0 and 1"):
        road(mean_of, smooth(1, 3), smooth(1, 1)[:, 0], ZEROS[:1], INDICES[:1], shares=(0.5, 1))
