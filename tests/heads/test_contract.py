"""What every registered head owes: evidence that adds up, maps for the classes asked for, the same numbers again."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.heads import (
    Contract,
    Explain,
    Explained,
    Features,
    Head,
    create_head,
    head_class,
    list_heads,
    wanted_stages,
)

HEADS = list_heads()
SHAPES = [(3, 16, 7, 7), (1, 16, 5, 9), (2, 16, 1, 1)]


def channels(name: str, num_features: int) -> int | list[int]:
    """Of each stage that the head wants, the deepest having `num_features`."""
    count = len(wanted_stages(name))
    return num_features if count == 1 else [num_features - 3 * place for place in reversed(range(count))]


def features(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Features:
    """What the head is given where the final features have `shape`: earlier stages on finer grids of uneven sizes."""
    of_stages = channels(name, shape[1])
    if isinstance(of_stages, int):
        return torch.randn(shape, dtype=dtype)
    batch, _, height, width = shape
    places = range(len(of_stages) - 1, -1, -1)
    return [
        torch.randn(batch, number, height + place * (height + 1) // 2, width + place * (width - 1), dtype=dtype)
        for number, place in zip(of_stages, places, strict=True)
    ]


def each(features: Features, function: Callable[[Tensor], Tensor]) -> Features:
    return function(features) if isinstance(features, Tensor) else [function(stage) for stage in features]


def made(name: str, num_features: int = 16, num_classes: int = 6) -> Head:
    torch.manual_seed(0)
    head = create_head(name, channels(name, num_features), num_classes)
    for parameter in head.parameters():  # no identity may hold by a start value such as a zero bias
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def total(explained: Explained) -> Tensor:
    return explained.maps.sum((-2, -1)) + explained.offset


def wanted(head: Head, explained: Explained) -> Tensor:
    return head.contract.explained_quantity(explained.logits).gather(1, explained.classes)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_evidence_adds_up(
    name: str, shape: tuple[int, ...], training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    head = made(name).to(dtype).train(training)
    assert head.contract is not Contract.NONE
    explained = head(features(name, *shape, dtype=dtype), explain="all")
    gap = (total(explained) - wanted(head, explained)).abs().max()
    assert gap <= tolerance * explained.logits.abs().max()


@pytest.mark.parametrize("name", HEADS)
def test_evidence_adds_up_under_autocast(name: str) -> None:
    head = made(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = head(each(features(name, 2, 16, 7, 7), Tensor.bfloat16), explain="all")
    assert explained.logits.dtype == torch.float32
    gap = (total(explained) - wanted(head, explained)).abs().max()
    assert gap <= 1e-4 * explained.logits.abs().max()


@pytest.mark.parametrize("name", HEADS)
def test_shapes(name: str) -> None:
    head = made(name)
    given = features(name, 3, 16, 7, 5)
    for explain, count in (
        (0, 0),
        (1, 1),
        (4, 4),
        ("all", 6),
        (torch.tensor([5, 0, 2]), 1),
        (torch.zeros(3, 2).long(), 2),
    ):
        explained = head(given, explain)
        assert explained.logits.shape == (3, 6)
        assert explained.classes.shape == (3, count) and explained.classes.dtype == torch.int64
        assert explained.maps.shape[:2] == (3, count) and explained.maps.ndim == 4
        assert explained.offset.shape == (3, count)
        assert explained.parts.shape[0] == 3 and explained.parts.ndim == 4


@pytest.mark.parametrize("name", HEADS)
def test_maps_are_those_of_the_classes_asked_for(name: str) -> None:
    head = made(name).eval()
    given = features(name, 3, 16, 7, 5)
    every = head(given, "all")
    for explain in (1, 3, torch.tensor([[5, 0], [1, 1], [2, 3]]), torch.tensor([4, 0, 3])):
        some = head(given, explain)
        chosen = some.classes[..., None, None].expand(-1, -1, *every.maps.shape[-2:])
        torch.testing.assert_close(some.maps, every.maps.gather(1, chosen), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some.offset, every.offset.gather(1, some.classes), atol=1e-5, rtol=1e-5)
    assert torch.equal(head(given, 2).classes, every.logits.topk(2).indices)


@pytest.mark.parametrize("name", HEADS)
def test_logits_depend_on_neither_explain_nor_the_batch(name: str) -> None:
    head = made(name).eval()
    given = features(name, 4, 16, 6, 6)
    logits = head(given).logits
    explains: list[Explain] = [0, 1, 6, "all", torch.tensor([1, 2, 3, 4])]
    for explain in explains:
        assert torch.equal(head(given, explain).logits, logits)
    for image in range(4):
        alone = each(given, lambda stage, image=image: stage[image, None])  # type: ignore[misc]
        torch.testing.assert_close(head(alone).logits[0], logits[image], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_two_passes_give_the_same_bits_and_change_nothing(name: str) -> None:
    head = made(name).eval()
    before = copy.deepcopy(head.state_dict())
    given = features(name, 2, 16, 7, 7)
    first, second = head(given, "all"), head(given, "all")
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert all(torch.equal(tensor, before[key]) for key, tensor in head.state_dict().items())


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns(name: str) -> None:
    head = made(name).train()
    explained, losses = head.forward_with_losses(features(name, 4, 16, 7, 7), torch.tensor([0, 1, 2, 3]))
    loss = torch.nn.functional.cross_entropy(explained.logits, torch.tensor([0, 1, 2, 3]))
    torch.stack([loss, *losses.values()]).sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", HEADS)
def test_the_field_guide_entry(name: str) -> None:
    assert (head_class(name).__doc__ or "").strip(), "a head's class tells what it assumes and what its map means"


@pytest.mark.parametrize(
    ("explain", "message"),
    [
        (7, "the model has 6 classes, so 0 to 6 can be asked"),
        (-1, "0 to 6 can be asked"),
        (True, 'takes an int, "all" or a tensor of class ids, not bool'),
        (1.0, "not float"),
        ("most", "explain='most'"),
        (torch.tensor([1, 2, 3]), r"shape \(2,\) or \(2, k\) expected, got \(3, 1\)"),
        (torch.tensor([1.0, 2.0]), "must be int64, got float32"),
        (torch.tensor([0, 6]), "class 6 is not among 0 to 5"),
        (torch.tensor([-1, 5]), "class -1 is not among 0 to 5"),
    ],
)
def test_bad_explain_is_named(explain: Explain, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made("cam")(torch.randn(2, 16, 3, 3), explain)
