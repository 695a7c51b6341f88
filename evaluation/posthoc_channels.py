"""Post-hoc maps that weigh the channels of the head's input without gradients: Score-CAM, Ablation-CAM, Eigen-CAM.

They are computed here since pytorch-grad-cam's are something else. Its Ablation-CAM divides by the logit, so maps of
negative logits are turned over, and sets channels that have negative values to -10⁷ instead of 0; its Score-CAM holds
the image in a copy for each channel, gigabytes for a ResNet-50; its Eigen-CAM has a sign by chance.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..heads import Features
from ..models import ImageClassifier
from .maps import MapMethod
from .posthoc import deepest, features_and_output, prepared

_CHUNK = 64  # images, or changed feature maps, a pass


def score_cam(model: ImageClassifier) -> MapMethod:
    """Channels by the logit of the image seen through each: softmax over the channels. Wang et al., CVPR-W 2020.

    A channel that is the same everywhere hides the whole image.
    """

    def weights(image: Tensor, features: Features, target: int) -> Tensor:
        channels = deepest(features)[0]
        logits = []
        for some in channels.split(_CHUNK):
            masks = functional.interpolate(some[:, None], size=image.shape[-2:], mode="bilinear", align_corners=False)
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            logits.append(model(image * (masks - low) / (high - low + 1e-8), explain=0).logits[:, target].float())
        return torch.cat(logits).softmax(0)

    return _method("score-cam", model, weights)


def ablation_cam(model: ImageClassifier) -> MapMethod:
    """Channels by how far the logit falls without each. Desai and Ramaswamy, WACV 2020, equations 2 and 3.

    Not divided by the logit, which is the same for all channels and may be negative.
    The head alone is run again, for every channel.
    """

    def weights(image: Tensor, features: Features, target: int) -> Tensor:
        def logits_of(given: Features) -> Tensor:
            return model.forward_head(given, None)[0].logits[:, target].float()

        def logits_without(channels: Tensor) -> Tensor:
            changed = deepest(features).repeat(len(channels), 1, 1, 1)
            changed[torch.arange(len(channels)), channels] = 0
            if isinstance(features, Tensor):
                return logits_of(changed)
            return logits_of([*(stage.expand(len(channels), -1, -1, -1) for stage in features[:-1]), changed])

        numbers = torch.arange(deepest(features).shape[1], device=image.device)
        return logits_of(features) - torch.cat([logits_without(some) for some in numbers.split(_CHUNK)])

    return _method("ablation-cam", model, weights)


def eigen_cam(model: ImageClassifier) -> MapMethod:
    """The first principal component of the cells' features. Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020.

    It knows no class. A component's sign is free: it is the one that grows with the features' length.
    """

    def component(features: Tensor) -> Tensor:
        cells = features.flatten(1).T.double()  # (h w) d
        centred = cells - cells.mean(0)
        along = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]
        lengths = cells.norm(dim=1)
        sign = torch.where(along @ (lengths - lengths.mean()) < 0, -1.0, 1.0)
        return (sign * along).reshape(features.shape[1:]).to(features.dtype)

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        with prepared(model), torch.no_grad():
            features, _ = features_and_output(model, images)
            return torch.stack([component(own) for own in deepest(features)])

    return MapMethod("eigen-cam", "post-hoc", explain, is_on_grid=len(model.backbone.stages) == 1)


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "eigen-cam": eigen_cam,
    "score-cam": score_cam,
    "ablation-cam": ablation_cam,
}


def _method(name: str, model: ImageClassifier, weights: Callable[[Tensor, Features, int], Tensor]) -> MapMethod:
    """The sum of the channels by `weights` (d) of one image `1 c H W`, its features and class."""

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        maps = []
        with prepared(model), torch.no_grad():
            for image, target in zip(images.split(1), classes.tolist(), strict=True):
                features, _ = features_and_output(model, image)
                channels = deepest(features)[0]
                maps.append(torch.einsum("d, d h w -> h w", weights(image, features, target).to(channels), channels))
        return torch.stack(maps)

    return MapMethod(name, "post-hoc", explain, is_on_grid=len(model.backbone.stages) == 1)
