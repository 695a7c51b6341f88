"""The scale between chance and the best order: additive images, whose best order is known, and a search by hand."""

import itertools

import pytest
import torch
from torch import Tensor

from glasszoo import load_pretrained
from glasszoo.data import create_dataset
from glasszoo.evaluation import attainable as module
from glasszoo.evaluation import evaluate
from glasszoo.evaluation.attainable import CELLS, attainable
from glasszoo.evaluation.patches import patch_numbers, patch_sums
from glasszoo.evaluation.perturbation import perturbation_curves

SIZE = 20
NUMBERS = patch_numbers((SIZE, SIZE), CELLS)
CLASSES, INDICES = torch.zeros(3, dtype=torch.long), torch.tensor([4, 7, 1])


def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def additive(pictures: Tensor, classes: Tensor) -> Tensor:
    return pictures.sum((1, 2, 3))


@pytest.mark.parametrize("lowest", [True, False])
def test_the_best_order_of_an_additive_output_is_by_contribution(lowest: bool) -> None:
    black = torch.zeros_like(images())
    start, end = (images(), black) if lowest else (black, images())
    found = attainable(additive, start, end, CLASSES, INDICES, lowest=lowest, step=16)
    contributions = patch_sums(images().sum(1), NUMBERS, CELLS**2)[:, NUMBERS]
    best = perturbation_curves(additive, start, end, contributions, CLASSES, 16).auc
    torch.testing.assert_close(found.best, best[0])
    assert ((found.best < found.random) == lowest).all()
    torch.testing.assert_close(found.normalised(best), torch.ones(1, 3))
    worst = perturbation_curves(additive, start, end, -contributions, CLASSES, 16).auc
    assert (found.normalised(worst) < -0.5).all()


def test_the_search_is_greedy_where_patches_interact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step against every choice that is left, by hand."""
    monkeypatch.setattr(module, "CELLS", 2)
    numbers = patch_numbers((SIZE, SIZE), 2)
    values = torch.rand(3, 16, generator=torch.Generator().manual_seed(3))

    def interacting(pictures: Tensor, classes: Tensor) -> Tensor:
        """A table: which patches are left decides, whatever the order of the digits."""
        left = (patch_sums(pictures.sum(1), numbers, 4) > 0).long() @ torch.tensor([1, 2, 4, 8])
        return values[classes, left]

    whole, classes = torch.ones(3, 3, SIZE, SIZE), torch.tensor([0, 1, 2])
    step = SIZE * SIZE // 4
    found = attainable(interacting, whole, torch.zeros_like(whole), classes, INDICES, lowest=True, step=step)
    for number in range(3):
        gone: set[int] = set()
        outputs = [values[number, 15].item()]
        while len(gone) < 4:
            choices = {p: values[number, 15 - sum(2**q for q in (*gone, p))].item() for p in set(range(4)) - gone}
            taken = min(choices, key=lambda patch: choices[patch])
            gone.add(taken)
            outputs.append(choices[taken])
        assert found.best[number].item() == pytest.approx(sum((a + b) / 8 for a, b in itertools.pairwise(outputs)))


def test_chance_is_by_image_and_seed_and_batches_do_not_count() -> None:
    black = torch.zeros_like(images())
    whole = attainable(additive, images(), black, CLASSES, INDICES, lowest=True, step=16)
    alone = attainable(additive, images()[1:2], black[1:2], CLASSES[1:2], INDICES[1:2], lowest=True, step=16, chunk=7)
    assert alone.random[0].item() == pytest.approx(whole.random[1].item())
    assert alone.best[0].item() == pytest.approx(whole.best[1].item())
    other = attainable(additive, images(), black, CLASSES, INDICES, lowest=True, step=16, seed=1)
    assert not torch.equal(other.random, whole.random) and torch.equal(other.best, whole.best)


def test_nothing_to_gain_has_no_scale() -> None:
    found = attainable(
        lambda pictures, classes: torch.full((len(pictures),), 0.3), images(), images(), CLASSES, INDICES,
        lowest=True, step=16,
    )  # fmt: skip
    assert found.normalised(torch.full((2, 3), 0.3)).isnan().all()


def test_random_maps_are_near_chance_in_an_evaluation() -> None:
    model = load_pretrained("cam_test_byobnet.s64_critters")
    metrics = ["insertion_normalised", "deletion_normalised"]
    found = evaluate(
        model, create_dataset("critters", "test", count=16, size=64), methods=["built-in", "random"], metrics=metrics,
        progress=False,
    )  # fmt: skip
    built_in, random = found.methods
    for metric in metrics:
        assert random.scores[metric].nanmean().abs() < 0.35, metric
        assert built_in.scores[metric].nanmean() > random.scores[metric].nanmean() + 0.2, metric
