"""Max-sensitivity and stability under disturbances: captum with shared noise, cases by hand, batch invariance."""

import pytest
import torch
from captum.metrics import sensitivity_max
from torch import Tensor

from glasszoo import create_model
from glasszoo.common.errors import InputError
from glasszoo.evaluation import map_method
from glasszoo.evaluation.disturbances import Disturbance, disturbances, gaussian_noise, shift
from glasszoo.evaluation.stability import Sensitivity, map_stability, max_sensitivity
from glasszoo.models import ImageClassifier, Preprocessing

INDICES = torch.tensor([4, 0, 17, 9, 2])


def model() -> ImageClassifier:
    torch.manual_seed(0)
    return create_model("test_resnet", head="cam", num_classes=5).eval()


def images(count: int = 5, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def first_channel(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
    return images[:, 0]


@pytest.mark.parametrize("method", ["built-in", "grad-cam"])
def test_agrees_with_captum_under_shared_noise(method: str) -> None:
    classifier, given, classes, draws, radius = model(), images(), torch.tensor([0, 1, 2, 3, 4]), 6, 0.02
    explain = map_method(method, classifier).explain
    drawn = (2 * torch.rand(draws, *given.shape, generator=torch.Generator().manual_seed(2)) - 1) * radius

    def noise(images: Tensor, indices: Tensor, draws: Tensor) -> Tensor:
        rows = [INDICES.tolist().index(index) for index in indices.tolist()]
        return drawn[draws, rows]

    ours = max_sensitivity(explain, given, classes, INDICES, draws=draws, noise=noise, chunk=7)

    def explain_for_captum(inputs: Tensor | tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        batch = inputs[0] if isinstance(inputs, tuple) else inputs
        return (explain(batch, target, torch.zeros(len(batch)).long()),)

    def perturb(inputs: Tensor) -> Tensor:
        return inputs + drawn.transpose(0, 1).flatten(0, 1)  # all draws of the first image first

    theirs = sensitivity_max(explain_for_captum, given, perturb_func=perturb, n_perturb_samples=draws, target=classes)
    torch.testing.assert_close(ours.largest.float(), theirs, rtol=1e-4, atol=0)
    assert (ours.largest > 1e-4).all() and (ours.mean < ours.largest).all()


def test_sensitivity_by_hand() -> None:
    """The map is the image: the change is the noise, relative to the image."""
    given = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2).expand(2, 1, 1, 2)

    def noise(images: Tensor, indices: Tensor, draws: Tensor) -> Tensor:
        return (draws + 1.0)[:, None, None, None] * torch.tensor([[[1.0, 0.0]]])

    scores = max_sensitivity(first_channel, given, torch.zeros(2).long(), INDICES[:2], draws=3, noise=noise, chunk=4)
    torch.testing.assert_close(scores.largest, torch.tensor([0.6, 0.6]).double())
    torch.testing.assert_close(scores.mean, torch.tensor([0.4, 0.4]).double())


def test_noise_fills_the_radius_and_depends_on_the_draw() -> None:
    given, seen = torch.zeros(1, 3, 50, 50), []

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        seen.append(images)
        return images[:, 0] + 1

    max_sensitivity(explain, given, torch.zeros(1).long(), INDICES[:1], radius=0.3, draws=4)
    noisy = torch.cat(seen[1:])
    assert noisy.shape[0] == 4 and noisy.unique(dim=0).shape[0] == 4
    assert noisy.min() == pytest.approx(-0.3, abs=1e-3) and noisy.max() == pytest.approx(0.3, abs=1e-3)
    assert noisy.std() == pytest.approx(0.6 / 12**0.5, rel=0.02)


def test_a_zero_map_has_no_relative_change_where_captum_divides_by_one() -> None:
    given, classes = torch.zeros(2, 1, 4, 4), torch.zeros(2).long()
    given[1] = 1
    scores = max_sensitivity(first_channel, given, classes, INDICES[:2])
    assert scores.largest.isnan().tolist() == scores.mean.isnan().tolist() == [True, False]
    theirs = sensitivity_max(lambda inputs: (inputs[0][:, 0],), given)
    assert theirs.isfinite().all()


def test_a_broken_map_has_no_score() -> None:
    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        return images[:, 0].masked_fill((indices == 0)[:, None, None], torch.inf)

    scores = max_sensitivity(explain, images(), torch.zeros(5).long(), INDICES)
    assert scores.largest.isnan().tolist() == scores.mean.isnan().tolist() == [False, True, False, False, False]


def test_a_map_that_ignores_the_image_is_perfectly_stable() -> None:
    classifier, given, classes = model(), images(), torch.zeros(5).long()
    explain = map_method("random", classifier).explain
    assert max_sensitivity(explain, given, classes, INDICES).largest.tolist() == [0] * 5
    for scores in map_stability(explain, given, classes, INDICES, disturbances(Preprocessing())).values():
        torch.testing.assert_close(scores.ssim, torch.ones(5).double())
        torch.testing.assert_close(scores.rank_correlation, torch.ones(5).double())


def test_a_map_of_pixels_that_moves_along_is_stable_under_shift() -> None:
    given, classes = images(), torch.zeros(5).long()
    moved_back = map_stability(first_channel, given, classes, INDICES, [shift()])["shift"]
    left_there = Disturbance("shift", shift().apply)
    compared_as_is = map_stability(first_channel, given, classes, INDICES, [left_there])["shift"]
    assert (moved_back.rank_correlation > 0.9).all() and (compared_as_is.rank_correlation.abs() < 0.1).all()
    assert (moved_back.ssim > 0.9).all() and (compared_as_is.ssim < 0.3).all()


def test_more_noise_is_less_alike() -> None:
    classifier, given, classes = model(), images(), torch.zeros(5).long()
    explain = map_method("built-in", classifier).explain
    means = []
    for std in (0.0, 0.1, 3.0):
        noise = gaussian_noise(Preprocessing(), std)
        scores = map_stability(explain, given, classes, INDICES, [noise])["noise"]
        means.append([values.mean().item() for values in scores])
    assert means[0] == pytest.approx([1, 1], abs=1e-6)
    for least, more, most in zip(*means, strict=True):
        assert least > more > most


def test_nothing_depends_on_batch_and_chunk() -> None:
    # In fp64: convolutions of batches of other sizes round differently, up to 2e-6 of SSIM in fp32.
    classifier, given, classes = model().double(), images().double(), torch.tensor([0, 1, 2, 3, 4])
    explain = map_method("built-in", classifier).explain
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    three = disturbances(Preprocessing())
    whole = max_sensitivity(explain, given, classes, INDICES)
    stable = map_stability(explain, given, classes, INDICES, three)
    for rows in (slice(0, 1), slice(1, 5)):
        part = given[rows], classes[rows], INDICES[rows]
        for expected, found in zip(whole, max_sensitivity(explain, *part, chunk=3), strict=True):
            torch.testing.assert_close(found, expected[rows], atol=1e-6, rtol=0)
        for name, scores in map_stability(explain, *part, three, chunk=3).items():
            for expected, found in zip(stable[name], scores, strict=True):
                torch.testing.assert_close(found, expected[rows], atol=1e-6, rtol=0)
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert not torch.equal(max_sensitivity(explain, given, classes, INDICES, seed=1).largest, whole.largest)


def test_the_class_is_held_fixed() -> None:
    seen = []

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        seen.extend(zip(indices.tolist(), classes.tolist(), strict=True))
        return images[:, 0]

    classes = torch.tensor([0, 1, 2, 3, 4])
    scores = max_sensitivity(explain, images(), classes, INDICES, draws=3, chunk=4)
    map_stability(explain, images(), classes, INDICES, disturbances(Preprocessing()), chunk=4)
    assert isinstance(scores, Sensitivity) and len(seen) == 5 * (4 + 4)
    assert set(seen) == set(zip(INDICES.tolist(), classes.tolist(), strict=True))


def test_bad_input_is_named() -> None:
    given = images(), torch.zeros(5).long(), INDICES
    with pytest.raises(InputError, match="at least one draw and a radius of at least 0 expected, got 0 and 0.02"):
        max_sensitivity(first_channel, *given, draws=0)
    with pytest.raises(InputError, match="at least one image, got 0"):
        map_stability(first_channel, *given, [shift()], chunk=0)
