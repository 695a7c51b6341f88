"""Whether prototypes mean parts: by hand-made cases, by other formulas, and on models whose truth is known."""

import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from judged import judged
from torch import Tensor
from torch.nn import functional

import glasszoo
from glasszoo.data import create_dataset
from glasszoo.data.critter_rules import SLOTS
from glasszoo.data.loading import Loader
from glasszoo.evaluation.misalignment import prototype_misalignment
from glasszoo.evaluation.part_metrics import consistency
from glasszoo.evaluation.protocols import card_metrics
from glasszoo.evaluation.prototype_scores import PrototypeScores, judge_prototypes
from glasszoo.evaluation.results import as_json, prototype_line
from glasszoo.heads.best_cell import PrototypeState

CLASSES = len(create_dataset("critters", "test", count=1).classes)
PROTOTYPES = 3 * CLASSES


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
    scores = judge_prototypes(
        model, create_dataset("critters", "test", count=count), attacked=0, batch_size=7, progress=False
    )
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
    one, other = (judge_prototypes(model, dataset, attacked=0, batch_size=size, progress=False) for size in (20, 3))
    assert model.training and one == other
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert one != judge_prototypes(model, dataset, seed=1, attacked=0, progress=False)


def test_pruned_prototypes_do_not_count(model: glasszoo.models.InterpretableClassifier) -> None:
    dataset = create_dataset("critters", "test", count=12)
    everything = judge_prototypes(model, dataset, attacked=0, progress=False)
    model.head.is_kept[::3] = False  # one of each class
    some = judge_prototypes(model, dataset, attacked=0, progress=False)
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
    scores = judge_prototypes(model, create_dataset(str(tmp_path), "train"), attacked=2, progress=False)
    assert scores is not None and scores.prototypes == PROTOTYPES and scores.used_per_decision is not None
    assert scores.consistency is None and scores.stability is None and scores.purity is None


@pytest.mark.parametrize("head", ["pipnet", "prototree", "protopool", "mgproto"])
def test_every_kind_of_prototype_head_is_judged(head: str) -> None:
    torch.manual_seed(0)
    kwargs = {"pipnet": {"num_prototypes": 12}, "prototree": {"depth": 3}, "protopool": {"prototypes": 12, "slots": 4}}
    made = glasszoo.create_model(
        "test_resnet", head=head, num_classes=CLASSES, head_kwargs=kwargs.get(head, {"dim": 8})
    )
    scores = judge_prototypes(made, create_dataset("critters", "test", count=12), attacked=4, progress=False)
    assert scores is not None and scores.purity is not None and 0 < scores.purity <= 1
    has_weights = head != "prototree"  # a tree's prototypes ask questions on the way to all classes
    sizes = (scores.used_per_decision, scores.global_size, scores.sparsity)
    assert all((size is not None) == has_weights for size in sizes) and scores.local_size is not None
    # One that several classes share need not be found in all images of any of them: only purity can tell.
    is_of_one_class = head == "mgproto"
    assert (scores.consistency is not None) == (scores.stability is not None) == is_of_one_class
    assert scores.prc is not None and scores.plc is not None and 0 <= scores.plc <= 100


def test_critters_tell_where_their_parts_are() -> None:
    dataset = create_dataset("critters", "test", count=16)
    assert dataset.part_names == SLOTS  # type: ignore[attr-defined]
    drawn = [dataset[index] for index in range(16)]
    seen = torch.stack([torch.as_tensor(sample["points"]) for sample in drawn])  # type: ignore[index]
    assert seen.shape == (16, len(SLOTS), 2) and (seen.nan_to_num(0) >= 0).all() and (seen.nan_to_num(0) <= 64).all()


def test_sizes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images, two classes of two prototypes each, of which the second image leaves two just below a tenth."""
    heights = torch.tensor([[1.0, 0.2, 0.11, 0.0], [2.0, 0.2, 0.1, 0.0], [0.0, 0.0, 0.4, 0.5]])
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
    made = glasszoo.create_model("test_resnet", head="pipnet", num_classes=2, head_kwargs={"num_prototypes": 4}).eval()
    head = made.head  # type: ignore[attr-defined]
    head.classifier.weight.data.copy_(weight)

    def score(features: Tensor) -> PrototypeState:
        chosen = heights[: len(features)]
        places = torch.zeros(chosen.shape, dtype=torch.int64)
        parts = chosen[..., None, None].expand(-1, -1, 2, 2)
        return PrototypeState(features, chosen @ head.weight.T, parts, chosen, chosen, places)

    monkeypatch.setattr(head, "score", score)
    dataset = create_dataset("critters", "test", count=3)
    scores = judge_prototypes(made, dataset, attacked=0, progress=False)
    assert scores is not None and scores.plc is None and scores.ac is None
    assert scores.local_size == pytest.approx((3 + 1 + 2) / 3)
    # Decisions: class 0 by prototypes 0 and 1; class 0 by both, 0.2 being a tenth of 2; class 1 by 2 and 3.
    assert scores.used_per_decision == pytest.approx(2) and scores.global_size == 4 and scores.sparsity == 0.5
    head.is_kept[1] = False
    pruned = judge_prototypes(made, dataset, attacked=0, progress=False)
    assert pruned is not None and pruned.prototypes == pruned.global_size == 3
    assert pruned.local_size == pytest.approx((2 + 1 + 2) / 3) and pruned.sparsity == 0.5
    head.is_kept.fill_(False)
    gone = judge_prototypes(made, dataset, attacked=0, progress=False)
    assert gone is not None and gone.prototypes == gone.global_size == gone.local_size == 0
    assert gone.sparsity is None


def test_as_many_images_are_attacked_as_asked_for(model: glasszoo.models.InterpretableClassifier) -> None:
    dataset = create_dataset("critters", "test", count=9)
    scores = judge_prototypes(model, dataset, attacked=3, batch_size=4, progress=False)
    batches = Loader(dataset, model.preprocess, 1)
    chosen = [batch for number, batch in enumerate(batches) if number in (0, 3, 6)]
    images, labels = torch.cat([batch.images for batch in chosen]), torch.cat([batch.labels for batch in chosen])
    expected = prototype_misalignment(model, images, labels)
    assert scores is not None
    for name in ("plc", "pac", "prc", "ac"):
        found = getattr(scores, name)
        mean = expected[name].nanmean().item()
        assert found == pytest.approx(mean, abs=1.0) if not math.isnan(mean) else found is None, name
    assert not all(math.isnan(expected["pac"][row].item()) for row in range(3))


def test_all_that_is_known_is_told_and_nothing_else() -> None:
    scores = PrototypeScores(12, 2.5, 4.25, 10, 0.75, purity=0.5, plc=12.34, pac=40.0, prc=1.5, ac=0.0)
    evaluation = judged([], prototypes=scores)
    assert prototype_line(evaluation) == (
        "12 prototypes, 2.5 used per decision, 10 used by any, 4.2 active in an image, 75% of weights 0, purity 0.500, "
        "attacked from outside: PLC 12.3 PAC 40.0 PRC 1.5 AC 0.0"
    )
    assert as_json(evaluation)["prototypes"]["global_size"] == 10
    told = {metric.name: metric for metric in card_metrics(evaluation, "critters", "test")}
    assert told["plc"].value == 12.34 and "1 − IoU" in told["plc"].protocol
    assert "consistency" not in told and {"local_size", "global_size", "sparsity", "pac", "prc", "ac"} <= set(told)
    tree = judged([], prototypes=PrototypeScores(3, None, 1.0))
    assert prototype_line(tree) == "3 prototypes, 1.0 active in an image"
