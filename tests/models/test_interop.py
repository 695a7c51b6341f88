"""The view of plain logits, and timm's tools on it, held to what they say of timm's own network of the same weights."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import apply_test_time_pool
from timm.models import FeatureHookNet, FeatureListNet, load_checkpoint
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_weight_decay
from timm.utils import AverageMeter, ModelEmaV3, accuracy, freeze, reparameterize_model, unfreeze
from torch import Tensor, nn

import glasszoo
from glasszoo.models import BLACK_BOX, ImageClassifier, InterpretableClassifier, save_pretrained

# The view


def test_the_view_gives_plain_logits_and_computes_no_evidence(
    ours: InterpretableClassifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, wanted = ours.as_logits(), ours(images).logits
    asked, evidence = [], ours.head.evidence
    monkeypatch.setattr(
        ours.head, "evidence", lambda state, classes: asked.append(classes.shape[1]) or evidence(state, classes)
    )
    assert type(view(images)) is Tensor and torch.equal(view(images), wanted)
    assert set(asked) <= {0}
    with torch.no_grad():
        assert not view(images).requires_grad


def test_the_view_shares_everything_with_the_model(ours: InterpretableClassifier, images: Tensor) -> None:
    view = ours.as_logits()
    assert {id(parameter) for parameter in view.parameters()} == {id(parameter) for parameter in ours.parameters()}
    assert dict(view.named_modules())["model.backbone.network.layer4"] is ours.backbone.network.layer4
    images.requires_grad_()
    view(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert view.num_classes == 7 and view.pretrained_cfg == ours.pretrained_cfg


def test_the_view_keeps_in_step_with_train_and_eval(ours: InterpretableClassifier) -> None:
    view = ours.as_logits()
    assert not view.training
    ours.train()
    assert view.training and view.model.training
    view.eval()
    assert not any(module.training for module in ours.modules())
    was_training = view.training  # as many tools do
    view.train().train(was_training)
    assert not ours.training


@pytest.mark.parametrize("head", ["cam", "gmp", "protopnet", BLACK_BOX])
def test_the_view_of_any_head(head: str, images: Tensor) -> None:
    model = glasszoo.create_model("test_resnet", head=head, num_classes=7).eval()
    assert torch.equal(model.as_logits()(images), model(images).logits)


def test_the_view_compiles_and_exports(ours: InterpretableClassifier, images: Tensor) -> None:
    view = ours.as_logits()
    compiled = torch.compile(view, backend="eager", fullgraph=True)
    exported = torch.export.export(view, (images,)).module()
    other = images.flip(-1) + 1
    for model in (compiled, exported):
        torch.testing.assert_close(model(other), view(other), atol=1e-5, rtol=1e-4)


# timm


def validated(model: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], list[float]]:
    """Timm's validate.py, step by step: its data settings, then loss, top 1 and top 5 (the script is in no wheel)."""
    config = timm.data.resolve_data_config(options, model=model)
    model, is_test_time_pool = apply_test_time_pool(model, config)
    assert not is_test_time_pool
    assert config == timm.data.resolve_input_data_config(model, options)
    dataset = timm.data.create_dataset("", folder)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    settings = {name: config[name] for name in names}
    loader = timm.data.create_loader(dataset, batch_size=4, use_prefetcher=False, num_workers=0, **settings)
    meters = [AverageMeter() for _ in range(3)]
    model.eval()
    with torch.inference_mode():
        for images, targets in loader:
            output = model(images)
            loss = nn.functional.cross_entropy(output, targets)
            for meter, value in zip(meters, [loss, *accuracy(output, targets, topk=(1, 5))], strict=True):
                meter.update(value.item(), output.shape[0])
    return config, [meter.avg for meter in meters]


@pytest.mark.parametrize("options", [{}, {"input_size": (3, 192, 192)}], ids=["own size", "larger"])
def test_timm_validates_the_view(
    theirs: Any, ours: InterpretableClassifier, tmp_path: Path, options: dict[str, Any]
) -> None:
    generator = np.random.default_rng(0)
    for number in range(14):
        folder = tmp_path / f"class{number % 7}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (5, 7, 3), np.uint8)  # coarse noise: images that differ
        Image.fromarray(pixels).resize((210, 180)).save(folder / f"{number}.png")
    del theirs.default_cfg  # else timm pools at test time, which no head of ours does
    expected, (loss, *accuracies) = validated(theirs, tmp_path, **options)
    config, (our_loss, *our_accuracies) = validated(ours.as_logits(), tmp_path, **options)
    assert config == expected and config["input_size"] == options.get("input_size", (3, 160, 160))
    assert our_accuracies == accuracies and our_loss == pytest.approx(loss, rel=1e-5)
    assert 0 < accuracies[1] < 100


