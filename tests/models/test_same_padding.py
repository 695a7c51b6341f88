"""The followable form of TensorFlow's padding gives timm's windows."""

import pytest
import torch
from timm import layers
from timm.layers.padding import pad_same as timms
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import nn
from torch.nn import functional

from glasszoo.models.same_padding import followable_padding, pad_same


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (4, 5), (7, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_windows_are_timms(kernel: tuple[int, int], stride: int, dilation: int) -> None:
    weight = torch.randn(2, 2, *kernel)
    how = {"stride": stride, "dilation": dilation}
    for size in range(1, 13):
        images = torch.randn(1, 2, size, size + 3)
        padded = [pad(images, kernel, (stride, stride), (dilation, dilation)) for pad in (timms, pad_same)]
        expected, found = (functional.conv2d(one, weight, **how) for one in padded)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


def test_what_is_padded_with() -> None:
    padded = pad_same(torch.zeros(1, 1, 5, 5), (3, 3), (2, 2), value=-torch.inf)
    assert padded.shape == (1, 1, 7, 7) and padded[0, 0, 0, 0] == -torch.inf
    assert functional.max_pool2d(padded, 3, 2).eq(0).all()


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2dSame(2, 4, 3, stride=2),
        layers.StdConv2dSame(2, 4, 3, stride=2),
        layers.ScaledStdConv2dSame(2, 4, 3, stride=2, padding="same"),
        MaxPool2dSame(3, stride=2),
        AvgPool2dSame(3, stride=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_timms_layers_use_it_while_it_lasts(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, calls, narrow = torch.randn(1, 2, 7, 8), [], torch.narrow
    expected = layer(images)
    monkeypatch.setattr(torch, "narrow", lambda *arguments: calls.append(1) or narrow(*arguments))
    with followable_padding():
        found = layer(images)
    assert len(calls) == 2
    torch.testing.assert_close(found, expected)
    layer(images)
    assert len(calls) == 2
