"""Post-hoc maps that weigh channels by gradients, by pytorch-grad-cam, at the head's own input: what the head pools.

The maps are taken before pytorch-grad-cam rectifies, stretches and rescales each of them to 0..1, so their sign and
unit are left, and they stand on the model's grid.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import ImageClassifier
from .maps import MapMethod
from .posthoc import prepared

NEEDS = "pytorch_grad_cam"


def _at_head(name: str, technique: str) -> Callable[[ImageClassifier], MapMethod]:
    def make(model: ImageClassifier) -> MapMethod:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        kind, logits = getattr(pytorch_grad_cam, technique), model.as_logits()

        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            raw: list[Any] = []
            targets = [ClassifierOutputTarget(number) for number in classes.tolist()]
            with prepared(model), kind(model=logits, target_layers=[model.backbone.deepest]) as cam:
                found = cam.get_cam_image

                def kept(*given: Any, **more: Any) -> Any:
                    raw.append(found(*given, **more))
                    return raw[-1]

                cam.get_cam_image = kept
                cam(images.detach().clone().requires_grad_(), targets)
            return torch.as_tensor(raw[0]).to(images)

        return MapMethod(name, "post-hoc", explain, is_on_grid=len(model.backbone.stages) == 1)

    return make


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "grad-cam++": _at_head("grad-cam++", "GradCAMPlusPlus"),
    "xgrad-cam": _at_head("xgrad-cam", "XGradCAM"),
    "hires-cam": _at_head("hires-cam", "HiResCAM"),
    "layer-cam": _at_head("layer-cam", "LayerCAM"),
}
