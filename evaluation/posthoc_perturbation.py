"""Post-hoc maps from what the model says of changed images: no gradients, many forwards.

LIME and the Shapley values explain a grid of 7 × 7 patches, whose value is spread evenly over its pixels, so that a
map's sum is the sum of the patches. What is hidden becomes the mean colour.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..common.seeds import mixed_seed
from ..models import ImageClassifier
from .maps import MapMethod
from .patches import patch_numbers
from .posthoc import Explain, one_by_one, prepared

NEEDS = "captum"
_CELLS = 7  # patches a side
_SAMPLES = 200  # subsets of patches: LIME, KernelSHAP
_ORDERS = 10  # of patches: Shapley value sampling, 49 forwards each
_MASKS, _MASK_CELLS, _MASK_SHARE = 1000, 8, 0.5  # RISE
_CHUNK = 64  # images a forward pass


def occlusion(model: ImageClassifier) -> MapMethod:
    """The fall of the logit under a square a seventh of the side wide, moved by half. Zeiler and Fergus, ECCV 2014."""
    from captum.attr import Occlusion

    explainer = Occlusion(model.as_logits())

    def attribute(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        channels, *size = images.shape[1:]
        window = [-(-side // _CELLS) for side in size]
        strides = [-(-side // 2) for side in window]
        return explainer.attribute(
            images,
            sliding_window_shapes=(channels, *window),
            strides=(channels, *strides),
            target=classes,
            perturbations_per_eval=max(1, _CHUNK // len(images)),
        )[:, 0]

    return _method("occlusion", model, attribute)


def lime(model: ImageClassifier) -> MapMethod:
    """The weights of a ridge regression on 200 random subsets of patches. Ribeiro et al., KDD 2016."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    # As the authors' package has it; captum's own choice, a lasso, sets all weights of small logits to zero.
    explainer = Lime(model.as_logits(), interpretable_model=SkLearnRidge(alpha=1.0))
    return _method("lime", model, _of_patches(explainer.attribute, n_samples=_SAMPLES))


def kernel_shap(model: ImageClassifier) -> MapMethod:
    """Shapley values of patches by a weighted regression on 200 subsets. Lundberg and Lee, NeurIPS 2017."""
    from captum.attr import KernelShap

    explainer = KernelShap(model.as_logits())
    return _method("kernel-shap", model, _of_patches(explainer.attribute, n_samples=_SAMPLES), completes=True)


def shapley_sampling(model: ImageClassifier) -> MapMethod:
    """Shapley values of patches by ten random orders. Castro et al., 2009; Strumbelj and Kononenko, 2010."""
    from captum.attr import ShapleyValueSampling

    explainer = ShapleyValueSampling(model.as_logits())
    return _method("shapley-sampling", model, _of_patches(explainer.attribute, n_samples=_ORDERS), completes=True)


def rise(model: ImageClassifier) -> MapMethod:
    """The mean of 1,000 smooth random masks, weighted by the probability that they leave. Petsiuk et al., BMVC 2018.

    8 × 8 cells of which half are open, as the paper has it, moved by less than a cell; masks are drawn for each image.
    """

    def attribute(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        return torch.stack(
            [_rise(model, *given) for given in zip(images, classes.tolist(), indices.tolist(), strict=True)]
        )

    return _method("rise", model, attribute)


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "occlusion": occlusion,
    "lime": lime,
    "kernel-shap": kernel_shap,
    "shapley-sampling": shapley_sampling,
    "rise": rise,
}


def rise_masks(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """`count` masks `n h w` in 0..1: random cells, stretched linearly and moved by less than a cell."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-side // _MASK_CELLS) for side in size]
    is_open = (torch.rand(count, 1, _MASK_CELLS, _MASK_CELLS, generator=generator) < _MASK_SHARE).float()
    stretched = [(_MASK_CELLS + 1) * cell for cell in cells]
    smooth = functional.interpolate(is_open, size=stretched, mode="bilinear", align_corners=False)[:, 0]
    offsets = torch.stack([torch.randint(cell, (count,), generator=generator) for cell in cells], 1).tolist()
    return torch.stack([mask[y : y + size[0], x : x + size[1]] for mask, (y, x) in zip(smooth, offsets, strict=True)])


@torch.no_grad()
def _rise(model: ImageClassifier, image: Tensor, target: int, index: int) -> Tensor:
    masks = rise_masks(_MASKS, (image.shape[-2], image.shape[-1]), mixed_seed(0, index)).to(image)
    weights = [
        model(image * some[:, None], explain=0).logits.float().softmax(1)[:, target] for some in masks.split(_CHUNK)
    ]
    return torch.einsum("n, n h w -> h w", torch.cat(weights), masks) / (_MASKS * _MASK_SHARE)


def _of_patches(attribute: Callable[..., Tensor], **options: int) -> Explain:
    def of_image(image: Tensor, target: Tensor) -> Tensor:
        numbers = patch_numbers((image.shape[-2], image.shape[-1]), _CELLS).to(image.device)
        sizes = numbers.flatten().bincount()
        found = attribute(
            image, target=target, feature_mask=numbers[None, None], perturbations_per_eval=_CHUNK,
            show_progress=False, **options,
        )  # fmt: skip
        return found[:, 0] / sizes[numbers]

    return one_by_one(of_image)


def _method(name: str, model: ImageClassifier, attribute: Explain, completes: bool = False) -> MapMethod:
    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        with prepared(model), torch.no_grad():
            return attribute(images.detach(), classes, indices).detach()

    return MapMethod(name, "post-hoc", explain, completes=completes)