def test_a_folder_that_timm_saved(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """It says how many classes and channels there are, and with which arguments timm built the model."""
    theirs = tuned(in_chans=1, output_stride=8)
    timm.models.save_for_hf(theirs, tmp_path / "theirs")
    options: dict[str, Any] = {"pretrained": True, "in_chans": 1}
    save_pretrained(glasszoo.create_model(f"local-dir:{tmp_path / 'theirs'}", **options), tmp_path / "ours")
    grey = torch.randn(2, 1, 64, 96)
    for model in (
        glasszoo.create_model(f"local-dir:{tmp_path / 'theirs'}", **options).eval(),
        glasszoo.create_model(f"local-dir:{tmp_path / 'theirs'}", output_stride=8, **options).eval(),
        glasszoo.load_pretrained(f"local-dir:{tmp_path / 'ours'}"),
    ):
        torch.testing.assert_close(model(grey).logits, theirs(grey), atol=1e-5, rtol=1e-5)
        assert model.num_classes == 7 and model.grid is not None and model.grid.stride == 8


@pytest.mark.parametrize("tool", [FeatureListNet, FeatureHookNet, FeatureGetterNet])
def test_timms_feature_extractors(
    tool: Callable[..., nn.Module], theirs: Any, ours: InterpretableClassifier, images: Tensor
) -> None:
    features = tool(ours.backbone.network, out_indices=(1, 2, 4))(images)
    for one, other in zip(features, tool(theirs, out_indices=(1, 2, 4))(images), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(features[-1], ours.backbone(images))


def test_timms_intermediates_of_the_network(theirs: Any, ours: InterpretableClassifier, images: Tensor) -> None:
    final, stages = ours.backbone.network.forward_intermediates(images)
    expected, their_stages = theirs.forward_intermediates(images)
    assert torch.equal(final, expected) and torch.equal(final, ours.backbone(images))
    assert all(torch.equal(one, other) for one, other in zip(stages, their_stages, strict=True))


def test_timm_freezes_and_unfreezes(ours: InterpretableClassifier, images: Tensor) -> None:
    before = ours(images).logits
    freeze(ours, ["backbone"])
    assert {name for name, parameter in ours.named_parameters() if parameter.requires_grad} == {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    torch.testing.assert_close(ours.train()(images).logits, before, atol=1e-5, rtol=1e-4)  # statistics frozen as well
    unfreeze(ours, ["backbone"])
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert not torch.allclose(ours.train()(images).logits, before, atol=1e-3)


@pytest.mark.parametrize("wants_view", [False, True])
def test_timms_weight_decay_groups(ours: InterpretableClassifier, wants_view: bool) -> None:
    model = ours.as_logits() if wants_view else ours
    free, decaying = (group["params"] for group in param_groups_weight_decay(model, 0.1))
    assert any(parameter is ours.head.classifier.weight for parameter in decaying)  # type: ignore[union-attr]
    assert any(parameter is ours.head.classifier.bias for parameter in free)  # type: ignore[union-attr]
    assert len(free) + len(decaying) == len(list(ours.parameters()))


def test_timms_average_of_the_view(ours: InterpretableClassifier, images: Tensor) -> None:
    view = ours.as_logits()
    before = view(images)
    average = ModelEmaV3(view, decay=0.5)
    with torch.no_grad():
        ours.head.classifier.bias += 2.0  # type: ignore[union-attr, operator]
    average.update(view)
    torch.testing.assert_close(average.module(images), before + 1)
    torch.testing.assert_close(view(images), before + 2)


def test_timm_reparameterizes_it(tuned: Callable[..., Any], images: Tensor) -> None:
    model = glasszoo.wrap(tuned("repvgg_a0"))
    fused = reparameterize_model(model)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert count < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) / 2
    for one, other in zip(fused(images, "all"), model(images, "all"), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_timm_loads_our_checkpoint(ours: InterpretableClassifier, images: Tensor, tmp_path: Path) -> None:
    save_pretrained(ours, tmp_path)
    fresh = glasszoo.create_model("test_resnet", num_classes=7).eval()
    assert not torch.equal(fresh(images).logits, ours(images).logits)
    load_checkpoint(fresh, str(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(images).logits, ours(images).logits)


# A plain module


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_share_nothing(
    copied: Callable[[ImageClassifier], ImageClassifier], ours: InterpretableClassifier, images: Tensor
) -> None:
    for model in (ours, ours.as_logits()):
        before, twin = model(images), copied(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        for one, other in zip(before, model(images), strict=True):
            assert torch.equal(one, other)
        twin.load_state_dict(model.state_dict())
        for one, other in zip(before, twin(images), strict=True):
            assert torch.equal(one, other)
