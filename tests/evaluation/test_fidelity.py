"""Single deletion, μFidelity and infidelity: linear models, whose answers are known, captum, and one price for all."""

import math
from collections.abc import Callable

import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from torch import Tensor

from glasszoo.data.augmentation import grid_cell
from glasszoo.evaluation.fidelity import fidelity, infidelity, random_subsets
from glasszoo.evaluation.patches import patch_numbers, patch_sums, without_patches
from glasszoo.evaluation.single_deletion import single_deletion

INDICES = torch.tensor([4, 0, 17, 9])
CLASSES = torch.tensor([0, 1, 0, 1])


def images(size: int = 36) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def linear(size: int = 36) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Logits of two classes that are linear in the pixels, and the images' contributions `b h w`."""
    weight = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))

    def logits(given: Tensor, classes: Tensor) -> Tensor:
        return (given * weight[classes]).sum((1, 2, 3)) + 3

    return logits, (images(size) * weight[CLASSES]).sum(1)


class Counted:
    def __init__(self, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.logits, self.images = logits, 0

    def __call__(self, given: Tensor, classes: Tensor) -> Tensor:
        self.images += len(given)
        return self.logits(given, classes)


def test_contributions_to_a_linear_model_are_perfect() -> None:
    logits, exact = linear()
    maps = torch.stack([exact, 7 * exact, -exact])
    expected = torch.tensor([1.0, 1.0, -1.0]).double()[:, None].expand(3, 4)
    torch.testing.assert_close(single_deletion(logits, images(), maps, CLASSES), expected, atol=1e-6, rtol=0)
    found = fidelity(logits, images(), maps, CLASSES, INDICES)
    torch.testing.assert_close(found.mu_fidelity, expected, atol=1e-6, rtol=0)
    assert found.infidelity.max() < 1e-6, "blind to scale and sign"


def test_another_map_is_not() -> None:
    logits, _ = linear()
    noise = torch.randn(50, 4, 36, 36, generator=torch.Generator().manual_seed(3))
    for scores in (
        single_deletion(logits, images(), noise, CLASSES),
        fidelity(logits, images(), noise, CLASSES, INDICES).mu_fidelity,
    ):
        assert scores.mean().abs() < 0.1 and scores.max() < 0.95
    assert fidelity(logits, images(), noise, CLASSES, INDICES).infidelity.mean() > 0.5


def test_maps_that_say_nothing_have_no_score() -> None:
    logits, exact = linear()
    flat = torch.stack(
        [torch.zeros_like(exact), exact.masked_fill(torch.tensor([1, 0, 0, 0]).bool()[:, None, None], math.nan)]
    )
    single = single_deletion(logits, images(), flat, CLASSES)
    random = fidelity(logits, images(), flat, CLASSES, INDICES)
    for scores in (single, *random):
        assert scores[0].isnan().all() and scores[1].isnan().tolist() == [True, False, False, False]
    deaf = single_deletion(lambda given, classes: torch.ones(len(given)), images(), exact, CLASSES)
    assert deaf.isnan().all(), "nothing matters to the model"


def test_ties_share_their_rank() -> None:
    """Deletion lowers the logit in the first patch alone; the map has it first, and the other fifteen tied."""

    def logits(given: Tensor, classes: Tensor) -> Tensor:
        return given[:, :, :9, :9].sum((1, 2, 3))

    maps = torch.zeros(4, 4, 4)
    maps[:, 0, 0] = 1
    scores = single_deletion(
        logits, torch.ones(4, 3, 36, 36), maps.repeat_interleave(9, 1).repeat_interleave(9, 2), CLASSES
    )
    torch.testing.assert_close(scores, torch.ones(1, 4).double())


def test_all_methods_cost_as_much_as_one() -> None:
    logits, exact = linear()
    for metric, price in ((single_deletion, 17), (lambda *given: fidelity(*given, INDICES, samples=30), 31)):
        for methods in (1, 5):
            counted = Counted(logits)
            metric(counted, images(), torch.stack([exact] * methods), CLASSES)
            assert counted.images == 4 * price


def test_infidelity_agrees_with_captum() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    given, samples = images(18), 40
    model(given)
    maps = torch.randn(4, 18, 18, generator=torch.Generator().manual_seed(3))
    numbers = patch_numbers((18, 18), 9)
    subsets = random_subsets(INDICES, 81, 16, samples, 0)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:  # all samples of the first image first
        chosen = subsets.flatten(0, 1)
        return chosen[:, numbers][:, None].expand_as(inputs).float(), without_patches(inputs, chosen, numbers)

    spread = maps[:, None].expand_as(given) / 3
    theirs = captum_infidelity(
        model, perturb, given, spread, target=CLASSES, n_perturb_samples=samples, normalize=True,
        max_examples_per_batch=4 * samples,
    )  # fmt: skip

    def logits(some: Tensor, classes: Tensor) -> Tensor:
        return model(some).gather(1, classes[:, None])[:, 0]

    with torch.no_grad():
        left = logits(without_patches(given.repeat_interleave(samples, 0), subsets.flatten(0, 1), numbers),
                      CLASSES.repeat_interleave(samples)).unflatten(0, (4, samples))  # fmt: skip
        drops = (logits(given, CLASSES)[:, None] - left).double()
    sums = torch.einsum("b p, b n p -> b n", patch_sums(maps, numbers, 81), subsets.double())
    torch.testing.assert_close(infidelity(sums, drops).float(), theirs, rtol=1e-4, atol=0)
    ours = fidelity(logits, given, maps, CLASSES, INDICES, samples=samples).infidelity[0]
    torch.testing.assert_close(ours.float(), theirs / drops.square().mean(1).float(), rtol=1e-4, atol=0)


def test_nothing_depends_on_batch_and_chunk() -> None:
    logits, exact = linear()
    maps = torch.stack([exact, torch.rand(4, 36, 36)])
    whole = (single_deletion(logits, images(), maps, CLASSES), *fidelity(logits, images(), maps, CLASSES, INDICES))
    for rows in (slice(0, 1), slice(1, 4)):
        own = images()[rows], maps[:, rows], CLASSES[rows]
        part = (single_deletion(logits, *own, chunk=5), *fidelity(logits, *own, INDICES[rows], chunk=7))
        for expected, found in zip(whole, part, strict=True):
            torch.testing.assert_close(found, expected[:, rows], atol=1e-6, rtol=0)
    other = fidelity(logits, images(), maps, CLASSES, INDICES, seed=1)
    assert not torch.equal(other.mu_fidelity[1], whole[1][1])


@pytest.mark.parametrize("size", [(10, 9), (8, 8), (4, 31)])
def test_patches_are_those_that_training_deletes(size: tuple[int, int]) -> None:
    numbers = patch_numbers(size, 4)
    assert patch_sums(torch.ones(size), numbers, 16).sum() == size[0] * size[1]
    for number in range(16):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[grid_cell(size, number)] = True
        assert torch.equal(numbers == number, expected)
        deleted = without_patches(torch.ones(1, 3, *size), torch.arange(16)[None] == number, numbers)
        assert torch.equal(deleted[0, 1] == 0, expected)


def test_subsets_have_their_size_and_differ() -> None:
    subsets = random_subsets(INDICES, 81, 16, 200, 0)
    assert (subsets.sum(-1) == 16).all() and len(subsets.flatten(0, 1).unique(dim=0)) == 800
    assert subsets.float().mean((0, 1)).sub(16 / 81).abs().max() == pytest.approx(0, abs=0.06)
