"""Post-hoc maps of the CAM kind, by pytorch-grad-cam, at the head's own input: the tensor that the head pools.

The maps are taken before pytorch-grad-cam rectifies, stretches and rescales each of them to 0..1, so their sign and
unit are left, and they stand on the model's grid.
"""

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from ..models import ImageClassifier
from .maps import MapMethod
from .posthoc import prepared

NEEDS = "pytorch_grad_cam"
_CHUNK = 64  # images a forward pass, of methods that change channels one after the other


def _at_head(name: str, technique: str, **options: Any) -> Callable[[ImageClassifier], MapMethod]:
    def make(model: ImageClassifier) -> MapMethod:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        kind, logits = getattr(pytorch_grad_cam, technique), model.as_logits()

        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            raw: list[Any] = []
            targets = [ClassifierOutputTarget(number) for number in classes.tolist()]
            with prepared(model), kind(model=logits, target_layers=[model.backbone.deepest], **options) as cam:
                cam.batch_size = _CHUNK
                found = cam.get_cam_image

                def kept(*given: Any, **more: Any) -> Any:
                    raw.append(found(*given, **more))
                    return raw[-1]

                cam.get_cam_image = kept
                with redirect_stderr(StringIO()):  # some show a bar for every batch
                    cam(images.detach().clone().requires_grad_(), targets)
            return torch.as_tensor(raw[0]).to(images)

        return MapMethod(name, "post-hoc", explain, is_on_grid=len(model.backbone.stages) == 1)

    return make


def full_grad(model: ImageClassifier) -> MapMethod:
    """Gradients times image and biases, of all layers together. Srinivas and Fleuret, NeurIPS 2019.

    The one method here that looks at every layer with a bias: its map is pytorch-grad-cam's, each in 0..1.
    """
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    logits = model.as_logits()

    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        targets = [ClassifierOutputTarget(number) for number in classes.tolist()]
        with prepared(model), FullGrad(model=logits, target_layers=[]) as cam:
            return torch.as_tensor(cam(images.detach().clone().requires_grad_(), targets)).to(images)

    return MapMethod("fullgrad", "post-hoc", explain)


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "grad-cam++": _at_head("grad-cam++", "GradCAMPlusPlus"),
    "xgrad-cam": _at_head("xgrad-cam", "XGradCAM"),
    "hires-cam": _at_head("hires-cam", "HiResCAM"),
    "layer-cam": _at_head("layer-cam", "LayerCAM"),
    "eigen-cam": _at_head("eigen-cam", "EigenCAM"),
    "score-cam": _at_head("score-cam", "ScoreCAM"),
    "ablation-cam": _at_head("ablation-cam", "AblationCAM"),
    "fullgrad": full_grad,
}
