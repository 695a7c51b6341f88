"""The misalignment attack: exact scores of maps drawn by hand, maps whose reach is known, a model left alone."""

import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.evaluation import evaluate
from glasszoo.evaluation.misalignment import (
    activation_change,
    attacked_maps,
    box_of,
    high_region,
    location_change,
    misalignment,
    rank_change,
    strongest_prototypes,
)
from glasszoo.models import ImageClassifier

TARGETS = torch.zeros(4).long()


def bar(first: int) -> Tensor:
    """A map of 10 × 10 pixels, high in ten of one row and the next, from pixel `first` on in reading order."""
    maps = torch.zeros(100)
    maps[first : first + 10] = torch.arange(10, 0, -1.0)
    return maps.view(1, 10, 10)


def test_location_change_by_hand() -> None:
    """Regions of ten pixels each: the same, apart, five shared of fifteen, and one shared of nineteen."""
    for first, expected in ((30, 0.0), (40, 100.0), (35, 100 * (1 - 5 / 15)), (39, 100 * (1 - 1 / 19))):
        assert location_change(bar(30), bar(first)).item() == pytest.approx(expected, abs=1e-5)
    assert location_change(bar(30), 3 * bar(30) - 7).item() == 0  # a place is no height


def test_half_of_the_region_shared_is_an_overlap_of_a_third() -> None:
    wide = torch.zeros(1, 20, 20)
    wide[0, :4, :10] = 1
    moved = wide.roll(5, 2)
    assert location_change(wide, moved).item() == pytest.approx(100 * 2 / 3)


def test_a_constant_map_has_no_place() -> None:
    flat = torch.ones(1, 10, 10)
    assert location_change(flat, bar(0)).isnan().all()
    assert location_change(bar(0), flat).tolist() == [100]
    assert not high_region(flat, 0.1).any()


def test_a_region_has_no_more_pixels_than_stand_out() -> None:
    few = torch.zeros(1, 10, 10)
    few[0, 5, 5:8] = 1
    assert high_region(few, 0.1).sum() == 3
    assert high_region(torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(0)), 0.1).sum() == 10


def test_activation_change_by_hand() -> None:
    before, after = torch.tensor([2.0, 2.0, 2.0, 0.5, 0.0, -1.0]), torch.tensor([2.0, 0.5, -3.0, 0.75, 1.0, 1.0])
    scores = activation_change(before, after)
    assert scores[:4].tolist() == [0, 75, 100, -50] and scores[4:].isnan().all()


def test_rank_change_by_hand() -> None:
    before = torch.tensor([[5.0, 4.0, 3.0], [5.0, 4.0, 3.0], [1.0, 1.0, 2.0]])
    after = torch.tensor([[2.0, 4.0, 3.0], [5.0, 6.0, 3.0], [1.0, 0.0, 0.0]])
    assert rank_change(before, after, torch.tensor([0, 1, 0])).tolist() == [2, -1, -1]


def test_boxes_by_hand() -> None:
    region = torch.zeros(3, 10, 20, dtype=torch.bool)
    region[0, 4, 7] = region[0, 6, 9] = True
    region[1, 0, 19] = True
    boxes = box_of(region, 0.1)  # a pixel to each side, and two
    expected = torch.zeros_like(boxes)
    expected[0, 3:8, 5:12] = True
    expected[1, :2, 17:] = True
    assert torch.equal(boxes, expected)


def pictures(size: int = 32) -> Tensor:
    """Dark images with a bright square each, which is not in the middle."""
    images = 0.1 * torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    for number, (top, left) in enumerate(((2, 2), (20, 4), (5, 22), (18, 18))):
        images[number, :, top : top + 8, left : left + 8] += 2
    return images


def own_pixels(images: Tensor, targets: Tensor) -> Tensor:
    """A map that shows all that counts: each pixel's own brightness."""
    return images.mean(1)


def moved_evidence(images: Tensor, targets: Tensor) -> Tensor:
    """A map that shows its evidence elsewhere: in the opposite corner."""
    return images.mean(1).flip(-1, -2)


def shaded(images: Tensor, targets: Tensor) -> Tensor:
    """A bright place, dimmed by all that is bright anywhere."""
    return images.mean(1) * torch.exp(-images.mean((1, 2, 3)))[:, None, None]


def test_a_map_that_shows_all_that_counts_cannot_be_attacked() -> None:
    images = pictures()
    scores = misalignment(own_pixels, images, TARGETS)
    assert scores.plc.tolist() == scores.pac.tolist() == [0] * 4
    assert ((scores.free > 0.5) & (scores.free < 1)).all()


def test_a_map_that_shows_its_evidence_elsewhere_falls() -> None:
    images = pictures()
    scores = misalignment(moved_evidence, images, TARGETS)
    before = own_pixels(images, TARGETS).flatten(1).amax(1)
    # A step takes a hundredth off the largest pixel, then another is the largest: something falls, at most epsilon.
    assert ((scores.pac > 0) & (scores.pac <= 100 * 0.1001 / before)).all()


