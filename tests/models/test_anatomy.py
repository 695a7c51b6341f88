"""Where a cell looks, followed on the meta device, against gradients of the real network."""

import pytest
import timm
import torch
from torch import Tensor, nn

from glasszoo.models.anatomy import Grid, examine
from glasszoo.models.backbone import Backbone, create_network


def network(name: str, **options: object) -> tuple[Backbone, Grid]:
    """A network through which every path carries signal."""
    torch.manual_seed(0)
    made = create_network(name, **options)  # type: ignore[arg-type]
    assert made.anatomy.grid is not None
    for module in made.module.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts the last one of a residual branch at zero
            nn.init.constant_(module.bias, 0.5)
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, 0.0, 1.0 / module.weight[0].numel())  # nothing cancels, no ReLU is dead
    return Backbone(made.module, made.anatomy).eval(), made.anatomy.grid


def looked_at(backbone: Backbone, cell: int, side: int) -> Tensor:
    """How much each row of an image moves the feature at (cell, cell), `side`."""
    # Several images: max pooling hands its gradient to one pixel of each window.
    images = torch.rand(4, 3, side, side, requires_grad=True)
    features = backbone(images)[:, :, cell, cell].sum()
    (gradient,) = torch.autograd.grad(features, images)
    return gradient.abs().sum((0, 1, 3))


@pytest.mark.parametrize(
    ("name", "options", "cell", "side"),
    [
        ("test_resnet", {}, 4, 288),
        ("test_resnet", {"output_stride": 8}, 14, 224),
        ("resnet18", {}, 7, 480),
        ("vgg11", {}, 3, 224),
        ("mobilenetv2_035", {}, 8, 544),
        ("mobilenetv2_035", {"pad_type": "same"}, 8, 544),
        ("densenet121", {"block_config": (2, 2, 2, 2)}, 4, 288),
    ],
)
def test_a_cell_looks_where_its_gradient_is(name: str, options: dict[str, object], cell: int, side: int) -> None:
    backbone, grid = network(name, **options)
    weight = looked_at(backbone, cell, side)
    rows = weight.nonzero()[:, 0]
    assert rows.min() > 0 and rows.max() < side - 1, "the image must hold the whole field"
    assert int(rows.max() - rows.min()) + 1 == grid.receptive_field[0]
    centre = ((torch.arange(side) + 0.5) * weight).sum() / weight.sum()
    assert abs(centre.item() - (grid.centre[0] + cell * grid.stride)) < 0.3 * grid.stride, (
        "a map stretched over resnet18 would be off by 0.5"
    )


@pytest.mark.parametrize(
    ("name", "centre", "receptive_field"),
    [
        ("resnet50", 0.5, 427),  # the image's corner: half a cell beside where a stretched map shows it
        ("vgg16", 16.0, 212),
        ("efficientnet_b0", 0.5, 851),
        ("convnext_tiny", 16.0, 1688),
        ("inception_v3", None, 1311),
        ("mambaout_femto", 0.5, None),
        ("hrnet_w18_small", None, None),
    ],
)
def test_known_fields(name: str, centre: float | None, receptive_field: int | None) -> None:
    grid = examine(name).grid
    assert grid is not None and grid.stride == 32
    assert centre is None or grid.centre == (centre, centre)
    assert receptive_field is None or grid.receptive_field == (receptive_field, receptive_field)


def test_space_moved_into_channels_is_followed() -> None:
    """tresnet begins by folding 4 × 4 pixels into channels."""
    grid = examine("tresnet_m").grid
    assert grid is not None and grid.stride == 32


def test_only_what_features_need_is_kept() -> None:
    assert examine("mobilenetv3_small_050").unused == ("conv_head",)
    assert examine("resnet18").unused == ()
    assert all(name in dict(timm.create_model("vgg11").named_modules()) for name in examine("vgg11").unused)
