"""A classifier that somebody fine-tuned with timm becomes one that explains: the same logits, exact evidence."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.models import BLACK_BOX, BlackBoxClassifier, ImageClassifier, Preprocessing, save_pretrained

Tuned = Callable[..., Any]
FOLDABLE = ["test_resnet", "test_efficientnet", "test_byobnet"]


def images_of(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 96, generator=torch.Generator().manual_seed(1))


def assert_explains(model: ImageClassifier, theirs: Any, images: Tensor) -> None:
    """The logits are those of `theirs`, which are no trivial ones, and the evidence of every class adds up to them."""
    with torch.no_grad():
        explained, logits = model(images, "all"), theirs(images)
    scale = logits.abs().max()
    assert logits.std(0).max() > 1e-3 * scale and explained.maps.abs().sum() > 0
    assert (explained.logits - logits).abs().max() <= 1e-5 * scale
    assert (explained.maps.sum((-2, -1)) + explained.offset - logits).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("architecture", FOLDABLE)
@pytest.mark.parametrize("head", ["cam", "sparse_cam"])
def test_a_live_model(tuned: Tuned, architecture: str, head: str) -> None:
    theirs = tuned(architecture)
    model = glasszoo.wrap(theirs, head)
    assert not model.training and model.config.head == head and model.num_classes == 7
    assert_explains(model, theirs, images_of())


BEYOND: dict[str, tuple[str, dict[str, Any]]] = {
    "norm": ("test_convnext", {}),
    "simple norm": ("convnext_zepto_rms", {}),
    "activation": ("mobilenetv3_small_050", {}),
    "learned scale": ("hgnetv2_b0", {}),
    "channels last": ("mambaout_femto", {}),
    "before pooling": ("lowformer_e1", {}),
    "window": ("vgg11", {}),
    "two branches": ("repvit_m0_9", {"distillation": True}),
    "maximum": ("test_resnet", {"global_pool": "max"}),
    "both": ("test_efficientnet", {"global_pool": "avgmax"}),
    "both apart": ("test_resnet", {"global_pool": "catavgmax"}),
}


@pytest.mark.parametrize("case", BEYOND)
def test_more_than_a_linear_layer_after_average_pooling(tuned: Tuned, case: str, tmp_path: Path) -> None:
    architecture, options = BEYOND[case]
    theirs = tuned(architecture, **options)
    model = glasszoo.wrap(theirs)
    assert model.config.head == ("cam" if case == "two branches" else "dynamic_cam")
    save_pretrained(model, tmp_path)
    loaded = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert loaded.config == model.config
    assert not {name for name, _ in loaded.backbone.named_parameters() if "head" in name.split(".")}
    # Far from 0, so that two images differ in the features of every one of these untrained networks.
    images = 10 * torch.randn(2, 3, 160, 192, generator=torch.Generator().manual_seed(2))
    for one in (model, loaded):
        assert_explains(one, theirs, images)


@pytest.mark.parametrize("architecture", FOLDABLE)
def test_it_is_saved_and_loaded_like_any_other(tuned: Tuned, architecture: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"in_chans": 1, "act_layer": "gelu", "drop_path_rate": 0.1}
    if architecture != "test_byobnet":  # GELU has no place in its config
        options["output_stride"] = 16
    else:
        del options["act_layer"]
    theirs = tuned(architecture, **options)
    model = glasszoo.wrap(theirs, class_names=list("abcdefg"))
    save_pretrained(model, tmp_path)
    loaded = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert loaded.config == model.config and loaded.class_names == tuple("abcdefg")
    assert loaded.config.output_stride == options.get("output_stride") and loaded.config.in_chans == 1
    for one, other in zip(loaded(images_of(1), "all"), model(images_of(1), "all"), strict=True):
        assert torch.equal(one, other)
    assert_explains(loaded, theirs, images_of(1))


def test_the_model_given_stays_as_it_is(tuned: Tuned) -> None:
    theirs = tuned()
    theirs.train()
    theirs.layer1.eval()  # as somebody who froze it
    before = copy.deepcopy(theirs)
    wrapped = glasszoo.wrap(theirs)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    assert theirs.training and not theirs.layer1.training
    assert [name for name, _ in theirs.named_modules()] == [name for name, _ in before.named_modules()]
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("inside", [nn.DataParallel, torch.compile, ModelEmaV3])
def test_a_live_model_inside_another(tuned: Tuned, inside: Callable[[nn.Module], nn.Module]) -> None:
    theirs = tuned()
    assert_explains(glasszoo.wrap(inside(theirs)), theirs, images_of())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_become_float32(tuned: Tuned, dtype: torch.dtype) -> None:
    theirs = tuned().to(dtype)
    model = glasszoo.wrap(theirs)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_explains(model, theirs.float(), images_of())


def test_a_classifier_put_in_by_hand(tuned: Tuned) -> None:
    theirs = tuned()
    theirs.fc = nn.Linear(theirs.num_features, 5)  # as many do; timm's num_classes stays 7
    model = glasszoo.wrap(theirs)
    assert model.num_classes == 5
    assert_explains(model, theirs, images_of())


def test_a_black_box_keeps_what_cannot_be_folded(tuned: Tuned, tmp_path: Path) -> None:
    repvit = timm.create_model("repvit_m0_9", num_classes=7).eval()  # of two classifiers with norms
    for theirs in (tuned("test_convnext"), tuned(global_pool="max"), repvit):
        model = glasszoo.wrap(theirs, BLACK_BOX)
        save_pretrained(model, tmp_path)
        for ours in (model, glasszoo.load_pretrained(f"local-dir:{tmp_path}")):
            assert isinstance(ours, BlackBoxClassifier)
            torch.testing.assert_close(ours(images_of()).logits, theirs(images_of()))


def test_preprocessing_and_names_come_with_a_live_model(tuned: Tuned) -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "input_size": (3, 96, 96), "label_names": list("ABCDEFG")}
    theirs = tuned(pretrained_cfg_overlay=overlay)
    model = glasszoo.wrap(theirs)
    assert model.config.preprocessing.mean == (0.1, 0.2, 0.3)
    assert model.config.preprocessing.input_size == (3, 96, 96)
    assert model.class_names == tuple("ABCDEFG")
    given = Preprocessing((3, 80, 80))
    assert glasszoo.wrap(theirs, class_names=list("tuvwxyz"), preprocessing=given).class_names == tuple("tuvwxyz")
    assert glasszoo.wrap(theirs, preprocessing=given).config.preprocessing == given
    grey = Preprocessing((1, 80, 80), (0.5,), (0.5,))
    assert glasszoo.wrap(tuned(in_chans=1), preprocessing=grey).config.preprocessing == grey
    theirs.fc = nn.Linear(theirs.num_features, 5)
    assert glasszoo.wrap(theirs).class_names == tuple("01234")  # seven names fit no five classes


def saved(state: Any, path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "plain", "in parallel", "compiled", "timm's", "averaged"])
def test_a_file(tuned: Tuned, form: str, tmp_path: Path) -> None:
    theirs = tuned("test_efficientnet", in_chans=1, num_classes=3)
    state = theirs.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    content = {
        "in parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "timm's": {"epoch": 3, "arch": "test_efficientnet", "state_dict": state, "version": 2},
        "averaged": {"state_dict": other, "state_dict_ema": state},
    }.get(form, state)
    path = saved(content, tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth"))
    model = glasszoo.wrap(path, architecture="test_efficientnet", backbone_kwargs={"in_chans": 1})
    assert model.num_classes == 3 and not model.training
    assert_explains(model, theirs, images_of(1))
    save_pretrained(model, tmp_path / "ours")
    assert_explains(glasszoo.load_pretrained(f"local-dir:{tmp_path / 'ours'}"), theirs, images_of(1))


def test_a_file_with_timms_arguments_and_tag(tuned: Tuned, tmp_path: Path) -> None:
    theirs = tuned(output_stride=8)
    path = saved({name: t for name, t in theirs.state_dict().items() if "num_batches" not in name}, tmp_path / "w.pth")
    model = glasszoo.wrap(str(path), architecture="test_resnet.r160_in1k", backbone_kwargs={"output_stride": 8})
    assert model.config.architecture == "test_resnet" and model.config.output_stride == 8
    expected = timm.models.get_pretrained_cfg("test_resnet.r160_in1k")
    assert model.config.preprocessing.mean == expected.mean and expected.mean != Preprocessing().mean
    assert_explains(model, theirs, images_of())


def changed(model: Any, **modules: nn.Module) -> Any:
    for name, module in modules.items():
        setattr(model, name, module)
    return model


LIVE_ERRORS: dict[str, tuple[Callable[[Tuned], Any], str]] = {
    "layers": (
        lambda tuned: changed(tuned(), fc=nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 7))),
        r"lacks the weight 'fc\.weight'",
    ),
    "softmax": (
        lambda tuned: changed(tuned(), fc=nn.Sequential(nn.Linear(96, 7), nn.Softmax(1))),
        r"between features and logits stands Softmax fc\.1: give num_classes",
    ),
    "not timm's": (lambda tuned: torchvision.models.resnet18(), "timm did not build this ResNet"),
    "no classifier": (lambda tuned: timm.create_model("test_resnet", num_classes=0), "has no classifier"),
    "features": (lambda tuned: timm.create_model("test_resnet", features_only=True), "FeatureListNet has no classif"),
    "no CNN": (lambda tuned: tuned("test_vit"), "test_vit is no CNN.*the nearest CNNs are"),
    "ours": (lambda tuned: glasszoo.create_model("test_resnet", num_classes=2), "a head of glasszoo already: 'cam'"),
    "no weights": (lambda tuned: changed(tuned(), layer2=nn.Identity()), r"lacks the weight 'layer2\.0"),
    "no bias": (lambda tuned: changed(tuned(), fc=nn.Linear(96, 7, bias=False)), r"a test_resnet, lacks .*fc\.bias"),
    "other function": (lambda tuned: changed(tuned(), maxpool=nn.AvgPool2d(3, 2, 1)), "computes something else"),
    "argument": (lambda tuned: tuned(norm_layer=nn.BatchNorm2d), "built with norm_layer=.*config.json"),
}


@pytest.mark.parametrize("case", LIVE_ERRORS)
def test_a_live_model_that_cannot_be_wrapped(tuned: Tuned, case: str) -> None:
    make, message = LIVE_ERRORS[case]
    model = make(tuned)
    if case == "layers":
        model(images_of())  # gives the lazy layer its size
    with pytest.raises(InputError, match=message):
        glasszoo.wrap(model)


def test_a_head_that_is_no_linear_classifier(tuned: Tuned) -> None:
    with pytest.raises(InputError, match="head 'gmp' cannot start as timm's classifier"):
        glasszoo.wrap(tuned(), "gmp")
    with pytest.raises(InputError, match="head 'lse' starts near timm's classifier, but not as it"):
        glasszoo.wrap(tuned(), "lse")
    with pytest.raises(
        InputError, match="'sparse_cam' can take over a linear layer .* more before it \\(pool, norm\\)"
    ):
        glasszoo.wrap(tuned("test_convnext"), "sparse_cam")
    with pytest.raises(InputError, match="unknown head"):
        glasszoo.wrap(tuned(), "cma")
    with pytest.raises(InputError, match="a live model knows its own"):
        glasszoo.wrap(tuned(), architecture="test_resnet")
    with pytest.raises(InputError, match="2 class names given for 7 classes"):
        glasszoo.wrap(tuned(), class_names=["a", "b"])


FILE_ERRORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str, str]] = {
    "no classifier": (
        lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("fc")},
        "test_resnet",
        r"w\.pth holds no classifier of test_resnet \(fc\.weight is missing\): give num_classes",
    ),
    "other channels": (lambda state: state | {"conv1.0.weight": torch.zeros(16, 1, 3, 3)}, "test_resnet", "has shape"),
    "left over": (
        lambda state: state | {"aux.weight": torch.zeros(1)},
        "test_resnet",
        "'aux.weight', which test_resnet",
    ),
    "missing": (lambda state: {"fc.weight": state["fc.weight"]}, "test_resnet", r"lacks the weight 'conv1\.0"),
    "other architecture": (lambda state: state, "resnet18", r"lacks the weight 'conv1\.weight'"),
    "unknown architecture": (lambda state: state, "test_resent", "unknown backbone.*'test_resnet'"),
    "no CNN": (lambda state: state, "test_vit", "test_vit is no CNN"),
    "no tensors": (lambda state: {"lr": 0.1}, "test_resnet", "holds 'lr', which is no weight"),
    "no dict": (lambda state: [state], "test_resnet", "truncated or no file of weights"),
    "whole model": (lambda state: nn.Linear(2, 2), "test_resnet", "more than weights.*a pickle can run any code"),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_a_file_that_cannot_be_wrapped(tuned: Tuned, case: str, tmp_path: Path) -> None:
    make, architecture, message = FILE_ERRORS[case]
    path = saved(make(tuned().state_dict()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        glasszoo.wrap(path, architecture=architecture)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_broken_file(tuned: Tuned, name: str, share: float, tmp_path: Path) -> None:
    path = saved(tuned().state_dict(), tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=f"{name} is truncated or no file of weights"):
        glasszoo.wrap(path, architecture="test_resnet")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*w\.pth"):
        glasszoo.wrap(tmp_path / "w.pth", architecture="test_resnet")
    with pytest.raises(InputError, match="is a folder: create_model"):
        glasszoo.wrap(tmp_path, architecture="test_resnet")
    with pytest.raises(InputError, match='give architecture="resnet50"'):
        glasszoo.wrap(tmp_path / "w.pth")
