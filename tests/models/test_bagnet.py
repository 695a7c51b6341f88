"""BagNets see patches and nothing else: by the tracer, by gradients, and by cutting the patches out."""

import pytest
import timm
import torch
from torch import Tensor, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import BagNet, list_backbones
from glasszoo.models.anatomy import examine

SIZES = [9, 17, 33]
SMALL = {"layers": [2, 2, 2, 2], "channels": [8, 12, 16, 24]}


def network(size: int, **options: object) -> BagNet:
    """One through which every path carries signal."""
    torch.manual_seed(0)
    made = timm.create_model(f"bagnet{size}", num_classes=3, **options).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts the last one of a residual branch at zero
            nn.init.constant_(module.bias, 0.2)
    return made


@pytest.mark.parametrize("size", SIZES)
def test_the_receptive_field_is_the_patch(size: int) -> None:
    (stage,) = examine(f"bagnet{size}").stages
    assert stage.num_features == 2048 and stage.reduction == 8
    assert stage.grid == (8.0, (size / 2, size / 2), (size, size), False, (size / 2, size / 2))


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_of_a_cell_covers_its_patch_and_no_other_pixel(size: int) -> None:
    images = torch.randn(1, 3, 57, 65, requires_grad=True)
    features = network(size).forward_features(images)  # all 50 layers
    (gradient,) = torch.autograd.grad(features[0, :, 1, 2].sum(), images)
    support = gradient[0].abs().sum(0) > 0
    expected = torch.zeros(57, 65, dtype=torch.bool)
    expected[8 : 8 + size, 16 : 16 + size] = True
    assert torch.equal(support, expected)


@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_a_bag_of_patches(size: int) -> None:
    """Logits of the image: the mean of those of its patches, each an image of its own. Evidence: what each gave."""
    options = {"num_classes": 3, "head_kwargs": {"stage": -1}, "backbone_kwargs": SMALL}
    model = glasszoo.create_model(f"bagnet{size}", head="local_cam", **options).eval()  # type: ignore[arg-type]
    model.backbone.network = network(size, **SMALL)
    images = torch.randn(1, 3, 50, 43)
    with torch.no_grad():
        explained = model(images, "all")
        rows, columns = explained.maps.shape[-2:]
        starts = [(8 * row, 8 * column) for row in range(rows) for column in range(columns)]
        patches = torch.cat([images[:, :, y : y + size, x : x + size] for y, x in starts])
        of_patches = model(patches, "all")
    assert of_patches.maps.shape[-2:] == (1, 1)
    assert len(patches) == ((50 - size) // 8 + 1) * ((43 - size) // 8 + 1)
    close(explained.logits[0], of_patches.logits.mean(0))
    close(explained.maps[0].flatten(1), of_patches.maps[:, :, 0, 0].T / len(patches))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_shortcut_takes_the_centre_of_the_patch(size: int) -> None:
    """With the residual branches silent, a cell is a function of one 3 × 3 neighbourhood, the stem's."""
    made = network(size, **SMALL)
    for stage in (made.layer1, made.layer2, made.layer3, made.layer4):
        for block in stage:
            nn.init.zeros_(block.bn3.weight)
            nn.init.zeros_(block.bn3.bias)
    images = torch.randn(1, 3, size, size, requires_grad=True)
    (gradient,) = torch.autograd.grad(made.forward_features(images).sum(), images)
    seen = (gradient[0].abs().sum(0) > 0).nonzero()
    assert seen.min(0).values.tolist() == [size // 2 - 1] * 2 and seen.max(0).values.tolist() == [size // 2 + 1] * 2


def test_any_head_takes_it() -> None:
    assert set(list_backbones("bagnet*")) == {"bagnet9", "bagnet17", "bagnet33"}
    model = glasszoo.create_model("bagnet33", head="cam", in_chans=1, num_classes=5, backbone_kwargs=SMALL).eval()
    assert model.grid is not None and model.grid.receptive_field == (33, 33)
    explained = model(torch.randn(2, 1, 64, 41))
    assert explained.maps.shape == (2, 1, 4, 2)
    gap = explained.maps.sum((-2, -1)) + explained.offset - explained.logits.gather(1, explained.classes)
    assert gap.abs().max() <= 1e-4 * explained.logits.abs().max()
    assert {info["module"]: info["reduction"] for info in model.backbone.network.feature_info} == {
        "act1": 1,
        "layer1": 2,
        "layer2": 4,
        "layer3": 8,
        "layer4": 8,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 16}, "timm cannot build bagnet9 with output_stride=16"),
        ({"pretrained": True}, "timm has no pretrained weights for 'bagnet9'"),
    ],
)
def test_what_it_is_not(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        glasszoo.create_model("bagnet9", **options)  # type: ignore[arg-type]
