"""The original ProtoPNet's state dict becomes a model of ours: the same logits, and nothing is guessed.

What the original computes is written here once more, from the paper, on torchvision's networks.
"""

import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import transforms

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import ProtoPNet
from glasszoo.models import PROTOPNET_BACKBONES, InterpretableClassifier, from_protopnet, save_pretrained

Weights = dict[str, Tensor]
CLASSES, PER_CLASS, DIM = 4, 3, 16


@cache
def features_of(backbone: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Torchvision's network up to its features, named as in the original, with random weights everywhere."""
    if dtype != torch.float32:
        return deepcopy(features_of(backbone)).to(dtype)
    torch.manual_seed(0)
    with torch.device("meta"):  # VGG's classifier would take seconds to fill
        network = getattr(torchvision.models, backbone)(weights=None)
    features = nn.Sequential()
    if backbone.startswith("resnet"):
        for name, child in list(network.named_children())[:-2]:  # but average pooling and classifier
            features.add_module(name, child)
    else:
        features.add_module("features", network.features)
    if backbone.startswith("densenet"):  # in torchvision's forward, no module
        features.add_module("relu", nn.ReLU())
    features.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)  # type: ignore[arg-type]
            module.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    return features.eval()


def cells_of(state: Weights, features: Tensor) -> Tensor:
    """What the original compares with prototypes, from features `b f h w`: `b n d` for n cells, channels in 0..1."""
    cells = features.flatten(2).transpose(1, 2)
    weight = {name: tensor.to(features.dtype) for name, tensor in state.items() if name.startswith("add_on")}
    hidden = cells @ weight["add_on_layers.0.weight"][:, :, 0, 0].T + weight["add_on_layers.0.bias"]
    hidden = hidden.relu() @ weight["add_on_layers.2.weight"][:, :, 0, 0].T + weight["add_on_layers.2.bias"]
    return hidden.sigmoid()


def distances_of(state: Weights, backbone: str, images: Tensor) -> Tensor:
    """Squared distance of each prototype to its nearest cell, `b p`, as differences: no expansion that cancels."""
    cells = cells_of(state, features_of(backbone, images.dtype)(images))
    vectors = state["prototype_vectors"].flatten(1).to(images.dtype)
    return torch.cdist(cells, vectors[None], compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)


def logits_of(state: Weights, backbone: str, images: Tensor) -> Tensor:
    distances = distances_of(state, backbone, images)
    return torch.log((distances + 1) / (distances + 1e-4)) @ state["last_layer.weight"].to(images.dtype).T


def head_of(model: InterpretableClassifier) -> ProtoPNet:
    assert isinstance(model.head, ProtoPNet)
    return model.head


