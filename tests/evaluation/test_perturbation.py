"""Deletion and insertion against RISE's own numbers, against cases solved by hand, and against themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from glasszoo.common.errors import InputError
from glasszoo.evaluation.perturbation import Curves, deletion, insertion, perturbation_curves, rise_blur

GOLDEN = "golden/rise.npz"
STEPS = (1792, 3584, 5000)


@pytest.fixture(scope="module")
def golden(shared: Callable[[str], Path]) -> dict[str, Tensor]:
    with np.load(shared(GOLDEN)) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def rise_model(golden: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def probabilities(images: Tensor) -> Tensor:
        features = functional.conv2d(images, golden["w1"], golden["b1"], stride=8).relu().mean((2, 3))
        return (features @ golden["w2"].T + golden["b2"]).softmax(-1)

    return probabilities


def watched(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, classes: model(images).gather(1, classes[:, None])[:, 0]


def test_the_reference_model_is_rebuilt(golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(rise_model(golden)(golden["images"]), golden["probabilities"], atol=1e-6, rtol=0)


def test_blur_is_that_of_rise(golden: dict[str, Tensor]) -> None:
    blurred = rise_blur(golden["images"])[..., 100:110, 100:110]
    torch.testing.assert_close(blurred, golden["blurred"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("name", "metric"), [("del", deletion), ("ins", insertion)])
def test_agrees_with_rise(golden: dict[str, Tensor], name: str, metric: Callable[..., Curves], step: int) -> None:
    classes = golden["probabilities"].argmax(1)
    curves = metric(watched(rise_model(golden)), golden["images"], golden["maps"], classes, step, chunk=7)
    torch.testing.assert_close(curves.scores[0].double(), golden[f"{name}_{step}_curve"], atol=1e-5, rtol=0)
    torch.testing.assert_close(curves.auc[0].double(), golden[f"{name}_{step}_auc"], atol=1e-5, rtol=0)


def sum_of_pixels(images: Tensor, classes: Tensor) -> Tensor:
    return images.sum((1, 2, 3))


def test_a_flat_map_changes_pixels_in_reading_order() -> None:
    image = torch.tensor([[[[8.0, 4.0], [2.0, 1.0]]]])
    curves = deletion(sum_of_pixels, image, torch.zeros(1, 2, 2), torch.tensor([0]), step=1)
    assert curves.scores[0, 0].tolist() == [15, 7, 3, 1, 0]
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curves.auc.item() == pytest.approx((15 / 2 + 7 + 3 + 1) / 4)


def test_the_last_partial_step_has_full_width() -> None:
    image = torch.ones(1, 1, 1, 5)
    curves = deletion(sum_of_pixels, image, torch.arange(5.0).view(1, 1, 5), torch.tensor([0]), step=3)
    assert curves.scores[0, 0].tolist() == [5, 2, 0]
    assert curves.auc.item() == pytest.approx((2.5 + 2) / 2)


def test_one_step_needs_no_image_between() -> None:
    curves = deletion(sum_of_pixels, torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([0]), step=4)
    assert curves.scores[0, 0].tolist() == [4, 0]


def test_insertion_is_deletion_of_the_reversed_map_read_backwards() -> None:
    torch.manual_seed(0)
    images, maps = torch.rand(3, 2, 6, 6), torch.rand(3, 6, 6)
    classes = torch.zeros(3, dtype=torch.int64)
    deleted = deletion(sum_of_pixels, images, -maps, classes, step=4)
    inserted = perturbation_curves(sum_of_pixels, torch.zeros_like(images), images, maps, classes, step=4)
    torch.testing.assert_close(inserted.scores, deleted.scores.flip(-1))


def test_neither_chunk_nor_batch_nor_company_matter() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 2, 3, 3)

    def scores(images: Tensor, classes: Tensor) -> Tensor:
        return functional.conv2d(images, weight).relu().mean((2, 3)).gather(1, classes[:, None])[:, 0]

    images, maps, classes = torch.rand(4, 2, 9, 7), torch.rand(3, 4, 5, 4), torch.tensor([0, 1, 4, 2])
    together = insertion(scores, images, maps, classes, step=5, chunk=64)
    chunked = insertion(scores, images, maps, classes, step=5, chunk=3)
    torch.testing.assert_close(together.scores, chunked.scores, atol=1e-6, rtol=0)
    for method in range(3):
        for image in range(4):
            alone = insertion(
                scores, images[image, None], maps[method, image, None], classes[image, None], step=5, chunk=1
            )
            torch.testing.assert_close(alone.scores[0, 0], together.scores[method, image], atol=1e-6, rtol=0)


def test_a_good_map_beats_a_random_one_beats_the_worst() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 1, 12, 12) * 0.1
    images[..., 3:6, 4:8] += 1
    good = (images[:, 0] > 0.5).float() + torch.rand(8, 12, 12) * 0.01
    maps = torch.stack([good, torch.rand(8, 12, 12), -good])
    classes = torch.zeros(8, dtype=torch.int64)
    best, random, worst = deletion(sum_of_pixels, images, maps, classes, step=6).auc
    assert bool((best < random).all()) and bool((random < worst).all())


def test_bad_input_is_named() -> None:
    images, classes = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"\(2, h, w\) or \(m, 2, h, w\) expected, got \(3, 4, 4\)"):
        deletion(sum_of_pixels, images, torch.rand(3, 4, 4), classes, step=1)
    with pytest.raises(InputError, match="at least one pixel"):
        deletion(sum_of_pixels, images, torch.rand(2, 4, 4), classes, step=0)


def test_agrees_with_quantus_pixel_flipping() -> None:
    """Three of its steps, channel by channel, are one of ours; its "black" is the image's lowest value."""
    with np.load(Path(__file__).parents[1] / "golden" / "quantus_flipping.npz") as file:
        found = {name: torch.from_numpy(file[name]) for name in file.files}
    images, classes = found["images"], found["classes"]

    def model(given: Tensor) -> Tensor:
        features = functional.conv2d(given, found["0.weight"], found["0.bias"], stride=2).relu().flatten(1)
        return (features @ found["3.weight"].T + found["3.bias"]).softmax(-1)

    black = images.amin((1, 2, 3), keepdim=True).expand_as(images)
    curves = perturbation_curves(watched(model), images, black, found["maps"], classes, int(found["step"]))
    torch.testing.assert_close(curves.scores[0, :, 1:].double(), found["curves"][:, 2::3], atol=1e-5, rtol=0)


def test_baselines_by_hand() -> None:
    """One pixel of four is deleted, then all; insertion walks the same way back."""
    image = torch.tensor([[[[8.0, 4.0], [2.0, 2.0]]]])
    given = sum_of_pixels, image, image[:, 0], torch.tensor([0]), 1
    for baseline, expected in (("mean_colour", [16, 8, 4, 2, 0]), ("image_mean", [16, 12, 12, 14, 16])):
        assert deletion(*given, baseline=baseline).scores.flatten().tolist() == expected
        back = insertion(sum_of_pixels, image, -image[:, 0], torch.tensor([0]), 1, baseline=baseline)
        assert back.scores[0, 0, [0, -1]].tolist() == [expected[-1], 16]
    blurred = deletion(*given, baseline="blur").scores.flatten()
    assert blurred[-1].item() == pytest.approx(rise_blur(image).sum().item())
    torch.testing.assert_close(insertion(*given).scores, insertion(*given, baseline="blur").scores)
