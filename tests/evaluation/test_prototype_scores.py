"""Whether prototypes mean parts: by hand-made cases, by other formulas, and on models whose truth is known."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.critter_rules import SLOTS
from glasszoo.data.loading import Loader
from glasszoo.evaluation.part_metrics import (
    best_points,
    boxes_around,
    cell_centres,
    consistency,
    merged_sides,
    part_hits,
    purity,
    stability,
)
from glasszoo.evaluation.prototype_scores import judge_prototypes

NAN = math.nan
CLASSES = len(create_dataset("critters", "test", count=1).classes)
PROTOTYPES = 3 * CLASSES


def test_best_points_are_those_of_torchs_bicubic_interpolation() -> None:
    maps = torch.rand(3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    resized = functional.interpolate(maps, (50, 63), mode="bicubic")
    points = best_points(maps, (50, 63))
    for image, prototype in itertools.product(range(3), range(4)):
        x, y = (points[image, prototype] - 0.5).long().tolist()
        assert resized[image, prototype, y, x] >= resized[image, prototype].max() - 1e-5


def test_cells_are_tiles_of_the_image() -> None:
    assert cell_centres(torch.tensor([0, 2, 5]), (2, 3), (40, 90)).tolist() == [[15, 10], [75, 10], [75, 30]]


def test_part_hits_of_boxes_drawn_by_hand() -> None:
    boxes = boxes_around(torch.tensor([[[10.0, 20.0], [50.0, 20.0]]]), (5.0, 8.0))  # x 2 to 18, y 15 to 25
    points = torch.tensor([[[2.0, 25.0], [18.1, 20.0], [NAN, NAN], [50.0, 14.9]]])
    assert boxes[0, 0].tolist() == [2, 15, 18, 25]
    assert part_hits(boxes, points).tolist() == [[[True, False, False, False], [False, False, False, False]]]


def test_consistency_by_hand() -> None:
    # Five images, of which the last does not count for the first prototype; two parts.
    hits = torch.zeros(5, 3, 2, dtype=torch.bool)
    visible = torch.ones(5, 2, dtype=torch.bool)
    counts = torch.ones(5, 3, dtype=torch.bool)
    counts[4, 0] = False
    hits[:3, 0, 1] = True  # three of the four that count: .75
    hits[:4, 1, 0] = True  # four of five: .8
    counts[:, 2] = False
    scores = consistency(hits, visible, counts)
    assert scores[:2].tolist() == [0, 1] and scores[2].isnan()
    visible[3, 1] = False  # the one that was missed does not show the part: three of three
    assert consistency(hits, visible, counts)[0] == 1
    assert consistency(hits, visible, counts, threshold=0.81)[:2].tolist() == [1, 0]


def test_a_part_that_is_never_visible_makes_nothing_consistent() -> None:
    nothing = torch.zeros(4, 1, 2, dtype=torch.bool)
    counts = torch.ones(4, 1, dtype=torch.bool)
    assert consistency(nothing, nothing[:, 0], counts).tolist() == [0]


def test_stability_by_hand() -> None:
    hits = torch.zeros(4, 2, 3, dtype=torch.bool)
    disturbed = hits.clone()
    disturbed[0, 0, 2] = True
    counts = torch.ones(4, 2, dtype=torch.bool)
    counts[1:3, 0] = False
    assert stability(hits, disturbed, counts).tolist() == [0.5, 1]


def test_purity_looks_at_the_strongest_images_only() -> None:
    hits = torch.zeros(5, 1, 2, dtype=torch.bool)
    hits[:3, 0, 1] = True
    activations = torch.tensor([[0.9], [0.8], [0.1], [0.7], [0.2]])
    assert purity(hits, activations, count=3).item() == pytest.approx(2 / 3)
    assert purity(hits, activations, count=10).item() == pytest.approx(3 / 5)


def test_left_and_right_are_one_part() -> None:
    hits = torch.tensor([[[True, False, False, True]], [[False, False, True, False]]])
    merged = merged_sides(hits, ("left eye", "beak", "right eye", "tail"))
    assert merged.tolist() == [[[True, False, True]], [[True, False, False]]]


@pytest.fixture(scope="module")
def model() -> glasszoo.models.InterpretableClassifier:
    torch.manual_seed(0)
    # Distances know no ties, which would leave it open which images are the strongest.
    options = {"per_class": 3, "dim": 8, "similarity": "l2"}
    made = glasszoo.create_model("test_resnet", head="protopnet", num_classes=CLASSES, head_kwargs=options)
    return made.eval()


def reference(model: glasszoo.models.InterpretableClassifier, count: int) -> dict[str, Tensor]:
    """Hits of each prototype on critters, image by image and prototype by prototype."""
    dataset = create_dataset("critters", "test", count=count)
    head = model.head
    rows: dict[str, list[Tensor]] = {"box": [], "patch": [], "activations": [], "labels": [], "visible": []}
    for batch in Loader(dataset, model.preprocess, 1):
        size = batch.images.shape[-1]
        state = head.score(model.backbone(batch.images))
        maps, points = state.parts[0], batch.points[0]
        resized = functional.interpolate(maps[None], (size, size), mode="bicubic")[0]
        box, patch = [], []
        for prototype in range(len(maps)):
            y, x = divmod(int(resized[prototype].argmax()), size)
            offset = (points - torch.tensor([x + 0.5, y + 0.5])).abs().amax(1)
            box.append(offset <= 36 / 224 * size)
            row, column = divmod(int(maps[prototype].argmax()), maps.shape[-1])
            centre = (torch.tensor([column, row]) + 0.5) * size / maps.shape[-1]
            patch.append((points - centre).abs().amax(1) <= 16 / 224 * size)
        for name, value in (
            ("box", torch.stack(box)),
            ("patch", torch.stack(patch)),
            ("activations", maps.flatten(1).amax(1)),
            ("labels", batch.labels[0]),
            ("visible", ~points.isnan().any(1)),
        ):
            rows[name].append(value)
    return {name: torch.stack(values) for name, values in rows.items()}


@torch.no_grad()
def test_scores_are_those_of_one_image_after_the_other(model: glasszoo.models.InterpretableClassifier) -> None:
    count = 24
    known = reference(model, count)
    scores = judge_prototypes(model, create_dataset("critters", "test", count=count), batch_size=7, progress=False)
    assert scores is not None and scores.prototypes == PROTOTYPES
    counts = known["labels"][:, None] == model.head.owners
    expected = consistency(known["box"], known["visible"], counts).mean().item()
    assert scores.consistency == pytest.approx(expected)
    strongest = rearrange(known["activations"], "n p -> p n").topk(10).indices
    shares = [known["patch"][strongest[p], p].float().mean(0).max().item() for p in range(PROTOTYPES)]
    assert scores.purity == pytest.approx(sum(shares) / PROTOTYPES)


def test_scores_do_not_depend_on_the_batch_size_and_leave_the_model_alone(
    model: glasszoo.models.InterpretableClassifier,
) -> None:
    dataset = create_dataset("critters", "test", count=20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    one, other = (judge_prototypes(model, dataset, batch_size=size, progress=False) for size in (20, 3))
    assert model.training and one == other
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert one != judge_prototypes(model, dataset, seed=1, progress=False)


def test_pruned_prototypes_do_not_count(model: glasszoo.models.InterpretableClassifier) -> None:
    dataset = create_dataset("critters", "test", count=12)
    everything = judge_prototypes(model, dataset, progress=False)
    model.head.is_kept[::3] = False  # one of each class
    some = judge_prototypes(model, dataset, progress=False)
    model.head.is_kept.fill_(True)
    assert everything is not None and some is not None
    assert (everything.prototypes, some.prototypes) == (PROTOTYPES, PROTOTYPES - CLASSES)
    assert some.used_per_decision is not None and everything.used_per_decision is not None
    assert some.used_per_decision < everything.used_per_decision


def test_other_heads_have_none() -> None:
    dataset = create_dataset("critters", "test", count=4)
    assert judge_prototypes(glasszoo.create_model("test_resnet", num_classes=CLASSES), dataset, progress=False) is None


def test_without_part_points_only_counts_are_known(
    model: glasszoo.models.InterpretableClassifier, tmp_path: Path
) -> None:
    from PIL import Image

    for name in map(str, range(CLASSES)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), "red").save(tmp_path / name / "x.png")
    scores = judge_prototypes(model, create_dataset(str(tmp_path), "train"), progress=False)
    assert scores is not None and scores.prototypes == PROTOTYPES and scores.used_per_decision is not None
    assert scores.consistency is None and scores.stability is None and scores.purity is None


@pytest.mark.parametrize("head", ["pipnet", "prototree", "protopool", "mgproto"])
def test_every_kind_of_prototype_head_is_judged(head: str) -> None:
    torch.manual_seed(0)
    kwargs = {"pipnet": {"num_prototypes": 12}, "prototree": {"depth": 3}, "protopool": {"prototypes": 12, "slots": 4}}
    made = glasszoo.create_model(
        "test_resnet", head=head, num_classes=CLASSES, head_kwargs=kwargs.get(head, {"dim": 8})
    )
    scores = judge_prototypes(made, create_dataset("critters", "test", count=12), progress=False)
    assert scores is not None and scores.purity is not None and 0 < scores.purity <= 1
    has_weights = head != "prototree"  # a tree's prototypes ask questions on the way to all classes
    assert (scores.consistency is not None) == (scores.used_per_decision is not None) == has_weights


def test_critters_tell_where_their_parts_are() -> None:
    dataset = create_dataset("critters", "test", count=16)
    assert dataset.part_names == SLOTS  # type: ignore[attr-defined]
    drawn = [dataset[index] for index in range(16)]
    seen = torch.stack([torch.as_tensor(sample["points"]) for sample in drawn])  # type: ignore[index]
    assert seen.shape == (16, len(SLOTS), 2) and (seen.nan_to_num(0) >= 0).all() and (seen.nan_to_num(0) <= 64).all()