def images_of(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@cache
@torch.no_grad()
def built(backbone: str, classes: int, per_class: int, dim: int) -> Weights:
    features = features_of(backbone)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    found = features(images_of())
    width, count = found.shape[1], classes * per_class
    # Features as they are would saturate the sigmoid, and what saturates tells no names apart.
    state["add_on_layers.0.weight"] = torch.randn(dim, width, 1, 1) / found.std() / width**0.5
    state["add_on_layers.2.weight"] = torch.randn(dim, dim, 1, 1) * (2 / dim) ** 0.5
    state |= {f"add_on_layers.{number}.bias": torch.randn(dim) * 0.1 for number in (0, 2)}
    near = cells_of(state, found).flatten(0, 1)
    picked = near[torch.randint(len(near), (count,))]
    state["prototype_vectors"] = (picked + 0.05 * torch.randn(count, dim)).view(count, dim, 1, 1)
    state["ones"] = torch.ones(count, dim, 1, 1)
    own = torch.arange(classes)[:, None] == torch.arange(classes).repeat_interleave(per_class)
    state["last_layer.weight"] = torch.where(own, 1.0, -0.5) + 0.2 * torch.randn(classes, count)
    return state


def original(backbone: str = "resnet18", classes: int = CLASSES, per_class: int = PER_CLASS, dim: int = DIM) -> Weights:
    """A state dict with the original's names and shapes, whose prototypes lie near cells of `images_of()`."""
    return dict(built(backbone, classes, per_class, dim))


def pruned(state: Weights, dropped: set[int]) -> Weights:
    """Without some prototypes, as the original prunes: their rows and columns go."""
    kept = [number for number in range(len(state["prototype_vectors"])) if number not in dropped]
    rows = {name: state[name][kept] for name in ("prototype_vectors", "ones")}
    return state | rows | {"last_layer.weight": state["last_layer.weight"][:, kept]}


def converted(state: Weights | str | Path, backbone: str = "resnet18", **options: object) -> InterpretableClassifier:
    model = from_protopnet(state, backbone, **options)  # type: ignore[arg-type]
    assert isinstance(model, InterpretableClassifier) and not model.training
    return model


@torch.no_grad()
def assert_same_logits(model: InterpretableClassifier, state: Weights, backbone: str = "resnet18") -> None:
    images = images_of()
    expected = logits_of(state, backbone, images)
    assert expected.std(0).mean() > 0.01, "the images must differ, or nothing is tested"
    found = model(images, "all")
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(found.maps.sum((-2, -1)), found.logits, rtol=1e-4, atol=1e-3)


def refused(state: object, message: str, backbone: str = "resnet18", **options: object) -> None:
    with pytest.raises(InputError, match=message):
        from_protopnet(state, backbone, **options)  # type: ignore[arg-type]


def test_published_shapes_give_the_originals_logits() -> None:
    state = original("resnet34", classes=200, per_class=10, dim=128)
    assert state["prototype_vectors"].shape == (2000, 128, 1, 1) and state["last_layer.weight"].shape == (200, 2000)
    assert state["add_on_layers.0.weight"].shape == (128, 512, 1, 1)
    model = converted(state, "resnet34")
    assert_same_logits(model, state, "resnet34")
    assert model.num_classes == 200 and torch.equal(head_of(model).owners, torch.arange(2000) // 10)
    assert head_of(model).is_kept.all()


@pytest.mark.parametrize("backbone", ["resnet50", "densenet121", "vgg19", "vgg11_bn"])
def test_every_family_gives_the_originals_logits(backbone: str) -> None:
    state = original(backbone)
    assert_same_logits(converted(state, backbone), state, backbone)


@pytest.mark.parametrize("backbone", PROTOPNET_BACKBONES)
def test_every_backbone_has_the_originals_names_and_shapes(backbone: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, backbone)(weights=None).state_dict()
        ours = timm.create_model(backbone).state_dict()
    classifiers = ("fc.", "classifier.", "head.", "pre_logits.")
    shapes = [
        {name: tensor.shape for name, tensor in state.items() if not name.startswith(classifiers)}
        for state in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


@torch.no_grad()
def test_a_perfect_match_counts_as_in_the_original() -> None:
    """At distance 0 nothing but ε decides, log(1 / ε); in fp64, since fp32 has no 0 there."""
    state, images = original(), images_of().double()
    matches = cells_of(state, features_of("resnet18", torch.float64)(images)).flatten(0, 1)
    state["prototype_vectors"] = torch.cat([matches, matches + 0.1])[: CLASSES * PER_CLASS, :, None, None]
    model = converted(state).double()
    head_of(model).prototypes.copy_(state["prototype_vectors"].flatten(1))  # fp32 lost what makes them equal
    assert model(images).parts.amax().item() == pytest.approx(9.21034, abs=1e-4)
    torch.testing.assert_close(model(images).logits, logits_of(state, "resnet18", images), rtol=1e-6, atol=1e-6)


def test_class_names_preprocessing_and_origin_are_kept(tmp_path: Path) -> None:
    state, names = original(), ("ant", "bee", "cat", "dog")
    model = converted(state, class_names=list(names))
    save_pretrained(model, tmp_path)
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert again.config == model.config and again.class_names == names
    assert all(torch.equal(*pair) for pair in zip(model(images_of(), "all"), again(images_of(), "all"), strict=True))
    assert "an original ProtoPNet" in (tmp_path / "README.md").read_text()
    pixels = torch.rand(3, 60, 90, generator=torch.Generator().manual_seed(0))
    photo = transforms.functional.to_pil_image(pixels).resize((300, 400), Image.Resampling.BICUBIC)
    theirs = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.testing.assert_close(model.preprocess(photo), theirs(photo), rtol=0, atol=1e-5)


def test_names_of_a_parallel_model_are_known() -> None:
    state = original()
    parallel = {f"module.{name}": nn.Parameter(value, value.is_floating_point()) for name, value in state.items()}
    assert_same_logits(converted(parallel), state)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors"])
def test_a_file_of_weights_is_read(tmp_path: Path, name: str) -> None:
    state, path = original(), tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "old.pth")  # as torch wrote before 1.6
    assert_same_logits(converted(path), state)
    assert_same_logits(converted(str(path)), state)


class Whole(nn.Module):
    """Stands for the original's model, which is saved whole."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_whole_model_is_never_opened(tmp_path: Path, is_new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Whole(), tmp_path / "model.pth", _use_new_zipfile_serialization=is_new)
    refused(tmp_path / "model.pth", r"model\.pth holds more than weights.*torch\.save\(ppnet\.state_dict\(\)")
    assert not (tmp_path / "opened").exists()
    pickle.loads(pickle.dumps(Whole()))  # opening it would have shown
    assert (tmp_path / "opened").exists()


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", r"no such file: .*none\.pth")
    torch.save(original(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for name, part in {"a.pth": content[:1000], "b.pth": b"", "c.safetensors": content[:1000]}.items():
        (tmp_path / name).write_bytes(part)
        refused(tmp_path / name, rf"{name} is truncated or no file of weights")
    torch.save({"epoch": 3, "state_dict": original()}, tmp_path / "run.pth")
    refused(tmp_path / "run.pth", r"run\.pth holds 'epoch', which is no weight: the state dict itself expected")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", r"list\.pth holds no state dict: names and tensors expected, got a list")


DROPPED = {0, 5, 6, 8}  # of the classes 0, 1, 2, 2: two, two, one and three of each are left
LEFT = [0, 0, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_pruned_model_is_taken_with_its_classes(tmp_path: Path, kind: Callable[[list[int]], object]) -> None:
    state = pruned(original(), DROPPED)
    model = converted(state, prototype_classes=kind(LEFT))
    assert_same_logits(model, state)
    head = head_of(model)
    assert head.is_kept.tolist() == [True, True, False] * 2 + [True, False, False] + [True] * 3
    assert head.owners.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(head.prototypes[head.is_kept], state["prototype_vectors"].flatten(1))
    save_pretrained(model, tmp_path)
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert torch.equal(again(images_of()).logits, model(images_of()).logits)


@torch.no_grad()
def test_empty_places_change_no_loss() -> None:
    state = pruned(original(), DROPPED)
    state["prototype_vectors"] = state["prototype_vectors"] + 3  # so that cells, in 0..1, are nearer to 0 than to these
    model = converted(state, prototype_classes=LEFT)
    distances, targets = distances_of(state, "resnet18", images_of()), torch.tensor([2, 3])
    is_own = torch.tensor(LEFT) == targets[:, None]
    _, losses = model.forward_with_losses(images_of(), targets)
    cluster = distances.masked_fill(~is_own, torch.inf).amin(1).mean().item()
    separation = distances.masked_fill(is_own, torch.inf).amin(1).mean().item()
    assert losses["cluster"].item() == pytest.approx(cluster, rel=1e-3)
    assert losses["separation"].item() == pytest.approx(-separation, rel=1e-3)
    others = torch.tensor(LEFT) != torch.arange(CLASSES)[:, None]
    assert losses["sparsity"].item() == pytest.approx(state["last_layer.weight"][others].abs().sum().item(), rel=1e-4)


def test_prototypes_in_another_order_are_sorted_by_class() -> None:
    state, classes = original(), torch.tensor([3, 1, 0, 1, 2, 3, 0, 0, 1, 2, 3, 2])
    model = converted(state, prototype_classes=classes)
    assert_same_logits(model, state)
    order = [2, 6, 7, 1, 3, 8, 4, 9, 11, 0, 5, 10]
    assert torch.equal(head_of(model).prototypes, state["prototype_vectors"].flatten(1)[order])


def test_classes_without_prototypes_are_possible() -> None:
    state = pruned(original(), {3, 4, 5})
    model = converted(state, prototype_classes=[0, 0, 0, 2, 2, 2, 3, 3, 3])
    assert_same_logits(model, state)
    assert head_of(model).is_kept.view(CLASSES, PER_CLASS).any(1).tolist() == [True, False, True, True]


def test_classes_of_pruned_prototypes_are_not_guessed() -> None:
    refused(
        pruned(original(), {7}), r"11 prototypes for 4 classes, not as many for each: was it pruned\? give prototype"
    )
    # 8 prototypes for 4 classes would divide: the weights tell that the order is another.
    refused(pruned(original(), DROPPED), r"1 of 8 prototypes \(the first: 5\) count most for another class .*pruned\?")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0] * 11, "prototype_classes must be 12 whole numbers"),
        ([0.0] * 12, "prototype_classes must be 12 whole numbers"),
        (torch.eye(4).repeat(3, 1), "prototype_classes must be 12 whole numbers"),  # the original's one-hot rows
        ([0] * 11 + [4], r"must lie in 0 … 3: 'last_layer\.weight' has 4 rows"),
        ([-1] + [0] * 11, r"must lie in 0 … 3"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes: object, message: str) -> None:
    refused(original(), message, prototype_classes=classes)


@pytest.mark.parametrize(
    "name",
    [
        "features.layer1.0.conv1.weight",
        "features.bn1.num_batches_tracked",
        "add_on_layers.2.bias",
        "prototype_vectors",
        "ones",
        "last_layer.weight",
    ],
)
def test_a_missing_weight_is_named(name: str) -> None:
    state = original()
    del state[name]
    refused(state, f"the state dict lacks the weight '{name}'")


@pytest.mark.parametrize("name", ["features.fc.weight", "last_layer.bias", "prototypes"])
def test_a_surplus_weight_is_named(name: str) -> None:
    refused(original() | {name: torch.zeros(4)}, f"holds the weight '{name}', which resnet18 does not know")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("features.conv1.weight", (64, 4, 7, 7), r"\(64, 4, 7, 7\), but resnet18 needs \(64, 3, 7, 7\)"),
        ("add_on_layers.0.weight", (8, 512, 1, 1), r"\(8, 512, 1, 1\), but resnet18 needs \(16, 512, 1, 1\)"),
        ("ones", (12, 8, 1, 1), r"\(12, 8, 1, 1\), but resnet18 needs \(12, 16, 1, 1\)"),
        ("prototype_vectors", (12, 16, 3, 3), r"\(12, 16, 3, 3\), but \(prototypes, channels, 1, 1\) is needed"),
        ("prototype_vectors", (12, 16), r"\(12, 16\), but \(prototypes, channels, 1, 1\) is needed"),
        ("last_layer.weight", (4, 11), r"\(4, 11\), but \(classes, 12\) is needed"),
        ("last_layer.weight", (0, 12), r"\(0, 12\), but \(classes, 12\) is needed"),
    ],
)
def test_a_wrong_shape_is_named(name: str, shape: tuple[int, ...], message: str) -> None:
    refused(original() | {name: torch.ones(shape)}, f"'{name}' has shape {message}")


def test_what_we_cannot_compute_is_refused() -> None:
    deeper = {"add_on_layers.4.weight": torch.zeros(16, 16, 1, 1), "add_on_layers.4.bias": torch.zeros(16)}
    refused(original() | deeper, r"'add_on_layers\.4\.weight': an add-on of more than two convolutions")
    refused(original() | {"ones": torch.full((12, 16, 1, 1), 2.0)}, "'ones' holds other values than 1")
    refused(original(), "unknown backbone of the original ProtoPNet 'resnet35': did you mean 'resnet", "resnet35")
    refused(original(), "unknown backbone of the original ProtoPNet 'convnext_tiny'", "convnext_tiny")
    refused(original(), "lacks the weight 'features.layer1.2.conv1.weight'", "resnet34")
    refused(original(), "3 class names given for 4 classes", class_names=["a", "b", "c"])
