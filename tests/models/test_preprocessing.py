"""The preprocessing is timm's, pixel for pixel, and moves masks and boxes along."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import tv_tensors

from glasszoo.common.errors import InputError
from glasszoo.models import Preprocessing


def picture(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("stored", [(100, 70), (70, 100), (301, 299)])
def test_agrees_with_timm(crop_mode: str, crop_pct: float, size: tuple[int, int], stored: tuple[int, int]) -> None:
    preprocessing = Preprocessing((3, *size), interpolation="bilinear", crop_pct=crop_pct, crop_mode=crop_mode)
    reference = timm.data.create_transform(
        (3, *size),
        interpolation="bilinear",
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    ours, theirs = preprocessing.transform()(picture(*stored)), reference(picture(*stored))
    torch.testing.assert_close(torch.as_tensor(ours), theirs, atol=1e-6, rtol=0)


def test_masks_and_boxes_move_along() -> None:
    mask = torch.zeros(100, 200, dtype=torch.uint8)
    mask[40:60, 80:120] = 255
    sample = {
        "image": Image.fromarray(mask.numpy()).convert("RGB"),
        "label": 3,
        "id": "x",
        "mask": tv_tensors.Mask(mask),
        "boxes": tv_tensors.BoundingBoxes([[80, 40, 120, 60]], format="XYXY", canvas_size=(100, 200)),
    }
    done = Preprocessing((3, 50, 50), mean=(0,) * 3, std=(1,) * 3, crop_pct=1.0).transform()(sample)
    assert done["label"] == 3 and done["id"] == "x"
    assert done["boxes"].tolist() == [[15, 20, 35, 30]]
    expected = torch.zeros(50, 50, dtype=torch.bool)
    expected[20:30, 15:35] = True
    assert torch.equal(torch.as_tensor(done["mask"]) == 255, expected)
    assert (done["image"][0] > 0.5).equal(expected)


def test_grey_images_for_one_channel() -> None:
    done = Preprocessing((1, 32, 32), mean=(0.5,), std=(0.5,)).transform()(picture(40, 40))
    assert done.shape == (1, 32, 32)
    done = Preprocessing((3, 32, 32)).transform()(picture(40, 40).convert("L"))
    assert done.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (3, 0, 4)}, "three positive numbers"),
        ({"mean": (0.5,)}, "mean and std must have 3 values"),
        ({"crop_mode": "border"}, "unknown crop_mode 'border'"),
        ({"crop_pct": 0.0}, r"crop_pct must lie in \(0, 1\]"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic': did you mean 'bicubic'"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing(**arguments)  # type: ignore[arg-type]
