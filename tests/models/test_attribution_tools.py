"""captum and pytorch-grad-cam on a model of ours, held to what they say of timm's own network with the same weights.

The snippets of their READMEs stand here with the model exchanged, nothing else.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glasszoo.models import InterpretableClassifier

# captum


def readme_of_captum(model: nn.Module, layer: nn.Module, images: Tensor) -> dict[str, Any]:
    """Captum's README, "Getting Started", in its order; its toy's first layer is `layer`."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 (the snippet's)
    baseline, found = torch.zeros_like(images), {}
    ig = captum.IntegratedGradients(model)
    found["ig"] = ig.attribute(images, baseline, target=0, return_convergence_delta=True)
    baseline_dist = torch.randn(3, *images.shape[1:]) * 0.001
    found["gs"] = captum.GradientShap(model).attribute(
        images, stdevs=0.09, n_samples=4, baselines=baseline_dist, target=0, return_convergence_delta=True
    )
    dl = captum.DeepLift(model)
    found["dl"] = dl.attribute(images, baseline, target=0, return_convergence_delta=True)
    dl = captum.DeepLiftShap(model)
    found["dls"] = dl.attribute(images, baseline_dist, target=0, return_convergence_delta=True)
    found["nt"] = captum.NoiseTunnel(ig).attribute(
        images, nt_type="smoothgrad", stdevs=0.02, nt_samples=4, baselines=baseline, target=0
    )
    found["nc"] = captum.NeuronConductance(model, layer).attribute(images, neuron_selector=(1, 0, 0), target=0)
    lc = captum.LayerConductance(model, layer)
    found["lc"] = lc.attribute(images, baselines=baseline, target=0, return_convergence_delta=True)
    found["saliency"] = captum.Saliency(model).attribute(images, target=torch.tensor([1, 2]))
    return found


def test_captums_readme(theirs: Any, ours: InterpretableClassifier, images: Tensor) -> None:
    images = images[..., :64, :64]
    found = readme_of_captum(ours.as_logits(), ours.backbone.network.layer4, images)
    expected = readme_of_captum(theirs, theirs.layer4, images)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: name + text)
    attributions, _ = found["ig"]
    assert attributions.abs().sum() > 0.1
    with torch.no_grad():
        logits, at_baseline = (ours(batch).logits[:, 0] for batch in (images, torch.zeros_like(images)))
    torch.testing.assert_close(attributions.sum((1, 2, 3)).float(), logits - at_baseline, atol=0.2, rtol=0.05)


def test_captums_grad_cam_is_our_map(ours: InterpretableClassifier, images: Tensor) -> None:
    """Behind average pooling and a linear layer the two are one formula: gradient times feature."""
    captum = pytest.importorskip("captum.attr")
    classes = torch.tensor([3, 5])
    for layer in (ours.backbone.deepest, ours.backbone.network.layer4[-1]):
        found = captum.LayerGradCam(ours.as_logits(), layer).attribute(images, target=classes)
        torch.testing.assert_close(found[:, 0], ours(images, classes).maps[:, 0], atol=1e-5, rtol=1e-4)


# pytorch-grad-cam


def readme_of_grad_cam(name: str, model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Any, Any, Tensor]:
    """pytorch-grad-cam's README, "Using from code", with the CAM called `name`."""
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rgb_img = np.full((*images.shape[2:], 3), 0.5, np.float32)
    target_layers = [layer]
    targets = [ClassifierOutputTarget(3), ClassifierOutputTarget(5)]
    with getattr(pytorch_grad_cam, name)(model=model, target_layers=target_layers) as cam:
        grayscale_cams = cam(input_tensor=images, targets=targets)
        grayscale_cam = grayscale_cams[0, :]
        visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
        model_outputs = cam.outputs
    return grayscale_cams, visualization, model_outputs


CAMS = ["GradCAM", "HiResCAM", "ScoreCAM", "GradCAMPlusPlus", "AblationCAM", "XGradCAM", "EigenCAM", "FullGrad"]


@pytest.mark.parametrize("name", CAMS)
def test_grad_cams_readme(name: str, theirs: Any, ours: InterpretableClassifier, images: Tensor) -> None:
    found = readme_of_grad_cam(name, ours.as_logits(), ours.backbone.network.layer4[-1], images)
    expected = readme_of_grad_cam(name, theirs, theirs.layer4[-1], images)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    assert found[0].shape == (2, 64, 96) and found[0].max() > 0.9
    assert found[1].shape == (64, 96, 3) and found[1].dtype == np.uint8
    torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=1e-4)


def test_grad_cams_map_is_our_positive_evidence(ours: InterpretableClassifier, images: Tensor) -> None:
    found, _, _ = readme_of_grad_cam("GradCAM", ours.as_logits(), ours.backbone.deepest, images)
    from pytorch_grad_cam.utils.image import scale_cam_image

    maps = ours(images, torch.tensor([3, 5])).maps[:, 0].relu().detach().numpy()
    np.testing.assert_allclose(found, scale_cam_image(scale_cam_image(maps, (96, 64))), atol=1e-4)


def test_grad_cams_metrics_and_guided_backpropagation(
    theirs: Any, ours: InterpretableClassifier, images: Tensor
) -> None:
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
    from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    cams, _, _ = readme_of_grad_cam("GradCAM", ours.as_logits(), ours.backbone.deepest, images)
    targets = [ClassifierOutputSoftmaxTarget(3), ClassifierOutputSoftmaxTarget(5)]
    for metric in (CamMultImageConfidenceChange(), ROADMostRelevantFirst(percentile=75)):
        results = []
        for model in (ours.as_logits(), theirs):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            results.append(np.asarray(metric(images, cams, targets, model)))
        np.testing.assert_allclose(results[0], results[1], atol=1e-4)
    guided = [
        pytorch_grad_cam.GuidedBackpropReLUModel(model=copy.deepcopy(model), device="cpu")(images[:1], 3)
        for model in (ours.as_logits(), theirs)
    ]
    np.testing.assert_allclose(guided[0], guided[1], atol=1e-5)
    assert np.abs(guided[0]).sum() > 0
