"""Random training transforms, for image, mask and boxes together."""

from dataclasses import dataclass

from torchvision.transforms import InterpolationMode, v2

from ..common.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image before it is normalised; the defaults are timm's for ImageNet."""

    crop: bool = True  # a random crop, resized; else the whole image, resized (squashed where the aspect ratio differs)
    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # aspect ratio of the crop, relative to that of the model's input
    hflip: float = 0.5  # probability
    vflip: float = 0.0  # probability
    rotation: float = 0.0  # degrees, to either side; the corners are filled with black
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation changes

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"augmentation.{name} must be two numbers 0 < low ≤ high, got {low} and {high}")
        for name in ("hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation.{name} is a probability, got {getattr(self, name)}")

    def transform(self, size: tuple[int, int], interpolation: InterpolationMode) -> v2.Transform:
        """The transform to images of `size` (h, w), still unnormalised."""
        resize = {"size": size, "interpolation": interpolation, "antialias": True}
        steps: list[v2.Transform] = [v2.Resize(**resize)]
        if self.crop:
            ratio = tuple(size[1] / size[0] * factor for factor in self.ratio)
            steps = [v2.RandomResizedCrop(scale=self.scale, ratio=ratio, **resize)]
        if self.hflip:
            steps.append(v2.RandomHorizontalFlip(self.hflip))
        if self.vflip:
            steps.append(v2.RandomVerticalFlip(self.vflip))
        if self.rotation:
            steps.append(v2.RandomRotation(self.rotation, interpolation=InterpolationMode.BILINEAR))
        if self.color_jitter:
            steps.append(v2.ColorJitter(self.color_jitter, self.color_jitter, self.color_jitter))
        return v2.Compose(steps)
