"""Backbones that give several stages, or end at an earlier one: from one pass, and with nothing that is not needed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.evaluation import map_method
from glasszoo.heads import Contract
from glasszoo.models import BLACK_BOX, ImageClassifier, anatomy, load_pretrained, save_pretrained
from glasszoo.models.anatomy import examine
from glasszoo.models.backbone import Backbone, create_network
from glasszoo.models.tracing import Tracer

# Among them one with channels last, and two whose last intermediate is not what the head pools.
BACKBONES = ["test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_mambaout"]


def backbone(name: str, stages: tuple[int, ...], **options: object) -> Backbone:
    torch.manual_seed(0)
    network = create_network(name, stages=stages, **options)  # type: ignore[arg-type]
    return Backbone(network.module, network.anatomy).eval()


def made(name: str, head: str, **options: object) -> ImageClassifier:
    torch.manual_seed(0)
    return glasszoo.create_model(name, head=head, num_classes=5, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKBONES)
def test_one_pass_gives_every_stage(name: str) -> None:
    images = torch.randn(2, 3, 97, 130)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    model = backbone(name, (-3, -2, -1))
    first = next(module for module in model.network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(count)
    features = model(images)
    assert passes == 1
    assert [stage.shape[1] for stage in features] == model.head_features == [s.num_features for s in model.stages]
    final = model.network.forward_features(images)
    assert torch.equal(features[-1], final.permute(0, 3, 1, 2) if model.is_channels_last else final)
    assert torch.equal(features[-1], backbone(name, (-1,))(images))
    large = model(torch.randn(1, 3, 192, 256))
    for stage, known in zip(large, model.stages, strict=True):
        assert stage.shape[-2:] == (192 // known.reduction, 256 // known.reduction)
    assert model.reduction == model.stages[0].reduction < model.stages[-1].reduction


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("stage", [-2, -3])
def test_a_cut_backbone_is_the_beginning_of_the_whole_one(name: str, stage: int) -> None:
    images = torch.randn(2, 3, 64, 96)
    whole, cut = backbone(name, (stage, -1)), backbone(name, (stage,))
    cut.drop_unused()
    features = cut(images)
    assert torch.equal(features, whole(images)[0])
    # What is left is what the features depend on, nothing more.
    for parameter in cut.parameters():
        if not parameter.any():
            nn.init.ones_(parameter)
    (cut(images) * torch.randn_like(features)).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())
    assert 0 < sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    assert cut.head_features == cut.num_features == features.shape[1]


def test_later_stages_are_not_run() -> None:
    model = backbone("test_resnet", (-2,))
    model.network.layer4.register_forward_hook(lambda *_: pytest.fail("ran"))
    model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "options", "stage"),
    [
        ("test_resnet", {}, -2),
        ("test_resnet", {}, -3),
        ("test_resnet", {"output_stride": 8}, -2),
        ("mobilenetv2_035", {}, -3),
        ("bagnet33", {"layers": [2, 2, 2, 2], "channels": [8, 12, 16, 24]}, -2),
    ],
)
def test_a_cut_field_is_where_the_gradient_is(name: str, options: dict[str, object], stage: int) -> None:
    model = backbone(name, (stage,), **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # nothing cancels, no ReLU is dead
            nn.init.uniform_(module.weight, 0.0, 1.0 / module.weight[0].numel())
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 0.5)
    assert model.grid is not None
    field, side = model.grid.receptive_field[0], 160
    # Several images: max pooling hands its gradient to one pixel of each window.
    images = torch.rand(6, 3, side, side, requires_grad=True)
    cell = side // model.reduction // 2
    (gradient,) = torch.autograd.grad(model(images)[:, :, cell, cell].sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert rows.min() > 0 and rows.max() < side - 1, "the image must hold the whole field"
    assert int(rows.max() - rows.min()) + 1 == field
    assert not model.grid.sees_whole_image


@pytest.mark.parametrize(
    ("name", "sees_whole_image"),
    [
        ("resnet50", False),
        ("convnext_tiny", False),  # layer norms of each cell
        ("mobilenetv2_100", False),
        ("test_efficientnet_gn", True),
        ("seresnet50", True),
        ("convnextv2_atto", True),
        ("ecaresnet26t", True),
    ],
)
def test_what_reaches_every_cell_is_said(name: str, sees_whole_image: bool) -> None:
    grid = examine(name, (-2,)).grid
    assert grid is not None and grid.sees_whole_image == sees_whole_image


def test_a_mean_over_channels_stays_at_its_cell() -> None:
    """Told from a mean over the image, also where there are more channels than cells."""
    with torch.device("meta"), torch.no_grad():
        image, convolution = torch.empty(1, 3, 256, 320), nn.Conv2d(3, 512, 32, stride=32)
        with Tracer(image) as tracer:
            features = convolution(image)
            local, whole = features * features.mean(1, keepdim=True), features * features.mean((2, 3), keepdim=True)
    seen = [view.sees_whole_image for view in map(tracer.view, (features, local, whole)) if view is not None]
    assert seen == [False, False, True]


@pytest.mark.parametrize(("name", "is_bounded"), [("test_resnet", True), ("test_efficientnet_gn", False)])
def test_a_mean_over_the_image_unbinds_the_field(name: str, is_bounded: bool) -> None:
    """Gradients of a corner cell reach the far corner, or do not, as the tracer says."""
    model = backbone(name, (-3,))
    assert model.grid is not None and model.grid.sees_whole_image != is_bounded
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.ones_(parameter)
    images = torch.randn(2, 3, 192, 192, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[:, :, 0, 0].square().sum(), images)
    assert bool(gradient[..., -32:, -32:].any()) != is_bounded


def test_maps_of_several_stages_lie_on_the_finest() -> None:
    model = made("test_resnet", "multiscale_cam", head_kwargs={"stages": 2})
    fine, deep = (examine("test_resnet", (stage,)).grid for stage in (-2, -1))
    assert model.grid is not None and fine is not None and deep is not None
    assert (model.grid.stride, model.grid.centre) == (fine.stride, fine.centre)
    assert model.grid.receptive_field == deep.receptive_field
    assert model.backbone.reduction == 16 and model.num_features == 96
    images, indices = torch.randn(2, 3, 96, 128), torch.arange(2)
    assert model(images).maps.shape == (2, 1, 6, 8)
    assert map_method("random", model).explain(images, indices, indices).shape == (2, 6, 8)


def test_grad_cam_looks_at_the_deepest_stage() -> None:
    """While the shallow classifiers are zero, Grad-CAM is CAM at the final features, up to the number of cells."""
    images, classes, indices = torch.randn(2, 3, 96, 128), torch.tensor([3, 1]), torch.arange(2)
    (model, cam) = (made("test_resnet", head) for head in ("multiscale_cam", "cam"))
    method = map_method("grad-cam", model)
    evidence = map_method("built-in", cam).explain(images, classes, indices)
    torch.testing.assert_close(method.explain(images, classes, indices), evidence.detach(), atol=1e-6, rtol=1e-4)
    assert not method.is_on_grid and map_method("grad-cam", cam).is_on_grid


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_starts_as_the_black_box_of_the_same_seed(name: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    logits = made(name, BLACK_BOX)(images).logits
    assert torch.equal(made(name, "multiscale_cam")(images).logits, logits)
    for compatibility in ("parametrised", "dot"):
        model = made(name, "pay_attention", head_kwargs={"compatibility": compatibility})
        torch.testing.assert_close(model(images).logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(made(name, "local_cam", head_kwargs={"stage": -1})(images).logits, logits)


@pytest.mark.parametrize("head", ["multiscale_cam", "pay_attention"])
def test_takes_over_timms_classifier(head: str, shared: Callable[[str], Path]) -> None:
    source = f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    model = glasszoo.create_model(source, head=head, pretrained=True).eval()
    reference = timm.create_model(source, pretrained=True).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        explained, logits = model(images), reference(images)
    torch.testing.assert_close(explained.logits, logits, atol=1e-4, rtol=0)
    total = explained.maps.sum((-2, -1)) + explained.offset
    torch.testing.assert_close(total[:, 0], logits.max(1).values, atol=1e-3, rtol=0)
    assert explained.maps.shape[-2:] == (20, 20)


@pytest.mark.parametrize(
    ("head", "options"), [("local_cam", {"stage": -2}), ("multiscale_cam", {"stages": 4}), ("pay_attention", {})]
)
def test_a_checkpoint_holds_what_is_needed(head: str, options: dict[str, object], tmp_path: Path) -> None:
    model = made("test_resnet", head, head_kwargs=options)
    for parameter in model.head.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.5)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(f"local-dir:{tmp_path}")
    assert not any("layer4" in name or "fc" in name for name in loaded.state_dict()) or head != "local_cam"
    images = torch.randn(2, 3, 64, 96)
    for ours, theirs in zip(model(images), loaded(images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("head", ["local_cam", "multiscale_cam", "pay_attention"])
def test_timms_tools_work_on_it(head: str) -> None:
    model = made("test_resnet", head)
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5).param_groups
    own = {id(parameter) for parameter in model.get_classifier().parameters()}
    scales = {group["lr_scale"] for group in groups if any(id(parameter) in own for parameter in group["params"])}
    assert scales == {1.0} and min(g["lr_scale"] for g in groups) < 1
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3)
    model.set_grad_checkpointing()
    model.train()(torch.randn(2, 3, 64, 64)).logits.sum().backward()


def test_single_stages_take_the_old_way() -> None:
    """timm's `forward_features` and nothing else, so that neither time nor bits change."""
    for head in ("cam", BLACK_BOX):
        model = made("test_resnet", head)
        model.backbone.network.forward_intermediates = None  # would fail if it were called
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(model.backbone(images), model.backbone.network.forward_features(images))
        assert model.contract is (Contract.NONE if head == BLACK_BOX else Contract.LINEAR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": "local_cam", "head_kwargs": {"stage": -6}},
            "test_resnet has 5 stages, so the head cannot have stage -6",
        ),
        ({"head": "multiscale_cam", "head_kwargs": {"stages": 7}}, "test_resnet has 5 stages"),
        ({"head": "local_cam", "head_kwargs": {"stage": 2}}, "they count from the end"),
    ],
)
def test_stages_that_are_not_there_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made("test_resnet", **options)  # type: ignore[arg-type]


