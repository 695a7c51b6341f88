"""BagNets: ResNet-50s whose features see patches of 9, 17 or 33 pixels, as architectures of timm.

Brendel & Bethge, "Approximating CNNs with Bag-of-local-Features models works surprisingly well on ImageNet", ICLR 2019.
A stage holds one 3 × 3 convolution, in its first block, or none; all others are 1 × 1. Strides are 2, 2, 2, 1, the stem
is a 1 × 1 and a 3 × 3 convolution, and nothing is padded, so that every cell sees a whole patch:
3 + 2 + 4 = 9 pixels with two stages that have a 3 × 3, + 8 = 17 with three, + 16 = 33 with all four.

Patches begin every 8 pixels; the first lies in the image's corner, so a map is smaller than the image by the patch:
`placement="receptive_field"` sets its cells right. timm has no pretrained weights for these names.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet, downsample_conv
from torch import nn

_STRIDES = (2, 2, 2, 1)


class BagNet(ResNet):
    """A ResNet with receptive fields of a few pixels; `kernel_sizes` are those of each stage's first block."""

    def __init__(
        self,
        kernel_sizes: tuple[int, int, int, int],
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        channels: tuple[int, int, int, int] = (64, 128, 256, 512),
        in_chans: int = 3,
        output_stride: int = 8,
        **kwargs: Any,
    ) -> None:
        assert output_stride == 8, "a BagNet has a stride of 8: dilation would widen the patches"
        assert channels[0] * Bottleneck.expansion != 64, "a stage's first block is known by its change of channels"
        blocks: Any = tuple(_Blocks(*choice) for choice in zip(kernel_sizes, _STRIDES, strict=True))
        super().__init__(blocks, layers, channels=channels, in_chans=in_chans, **kwargs)
        stem = [nn.Conv2d(in_chans, 64, 1, bias=False), nn.Conv2d(64, 64, 3, bias=False)]
        for convolution in stem:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = nn.Sequential(*stem)
        self.maxpool = nn.Sequential()  # none
        reductions = (1, 2, 4, 8, 8)
        self.feature_info = [
            info | {"reduction": reduction} for info, reduction in zip(self.feature_info, reductions, strict=True)
        ]


class _Blocks:
    """What makes the blocks of one stage: the first with a kernel and a stride, the others 1 × 1."""

    expansion = Bottleneck.expansion

    def __init__(self, kernel_size: int, stride: int) -> None:
        self.kernel_size = kernel_size
        self.stride = stride

    def __call__(
        self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, **kwargs: Any
    ) -> Bottleneck:
        if downsample is None:  # any but the first, where the number of channels changes
            return _with_kernel(Bottleneck(inplanes, planes, **kwargs), 1, 1)
        # The shortcut takes the window's centre. (The published network takes its top left corner, and so looks beside
        # the centre of its patch by up to half of it.)
        crop = nn.ZeroPad2d(-(self.kernel_size // 2))
        norm_layer = kwargs.get("norm_layer")
        shortcut = downsample_conv(inplanes, planes * self.expansion, 1, stride=self.stride, norm_layer=norm_layer)
        block = Bottleneck(inplanes, planes, downsample=nn.Sequential(crop, shortcut), **kwargs)
        return _with_kernel(block, self.kernel_size, self.stride)


def _with_kernel(block: Bottleneck, kernel_size: int, stride: int) -> Bottleneck:
    """`block` with another middle convolution, unpadded."""
    old = block.conv2
    block.conv2 = nn.Conv2d(old.in_channels, old.out_channels, kernel_size, stride, groups=old.groups, bias=False)
    return block


def _config(cells: int) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (cells, cells),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs({"bagnet9": _config(27), "bagnet17": _config(26), "bagnet33": _config(24)})


@register_model
def bagnet9(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Patches of 9 × 9 pixels."""
    return build_model_with_cfg(BagNet, "bagnet9", pretrained, kernel_sizes=(3, 3, 1, 1), **kwargs)


@register_model
def bagnet17(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Patches of 17 × 17 pixels."""
    return build_model_with_cfg(BagNet, "bagnet17", pretrained, kernel_sizes=(3, 3, 3, 1), **kwargs)


@register_model
def bagnet33(pretrained: bool = False, **kwargs: Any) -> BagNet:
    """Patches of 33 × 33 pixels."""
    return build_model_with_cfg(BagNet, "bagnet33", pretrained, kernel_sizes=(3, 3, 3, 3), **kwargs)
