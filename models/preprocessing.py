"""From a stored image to what a model was trained to see: one description, kept in the checkpoint."""

from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from timm.data import resolve_data_config
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from ..common.errors import InputError, unknown_name


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input; the fields are those of timm's `pretrained_cfg`."""

    input_size: tuple[int, int, int] = (3, 224, 224)  # c h w
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"  # "center" keeps the aspect ratio and cuts, "squash" does neither

    def __post_init__(self) -> None:
        # JSON and YAML give lists.
        for name in ("input_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise InputError(f"input_size must be three positive numbers (c, h, w), got {self.input_size}")
        channels = self.input_size[0]
        if not len(self.mean) == len(self.std) == channels:
            raise InputError(f"mean and std must have {channels} values each, one a channel")
        if self.crop_mode not in ("center", "squash"):
            raise unknown_name("crop_mode", self.crop_mode, ("center", "squash"))
        if not 0 < self.crop_pct <= 1:
            raise InputError(f"crop_pct must lie in (0, 1], got {self.crop_pct}")
        interpolation_mode(self.interpolation)

    @classmethod
    def from_timm(cls, pretrained_cfg: dict[str, Any], in_chans: int = 3) -> "Preprocessing":
        """What timm states for these weights; another number of channels takes the mean over timm's three."""
        config = resolve_data_config(pretrained_cfg=pretrained_cfg)
        config["input_size"] = (in_chans, *config["input_size"][1:])
        for statistic in ("mean", "std"):
            if len(config[statistic]) != in_chans:
                config[statistic] = (sum(config[statistic]) / len(config[statistic]),) * in_chans
        return cls(**config)

    def transform(self) -> "Preprocess":
        """The evaluation transform."""
        return Preprocess(self)

    def to_tensor(self) -> v2.Transform:
        """The last steps, shared by training and evaluation: right channels, float in 0..1, normalised."""
        channels = {1: [v2.Grayscale(1)], 3: [v2.RGB()]}.get(self.input_size[0], [])
        to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
        return v2.Compose([v2.ToImage(), *channels, to_float, v2.Normalize(self.mean, self.std)])


class Preprocess:
    """Resizes, crops and normalises as timm's evaluation transform does, and moves masks and boxes along.

    Takes a PIL image, an image tensor, or a dict with one under "image" (a `Sample`: its masks and boxes are moved
    along); the image comes out as float `c h w`.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._crop = v2.CenterCrop(preprocessing.input_size[1:])
        self._to_tensor = preprocessing.to_tensor()

    def __call__(self, sample: Any) -> Any:
        height, width = v2.functional.get_size(sample["image"] if isinstance(sample, dict) else sample)
        resized = self._resized(height, width)
        if resized != (height, width):
            mode = interpolation_mode(self.preprocessing.interpolation)
            sample = v2.Resize(resized, interpolation=mode, antialias=True)(sample)
        return self._to_tensor(self._crop(sample))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size to crop from: the input size over `crop_pct`, exactly ("squash") or just covered ("center")."""
        target_h, target_w = (floor(side / self.preprocessing.crop_pct) for side in self.preprocessing.input_size[1:])
        if self.preprocessing.crop_mode == "squash":
            return target_h, target_w
        if target_h == target_w:  # torchvision's rule: the longer side is cut off
            shorter = min(height, width)
            return target_h * height // shorter, target_w * width // shorter
        ratio = min(height / target_h, width / target_w)  # timm's rule: both sides are rounded
        return round(height / ratio), round(width / ratio)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preprocessing})"


def interpolation_mode(name: str) -> InterpolationMode:
    """Torchvision's mode of that name ("bilinear", "bicubic", "nearest", …).

    Raises:
        InputError: No such mode; the nearest names are listed.
    """
    modes = {mode.value: mode for mode in InterpolationMode}
    if name not in modes:
        raise unknown_name("interpolation", name, modes)
    return modes[name]
