"""Prototypes that are taken out of a best-cell head: exactly their points go, and what may not go stays."""

from typing import Any

import pytest
import torch
from prototype_stubs import Images, Plain, loader
from torch import nn

from glasszoo.common.errors import InputError
from glasszoo.heads import create_head
from glasszoo.heads.best_cell import BestCellHead

HEADS: dict[str, dict[str, Any]] = {
    "protopnet": {"per_class": 3, "dim": 4, "connection": "signed"},
    "tesnet": {"per_class": 3, "dim": 4},
    "st_protopnet": {"per_branch": 2, "dim": 4},
    "deformable_protopnet": {"per_class": 3, "dim": 4},
    "protopool": {"prototypes": 7, "slots": 3, "dim": 4},
    "pipnet": {"num_prototypes": 7, "threshold": 0.0},
    "mgproto": {"per_class": 4, "dim": 4},
}
LINEAR = [name for name in HEADS if name not in ("protopool", "mgproto")]


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    head = create_head(name, 5, 2, **(HEADS[name] | options)).double().eval()
    assert isinstance(head, BestCellHead)
    return head


@pytest.mark.parametrize("name", LINEAR)
def test_removing_takes_away_exactly_these_points(name: str) -> None:
    """The logits afterwards by a loop over what is left, from the weights and similarities of before."""
    head = built(name)
    for parameter in head.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    features = torch.randn(3, 5, 3, 4, dtype=torch.float64)
    state = head.score(features)
    weight, count = head.weight.clone(), len(head.is_kept)
    gone = [1, count - 1]
    head.remove(gone)
    after = head(features, "all")
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for image in range(3):
        for of_class in range(2):
            for number in range(count):
                if number not in gone:
                    expected[image, of_class] += weight[of_class, number] * state.activations[image, number]
    torch.testing.assert_close(after.logits, expected)
    torch.testing.assert_close(after.maps.sum((2, 3)), expected)
    assert not torch.allclose(after.logits, state.logits), "they counted for something"
    assert head.is_kept.tolist() == [number not in gone for number in range(count)]
    points = head.points(head.score(features), torch.tensor([[0, 1]] * 3))
    assert not points[..., gone].any() and points[..., 0].all()


def test_a_removed_slot_of_the_pool_counts_for_no_class() -> None:
    head = built("protopool")
    with torch.no_grad():
        head.slots.logits.zero_()
        for slot, number in enumerate([0, 1, 2, 2, 3, 4]):  # 2 is shared
            head.slots.logits[slot, number] = 1
    features = torch.randn(3, 5, 3, 4, dtype=torch.float64)
    before = head.score(features)
    head.remove([2])
    gained = before.logits - head.score(features).logits
    shares = before.activations[:, 2] - before.means[:, 2]
    torch.testing.assert_close(gained, shares[:, None].expand(-1, 2))
    head.remove([0])
    with pytest.raises(InputError, match="class 0 would be left without any prototype"):
        head.remove([1])
    head.remove([5, 6])  # no slot holds them: no class can miss them


def test_what_is_left_of_a_mixture_is_a_density_again() -> None:
    head = built("mgproto")
    priors = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    head.priors.copy_(priors)
    features = torch.randn(3, 5, 3, 4, dtype=torch.float64)
    densities = head.score(features).activations
    head.remove([0, 3])
    expected = (densities[:, 1] * 0.2 + densities[:, 2] * 0.3) / 0.5
    torch.testing.assert_close(head.score(features).logits[:, 0], expected.log())
    torch.testing.assert_close(head.score(features).logits[:, 1], (densities[:, 4:] @ priors[4:]).log())


def test_a_mixture_whose_last_parts_had_lost_their_priors_still_counts() -> None:
    head = built("mgproto")
    head.priors.copy_(torch.tensor([1.0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]))
    head.remove([0, 2])
    assert head.priors.tolist() == [0, 0.5, 0, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert head.score(torch.randn(1, 5, 2, 2, dtype=torch.float64)).logits.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_what_cannot_be_removed_is_said_and_nothing_changes(name: str) -> None:
    head = built(name)
    count = len(head.is_kept)
    head.remove([1])
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    for numbers, message in (
        ([0, count], f"there is no prototype {count}: they are 0 to {count - 1}"),
        ([-1], f"there is no prototype -1: they are 0 to {count - 1}"),
        ([0, 1], "prototype 1 is removed already"),
        (range(2, count), "class 1 would be left without any prototype"),
    ):
        if name in ("pipnet", "protopool") and "class" in message:
            continue  # shared: which class it is is not theirs to say; see the tests above and below
        with pytest.raises(InputError, match=f"^{message}$"):
            head.remove(numbers)
        assert all(torch.equal(tensor, before[key]) for key, tensor in head.state_dict().items())


def test_a_class_that_had_none_does_not_stand_in_the_way() -> None:
    """PIP-Net's pruning leaves such classes; one that a class counts on alone may not go."""
    head = built("pipnet")
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.weight[1, 2:4] = 1.0
    head.remove([2, 6])
    with pytest.raises(InputError, match="class 1 would be left without any prototype"):
        head.remove([3])


@pytest.mark.parametrize("name", HEADS)
def test_asking_what_would_be_left_changes_nothing(name: str) -> None:
    head = built(name)
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    left = head.without([0])
    assert left.tolist() == [False] + [True] * (len(left) - 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in head.state_dict().items())


def test_a_budget_is_not_spent_on_what_is_gone() -> None:
    """What counts against its class adds less than the nothing of a removed one, and still comes before it."""
    head = built("protopnet", connection="signed", per_class=3)
    with torch.no_grad():
        head.connection.weight.copy_(-torch.ones(2, 6))
    head.double().remove([0])
    batches = [Images(batch.images.double(), batch.labels, batch.ids) for batch in loader()]
    assert head.prune_to(5, batches, Plain(head)) == {"prototypes": 5.0}
    assert head.is_kept.tolist() == [False] + [True] * 5


def test_a_budget_goes_by_means_and_not_by_how_many_images_a_class_has() -> None:
    """Class 0 has nine images and class 1 one; all prototypes are found alike, so that weights decide."""
    head = built("protopnet", connection="non_negative", per_class=2, dim=None)
    with torch.no_grad():
        head.prototypes.fill_(1)
        for number, weight in enumerate([1.0, 2.0, 3.0, 4.0]):
            head.connection.weight[number // 2, number] = weight
    images = torch.ones(10, 5, 2, 2, dtype=torch.float64)
    batches = [
        Images(images[:6], torch.zeros(6, dtype=torch.int64), list("abcdef")),
        Images(images[6:], torch.tensor([0, 0, 0, 1]), list("ghij")),
    ]
    assert head.prune_to(3, batches, Plain(head)) == {"prototypes": 3.0}
    assert head.is_kept.tolist() == [False, True, True, True]


def test_no_budget_below_one() -> None:
    with pytest.raises(InputError, match="budget=0: must be at least 1"):
        built("protopnet").prune_to(0, [], nn.Identity())
