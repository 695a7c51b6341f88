"""Noise, JPEG and shift: what they change, by how much, and that nothing depends on the batch."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functional

from glasszoo.common.errors import InputError
from glasszoo.evaluation.disturbances import Disturbance, disturbances, gaussian_noise, jpeg, shift
from glasszoo.models import Preprocessing

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.1))
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
INDICES = torch.tensor([3, 8, 11])


def images(size: int = 32) -> Tensor:
    """Normalised smooth images whose pixels are whole numbers of 255."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return ((pixels * 255).round() / 255 - MEAN) / STD


@pytest.mark.parametrize("disturbance", disturbances(PREPROCESSING), ids=lambda each: each.name)
def test_a_disturbance_is_the_image_s_own(disturbance: Disturbance) -> None:
    given = images()
    together = disturbance.apply(given, INDICES)
    assert together.shape == given.shape and together.dtype == given.dtype
    for row in range(3):
        alone = disturbance.apply(given[row, None], INDICES[row, None])
        assert torch.equal(alone[0], together[row])
        assert not torch.equal(together[row], given[row])


def test_noise_is_measured_in_pixels() -> None:
    given = torch.zeros(3, 3, 128, 128)
    noise = gaussian_noise(PREPROCESSING).apply(given, INDICES) * STD
    # 0.2 of ImageNet's (0.229 + 0.224 + 0.225) / 3, the same in each channel whatever the model's own deviations.
    torch.testing.assert_close(noise.std((0, 2, 3)), torch.full((3,), 0.2 * 0.226), rtol=0.02, atol=0)
    assert noise.mean().abs() < 1e-3
    assert not torch.equal(gaussian_noise(PREPROCESSING, seed=1).apply(given, INDICES) * STD, noise)


@pytest.mark.filterwarnings("ignore:The image decoding")
def test_jpeg_agrees_with_torchvision() -> None:
    given = images()
    pixels = ((given * STD + MEAN) * 255).round().byte()
    for quality in (10, 50, 90):
        stored = (jpeg(PREPROCESSING, quality).apply(given, INDICES) * STD + MEAN) * 255
        # Each brings its own libjpeg; they may round differently.
        torch.testing.assert_close(stored, image_functional.jpeg(pixels, quality).float(), atol=2, rtol=0)


def test_jpeg_of_worse_quality_changes_more() -> None:
    given = images()
    changes = [(jpeg(PREPROCESSING, quality).apply(given, INDICES) - given).abs().mean() for quality in (95, 50, 5)]
    assert changes[0] < changes[1] < changes[2]


def test_a_shift_moves_down_and_right_and_repeats_the_border() -> None:
    given = torch.arange(9.0).reshape(1, 1, 3, 3)
    moved = shift().apply(given, INDICES[:1])
    assert moved[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [3, 3, 4]]


def test_maps_are_moved_back_by_whole_cells() -> None:
    maps = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = shift(2).apply(maps[:, None], INDICES)[:, 0]
    assert torch.equal(shift(2).undo(moved, (32, 32))[:, :-2, :-2], maps[:, :-2, :-2])
    assert torch.equal(shift(2).undo(maps, (64, 64))[:, :-1, :-1], maps[:, 1:, 1:])
    assert torch.equal(shift(2).undo(maps, (512, 512)), maps), "a sixteenth of a cell is none"
    assert torch.equal(gaussian_noise(PREPROCESSING).undo(maps, (32, 32)), maps)


def test_other_channels_than_jpeg_holds() -> None:
    five = Preprocessing(input_size=(5, 8, 8), mean=(0.5,) * 5, std=(0.5,) * 5)
    assert [each.name for each in disturbances(five)] == ["noise", "shift"]
    with pytest.raises(InputError, match="1 or 3 channels, not 5"):
        jpeg(five)
    grey = Preprocessing(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    assert jpeg(grey).apply(torch.zeros(2, 1, 8, 8), INDICES[:2]).shape == (2, 1, 8, 8)


def test_bad_input_is_named() -> None:
    for make, sentence in (
        (lambda: gaussian_noise(PREPROCESSING, -1), "at least 0, got -1"),
        (lambda: jpeg(PREPROCESSING, 0), "1..100, got 0"),
        (lambda: shift(0), "at least one pixel, got 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            make()