def test_a_stage_that_leaves_loose_ends_is_refused() -> None:
    """Timm taps Xception in the middle of a block and runs the block to its end."""
    with pytest.raises(InputError, match=r"xception41 goes on beyond stage -2 \(blocks.11.* so the head cannot have"):
        made("xception41", "local_cam", head_kwargs={"stage": -2})
    assert len(examine("xception41", (-2, -1)).stages) == 2


def test_a_cut_network_cannot_start_as_timms_classifier(shared: Callable[[str], Path]) -> None:
    source = f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    with pytest.raises(InputError, match="head 'local_cam' cannot start as timm's classifier: give num_classes"):
        glasszoo.create_model(source, head="local_cam", pretrained=True)
    assert isinstance(glasszoo.create_model(source, head="local_cam", pretrained=True, num_classes=4), ImageClassifier)


def test_features_are_timms_intermediates() -> None:
    """By number from the end, the last replaced by what timm's own head pools."""
    images = torch.randn(1, 3, 64, 64)
    for name in BACKBONES:
        model = backbone(name, (-4, -2, -1))
        listed: list[Tensor] = model.network.forward_intermediates(images, intermediates_only=True)
        for stage, expected in zip(model(images)[:2], (listed[-4], listed[-2]), strict=True):
            assert torch.equal(stage, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_backbone_is_examined_where_gradients_are_off(mode: Callable[[], torch.no_grad]) -> None:
    """Ending at a stage asks for gradients on the meta device, whatever the caller is about."""
    anatomy._examine.cache_clear()
    with mode():
        model = glasszoo.create_model("test_resnet", head="local_cam", num_classes=3)
    assert model.backbone.reduction == 8