def test_only_pixels_outside_the_box_change_and_within_epsilon() -> None:
    images = pictures()
    for epsilon in (0.1, 0.03):
        scores = misalignment(shaded, images, TARGETS, epsilon=epsilon)
        change = scores.images - images
        is_box = box_of(high_region(shaded(images, TARGETS), 0.05), 10 / 224)
        assert (change.movedim(1, -1)[is_box] == 0).all()
        outside = change.movedim(1, -1)[~is_box]
        # Dimming grows with brightness, so that every free pixel is brightened as far as it may be.
        torch.testing.assert_close(outside, torch.full_like(outside, epsilon), atol=1e-6, rtol=0)
        torch.testing.assert_close(scores.free, (~is_box).flatten(1).float().mean(1))
        expected = 100 * (1 - torch.exp(-epsilon * scores.free))
        torch.testing.assert_close(scores.pac, expected, atol=1e-3, rtol=0)


def test_fewer_steps_than_epsilon_go_as_far_as_they_can() -> None:
    scores = misalignment(shaded, pictures(), TARGETS, iterations=3, step=0.01)
    assert (scores.images - pictures()).abs().max() == pytest.approx(0.03, abs=1e-6)


def test_nothing_is_said_where_nothing_can_be_attacked() -> None:
    corners = torch.zeros(1, 10, 10)
    corners[0, 0, 0] = corners[0, 9, 9] = 1
    flat = torch.ones(1, 10, 10)
    for maps, free in ((corners, 0), (flat, 1)):
        scores = misalignment(lambda x, t, maps=maps: maps + 0 * x.sum(), torch.randn(1, 3, 10, 10), TARGETS[:1])  # type: ignore[misc]
        assert scores.plc.isnan().all() and scores.pac.isnan().all() and scores.free.tolist() == [free]


def test_scores_do_not_depend_on_the_chunk() -> None:
    one, other = (misalignment(shaded, pictures(), TARGETS, chunk=chunk) for chunk in (4, 1))
    for own, another in zip(one, other, strict=True):
        torch.testing.assert_close(own, another, atol=1e-6, rtol=0)


def judged(head: str) -> ImageClassifier:
    torch.manual_seed(0)
    return glasszoo.create_model("test_byobnet", head=head, num_classes=3).eval()


@pytest.mark.parametrize("head", ["cam", "gmp", "topk", "protopnet", "mgproto", "pipnet", "prototree"])
def test_every_kind_of_head_can_be_attacked_and_is_left_alone(head: str) -> None:
    model = judged(head)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = pictures(96)
    with torch.no_grad():
        maps, targets = attacked_maps(model, images, torch.tensor([0, 1, 2, 0]))
        scores = misalignment(maps, images, targets, chunk=3)
        first, last = (maps(some, targets).flatten(1).amax(1) for some in (images, scores.images))
    assert (last < first).any() and (last <= first + 1e-4 * first.abs()).all()
    changed = (100 * (1 - last.clamp(min=0) / first)).where((first > 0) & (scores.free > 0), torch.nan)
    torch.testing.assert_close(scores.pac, changed, atol=1e-2, rtol=1e-3, equal_nan=True)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters()) and not images.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_strongest_prototype_speaks_for_the_class() -> None:
    model = judged("protopnet")
    assert isinstance(model, glasszoo.models.InterpretableClassifier)
    head = model.head
    images, classes = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1])
    chosen = strongest_prototypes(model, images, classes)
    assert torch.equal(head.owners[chosen], classes)
    activations = head.score(model.backbone(images)).activations
    for image, (number, prototype) in enumerate(zip(classes.tolist(), chosen.tolist(), strict=True)):
        own = (head.owners == number).nonzero()[:, 0]
        assert activations[image, prototype] == activations[image, own].max()
    head.is_kept[chosen[0]] = False
    assert strongest_prototypes(model, images[:1], classes[:1]).item() != chosen[0]


@pytest.mark.parametrize("head", ["cam", "protopnet"])
def test_the_built_in_map_alone_is_scored(head: str) -> None:
    torch.manual_seed(0)
    classes = create_dataset("critters", "test", count=1).classes
    model = glasszoo.create_model("test_byobnet", head=head, num_classes=len(classes)).eval()
    dataset = create_dataset("critters", "test", count=5)
    asked = {"methods": ["random", "built-in"], "metrics": ["plc", "pac"], "judges_prototypes": False}
    one, other = (evaluate(model, dataset, batch_size=size, progress=False, **asked) for size in (5, 2))  # type: ignore[arg-type]
    random, own = one.methods
    assert all(random.scores[name].isnan().all() for name in ("plc", "pac"))
    assert not own.scores["plc"].isnan().all() and ((own.scores["plc"] >= 0) | own.scores["plc"].isnan()).all()
    assert (own.scores["pac"].nan_to_num(0) <= 100).all()
    (image,) = [batch.images for batch in Loader(dataset, model.preprocess, 5)]
    with torch.no_grad():
        predicted = model(image, 0).logits.argmax(1)
    maps, targets = attacked_maps(model, image, predicted)
    expected = misalignment(maps, image, targets)
    torch.testing.assert_close(own.scores["plc"], expected.plc, equal_nan=True)
    torch.testing.assert_close(own.scores["pac"], expected.pac, equal_nan=True)
    # Batches of another size are rounded otherwise, and a sign of a gradient near 0 may differ.
    torch.testing.assert_close(own.scores["pac"], other.methods[1].scores["pac"], atol=1, rtol=0.02, equal_nan=True)
