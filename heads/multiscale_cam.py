"""Multi-scale CAM: a linear classifier over global average pooling at each of several stages; their logits add up.

    logit_c = b_c + Σ_s W^s_c · mean(x^s)      evidence_c = Σ_s spread(W^s_c · x^s / (H_s W_s))      offset_c = b_c

CAM (Zhou et al., CVPR 2016, equations 1 and 2) once a stage; `spread` divides what a coarse cell holds among the cells
of the finest grid that it covers, so the sum stays the logit.
"""

from torch import Tensor
from torch.nn import functional

from .base import Contract, Features, linear_evidence, no_parts
from .registry import register_head
from .stages import StagesHead, StagesState, finest, spread


@register_head("multiscale_cam")
class MultiscaleCAM(StagesHead[StagesState]):
    """Class activation maps finer than the last stage, since earlier stages vote too.

    Assumes that texture and small parts, which early stages see, speak for a class beside what the last stage sees.
    The map is what each cell of the finest stage adds to the logit, and a share of what the coarse cell above it adds:
    fine detail is only where early stages have a say. Use it for small or thin evidence (lesions, feathers). It starts
    as the classifier of the final features, to the bit, and costs a pooling and a matrix product a stage.

    Options: `stages`, how many of the backbone's last stages are used.
    """

    contract = Contract.LINEAR

    def __init__(self, num_features: list[int], num_classes: int, *, stages: int = 3) -> None:
        super().__init__(num_features, num_classes, stages)

    def score(self, features: Features) -> StagesState:
        """Logits `b c` from the features `b d h w` of each stage."""
        assert isinstance(features, list)
        pooled = [functional.adaptive_avg_pool2d(stage, 1).flatten(1) for stage in features]
        logits = self.classifier(pooled[-1])
        for classifier, mean in zip(self.shallow, pooled, strict=False):
            logits = logits + classifier(mean)
        top = max(features, key=lambda stage: stage.shape[-2] * stage.shape[-1])
        return StagesState(features[-1], logits, no_parts(top), features)

    def evidence(self, state: StagesState, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `b k h w` on the finest grid, offset `b k` (the bias)."""
        grid = finest(state.stages)
        maps = [
            spread(linear_evidence(stage, classifier.weight, classes), grid)
            for stage, classifier in zip(state.stages, self.classifiers, strict=True)
        ]
        return sum(maps[1:], maps[0]), self.classifier.bias[classes]
