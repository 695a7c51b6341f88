"""Post-hoc maps from gradients, by captum: what a black box is usually explained by.

They look at the image, not at the head's input, so their maps have its resolution. Signed maps are sums over the
channels; gradients, whose sign depends on the channel's, are the largest absolute value over them. Where a method needs
an image that shows nothing, that is the mean colour.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..common.errors import InputError
from ..models import ImageClassifier
from .maps import MapMethod
from .posthoc import Explain, all_at_once, check_rectified, one_by_one, prepared

NEEDS = "captum"
_SAMPLES = 20  # noisy copies of an image: SmoothGrad, GradientSHAP
_NOISE = 0.15  # SmoothGrad's standard deviation, as a share of the range of the image's values
_STEPS = 50  # of integrated gradients
_CHUNK = 64  # images a forward and backward pass


def gradient(model: ImageClassifier) -> MapMethod:
    """The gradient of the logit. Simonyan et al., "Deep Inside Convolutional Networks", ICLR workshop 2014."""
    from captum.attr import Saliency

    return _method("gradient", model, all_at_once(Saliency(model.as_logits()).attribute), _largest)


def smoothgrad(model: ImageClassifier) -> MapMethod:
    """The mean gradient of 20 noisy copies. Smilkov et al., "SmoothGrad", 2017."""
    from captum.attr import NoiseTunnel, Saliency

    tunnel = NoiseTunnel(Saliency(model.as_logits()))

    def attribute(image: Tensor, target: Tensor) -> Tensor:
        noise = _NOISE * (image.max() - image.min()).item()
        return tunnel.attribute(image, target=target, nt_samples=_SAMPLES, stdevs=noise, abs=False)

    return _method("smoothgrad", model, one_by_one(attribute), _largest)


def input_x_gradient(model: ImageClassifier) -> MapMethod:
    """The normalised image times the gradient. Shrikumar et al., "Not Just a Black Box", 2016."""
    from captum.attr import InputXGradient

    return _method("input-x-gradient", model, all_at_once(InputXGradient(model.as_logits()).attribute))


def integrated_gradients(model: ImageClassifier) -> MapMethod:
    """Gradients along 50 steps from the mean colour. Sundararajan et al., "Axiomatic Attribution", ICML 2017.

    A network that normalises its first features (ConvNeXt) has no useful gradient at a constant image: the
    completeness gap tells.
    """
    from captum.attr import IntegratedGradients

    attribute = IntegratedGradients(model.as_logits()).attribute
    explain = all_at_once(attribute, n_steps=_STEPS, internal_batch_size=_CHUNK)
    return _method("integrated-gradients", model, explain, completes=True)


def gradient_shap(model: ImageClassifier) -> MapMethod:
    """Gradients at 20 random places between noisy copies and the mean colour. Lundberg and Lee, NeurIPS 2017."""
    from captum.attr import GradientShap

    explainer = GradientShap(model.as_logits())

    def attribute(image: Tensor, target: Tensor) -> Tensor:
        return explainer.attribute(image, torch.zeros_like(image), _SAMPLES, 0.09, target=target)

    return _method("gradient-shap", model, one_by_one(attribute), completes=True)


def deeplift(model: ImageClassifier) -> MapMethod:
    """Differences from the mean colour, by the rescale rule. Shrikumar et al., "DeepLIFT", ICML 2017.

    The map of a network that runs one activation module at several places raises InputError.
    """
    from captum.attr import DeepLift

    explainer = DeepLift(model.as_logits())

    def attribute(images: Tensor, target: Tensor) -> Tensor:
        try:
            return explainer.attribute(images, target=target)
        except RuntimeError as error:
            if "used more than once" not in str(error):
                raise
            reason = f"{model.config.architecture} runs one at several places"
            raise InputError(f"deeplift needs an activation module for every place, but {reason}") from error

    return _method("deeplift", model, all_at_once(attribute), completes=True)


def guided_backprop(model: ImageClassifier) -> MapMethod:
    """Gradients of which ReLUs pass the positive part alone. Springenberg et al., ICLR workshop 2015.

    Raises:
        InputError: The network has other activations.
    """
    from captum.attr import GuidedBackprop

    check_rectified("guided-backprop", model)
    return _method("guided-backprop", model, all_at_once(GuidedBackprop(model.as_logits()).attribute))


def deconvolution(model: ImageClassifier) -> MapMethod:
    """Gradients that ReLUs rectify instead of switch. Zeiler and Fergus, ECCV 2014.

    Raises:
        InputError: The network has other activations.
    """
    from captum.attr import Deconvolution

    check_rectified("deconvolution", model)
    return _method("deconvolution", model, all_at_once(Deconvolution(model.as_logits()).attribute))


METHODS: dict[str, Callable[[ImageClassifier], MapMethod]] = {
    "gradient": gradient,
    "input-x-gradient": input_x_gradient,
    "smoothgrad": smoothgrad,
    "integrated-gradients": integrated_gradients,
    "gradient-shap": gradient_shap,
    "deeplift": deeplift,
    "guided-backprop": guided_backprop,
    "deconvolution": deconvolution,
}


def _sum(attributions: Tensor) -> Tensor:
    return attributions.sum(1)


def _largest(attributions: Tensor) -> Tensor:
    return attributions.abs().amax(1)


def _method(
    name: str,
    model: ImageClassifier,
    attribute: Explain,
    over_channels: Callable[[Tensor], Tensor] = _sum,
    completes: bool = False,
) -> MapMethod:
    def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
        with prepared(model):
            return over_channels(attribute(images.detach(), classes, indices).detach())

    return MapMethod(name, "post-hoc", explain, completes=completes)
