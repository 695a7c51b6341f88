"""Backbone and head together, over all heads and four small families of timm."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import Contract, list_heads, wanted_stages
from glasszoo.models import BLACK_BOX, ImageClassifier, InterpretableClassifier

BACKBONES = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext"]
MODELS = [(backbone, head) for head in list_heads() for backbone in BACKBONES]


def made(backbone: str, head: str = "cam", **options: object) -> ImageClassifier:
    torch.manual_seed(0)
    return glasszoo.create_model(backbone, head=head, num_classes=7, **options).eval()  # type: ignore[arg-type]


def gap(model: ImageClassifier, images: Tensor) -> float:
    explained = model(images, "all")
    total = explained.maps.sum((-2, -1)) + explained.offset
    wanted = model.contract.explained_quantity(explained.logits).gather(1, explained.classes)
    # An untrained PIP-Net finds nothing: all its logits are 0.
    return ((total - wanted).abs().max() / explained.logits.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_evidence_adds_up(backbone: str, head: str) -> None:
    model = made(backbone, head)
    assert isinstance(model, InterpretableClassifier)
    for size in ((160, 160), (97, 130), (33, 64)):
        assert gap(model, torch.randn(2, 3, *size)) <= 1e-4
    assert gap(model.train(), torch.randn(3, 3, 96, 96)) <= 1e-4


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_the_map_follows_the_image(backbone: str, head: str) -> None:
    model = made(backbone, head)
    small, large = (model(torch.randn(1, 3, side, side + 32)).maps.shape[-2:] for side in (128, 256))
    cell = model.backbone.reduction  # on the finest grid, where a head looks at several stages
    assert cell == 32 or wanted_stages(head) != (-1,)
    assert tuple(large) == (256 // cell, 288 // cell) and tuple(small) == (128 // cell, 160 // cell)


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_one_channel(backbone: str, head: str) -> None:
    model = made(backbone, head, in_chans=1)
    assert gap(model, torch.randn(2, 1, 64, 64)) <= 1e-4
    assert model.config.preprocessing.input_size[0] == 1


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_every_parameter_learns(backbone: str, head: str) -> None:
    model = made(backbone, head).train()
    for parameter in model.parameters():
        if not parameter.any():  # timm starts the last norm of a residual branch at zero, which cuts the branch off
            torch.nn.init.ones_(parameter)
    labels = torch.tensor([0, 1, 2, 3])
    explained, losses = model.forward_with_losses(torch.randn(4, 3, 96, 96), labels)
    torch.stack([torch.nn.functional.cross_entropy(explained.logits, labels), *losses.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_eval_changes_nothing_and_repeats_itself(backbone: str, head: str) -> None:
    model = made(backbone, head)
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, second = model(images), model(images)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_exports_with_a_dynamic_batch(backbone: str, head: str) -> None:
    model = made(backbone, head)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},)).module()
    images = torch.randn(5, 3, 64, 64)
    for ours, exported in zip(model(images), program(images), strict=True):
        torch.testing.assert_close(exported, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("backbone", "head"), MODELS)
def test_compiles_as_one_graph(backbone: str, head: str) -> None:
    """Every form of `explain` is a graph of its own: all are captured with one backbone, the first with each."""
    model = made(backbone, head)
    images = torch.randn(2, 3, 64, 64)
    is_first = backbone == BACKBONES[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if is_first else "eager")
    for explain in (1, 0, "all", torch.tensor([3, 5])) if is_first else (1,):
        for ours, theirs in zip(model(images, explain), compiled(images, explain), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", list_heads())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_explains_without_gradients(head: str, mode: Callable[[], torch.no_grad]) -> None:
    model = made("test_resnet", head)
    with mode():
        assert gap(model, torch.randn(1, 3, 64, 64)) <= 1e-4


def test_starts_as_the_black_box_of_the_same_seed() -> None:
    images = torch.randn(2, 3, 64, 64)
    for backbone in ("test_resnet", "test_efficientnet", "test_byobnet"):
        assert torch.equal(made(backbone)(images).logits, made(backbone, BLACK_BOX)(images).logits)


def test_a_black_box_explains_nothing_and_is_timms_model() -> None:
    model = made("test_convnext", BLACK_BOX)
    torch.manual_seed(0)
    reference = timm.create_model("test_convnext", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    explained = model(images, "all")
    assert torch.equal(explained.logits, reference(images))
    assert model.contract is Contract.NONE
    assert explained.classes.shape == (2, 0) and explained.maps.shape == (2, 0, 2, 2)


def test_what_only_timms_head_used_is_gone() -> None:
    names = [name for name, _ in made("mobilenetv3_small_050").named_parameters()]
    assert not any("conv_head" in name or "network.classifier" in name for name in names)


def test_takes_over_timms_classifier(shared: Callable[[str], Path]) -> None:
    source = f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    model = glasszoo.create_model(source, head="cam", pretrained=True).eval()
    reference = timm.create_model(source, pretrained=True).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, reference(images), atol=1e-4, rtol=0)
        assert gap(model, images) <= 1e-4
    assert model.class_names[323].startswith("monarch")
    assert model.config.backbone_weights is not None and model.config.backbone_weights.license == "apache-2.0"


def test_timms_tools_work_on_it() -> None:
    model = made("test_resnet")
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5).param_groups
    head_scales = {
        g["lr_scale"] for g in groups if any(p is model.get_classifier().classifier.weight for p in g["params"])
    }
    assert head_scales == {1.0} and min(g["lr_scale"] for g in groups) < 1
    ema = ModelEmaV3(model, decay=0.5)
    ema.update(model)
    assert torch.isfinite(ema.module(torch.randn(1, 3, 64, 64)).logits).all()
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 160, 160)
    assert model.as_logits()(torch.randn(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    "images",
    [
        torch.randn(3, 64, 64),
        torch.randn(2, 1, 64, 64),
        torch.randn(2, 64, 64, 3),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
    ],
)
def test_a_wrong_batch_is_named(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"float images of shape \(b, 3, h, w\) expected, got \w+ \("):
        made("test_resnet")(images)
