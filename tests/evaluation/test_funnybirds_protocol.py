"""FunnyBirds' protocol on birds painted by hand: what maps that are exactly right, wrong or empty score."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from funny_birds import BLOCK, OBJECT, PARTS, VARIANTS, WEIGHTS, Counter, block, write_birds
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.data.funnybirds import FunnyBirds
from glasszoo.evaluation import METHODS, MapMethod
from glasszoo.evaluation.funnybirds import judge_funnybirds
from glasszoo.evaluation.funnybirds_results import FUNNYBIRDS_SCORES, PUBLISHED, Birds, Protocol
from glasszoo.evaluation.funnybirds_scores import (
    THRESHOLDS,
    Completeness,
    Contrast,
    chosen_thresholds,
    completeness,
    contrast_of,
    importances,
    important,
    irrelevant,
    set_numbers,
    single_deletion_score,
    target_sensitivity,
)
from glasszoo.models import ImageClassifier

LABELS = (0, 1, 2, 0)
SUFFICIENT = [frozenset(each) for each in ({4}, {0, 2}, {0, 3}, {1, 2}, {1, 3})]  # of class 0, worked out by hand


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> FunnyBirds:
    return FunnyBirds(write_birds(tmp_path_factory.mktemp("birds"), LABELS), "test")


def drawn(name: str, draw: Callable[[Counter, Tensor, int], Tensor]) -> Callable[[Any], MapMethod]:
    def make(model: Any) -> MapMethod:
        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            return torch.cat([draw(model, images[row : row + 1], int(own)) for row, own in enumerate(classes)])

        return MapMethod(name, "post-hoc", explain)

    return make


def wrong(model: Counter, images: Tensor, label: int) -> Tensor:
    """Speaks for the object of the background, and against each part by what it is worth."""
    maps = -model.evidence(images, label)
    maps[(slice(None), *block(OBJECT))] = 1 / BLOCK**2
    return maps


def judged(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch, model: Counter | None = None, **options: Any) -> Birds:
    monkeypatch.setitem(METHODS, "right", drawn("right", Counter.evidence))
    monkeypatch.setitem(METHODS, "wrong", drawn("wrong", wrong))
    methods = ["right", "wrong", "uniform"]
    chosen = cast(ImageClassifier, model or Counter())
    return judge_funnybirds(chosen, birds, methods=methods, progress=False, **options)


@pytest.mark.parametrize("protocol", [Protocol(), PUBLISHED])
def test_right_maps_score_1_and_wrong_ones_0(
    birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    model = Counter().train()
    found = judged(birds, monkeypatch, model, protocol=protocol)
    assert model.training and found.accuracy().mean == found.background_independence().mean == 1
    right, bad, uniform = ({name: own.mean for name, own in found.scores(method).items()} for method in found.methods)
    assert list(right) == list(FUNNYBIRDS_SCORES)
    assert right == pytest.approx(dict.fromkeys(FUNNYBIRDS_SCORES, 1.0))
    assert bad == pytest.approx(dict.fromkeys(FUNNYBIRDS_SCORES, 0.0))
    # Of a uniform map each item has 64 of 1600 pixels: below 0.04 all are important, the object too, above it none.
    assert uniform["completeness"] == pytest.approx(0.5) and uniform["D"] == 0 and uniform["contrastivity"] == 0
    if protocol is PUBLISHED:
        assert found.scores(found.methods[2])["correctness"].missing == len(LABELS)
    else:
        assert uniform["correctness"] == 0.5
        assert uniform["mean"] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_images_without_a_score_are_counted(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(birds, monkeypatch)
    scores = found.scores(found.methods[0])
    # No two classes share two parts each with class 2.
    assert scores["contrastivity"].images == 3 and scores["contrastivity"].missing == 1
    assert scores["mean"].images == scores["correctness"].images == 4
    assert [identifier.split("/")[1] for identifier in found.ids] == [str(label) for label in LABELS]


def test_the_background_counts_where_the_model_looks_at_it(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 0 gains 1 by the object, a fifth of its best part; the others gain nothing."""
    found = judged(birds, monkeypatch, Counter(object_weight=1.0))
    assert found.background.tolist() == [0, 1, 1, 0] and found.background_independence().mean == 0.5
    scores = found.scores(found.methods[1])
    assert scores["D"].images == 2, "where the object counts, nothing is left to distract"


def test_a_wrong_prediction_has_no_sufficient_set(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(birds, monkeypatch, Counter(object_weight=20.0))  # all are class 0
    assert found.is_right.tolist() == [True, False, False, True]
    assert found.scores(found.methods[0])["CSDC"].images == 2


def test_neither_the_number_nor_the_order_of_images_matters(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(birds, monkeypatch)
    few = judged(birds, monkeypatch, max_explained=2)
    assert few.ids == [whole.ids[0], whole.ids[2]]
    torch.testing.assert_close(few.methods[0].scores, whole.methods[0].scores[[0, 2]], equal_nan=True)


def test_sufficient_sets_by_hand(birds: FunnyBirds) -> None:
    """Class 0 differs from 1 in parts 2, 3, 4, from 2 in 0, 1, 4, and from 3 in all."""
    assert set(birds.sufficient_parts()[0]) == set(SUFFICIENT)
    assert set(birds.sufficient_parts()[3]) == {frozenset(each) for each in ({0}, {1}, {4})}


def test_completeness_by_hand() -> None:
    """Class 0 with weights 1 … 5: what the model says with each set of parts is worked out from these."""
    predictions = torch.tensor([_predicted(number) for number in range(32)])
    no_items = torch.tensor([False] * 5 + [True] * 2)
    for own, expected in (
        ((3, 4), (1.0, 1.0, 0.0, 1.0)),  # without them still 6 : 3.2
        ((2, 3, 4), (1.0, 1.0, 1.0, 1.0)),  # without them 3 : 3.1 for class 1
        ((3,), (0.5, 0.0, 0.0, 1.0)),  # alone 4 : 4.2 is for class 2
        ((2, 3, 6), (0.5, 0.0, 0.0, 0.5)),  # 7 : 7.2 for class 2; without them 8 : 3.1
        ((), (0.0, 0.0, 0.0, 1.0)),
        ((0, 1, 2, 3, 4, 5, 6), (1.0, 1.0, 1.0, 0.0)),
    ):
        called = torch.zeros(1, 1, 7, dtype=torch.bool)
        called[0, 0, list(own)] = True
        found = completeness(called, predictions, SUFFICIENT, no_items, 5)
        assert tuple(each.item() for each in found) == expected, own
        wrongly = completeness(called, predictions, None, no_items & False, 5)
        assert wrongly.controlled.isnan() and wrongly.distractibility.isnan()


def _predicted(number: int) -> int:
    own = [weight if number >> part & 1 else 0.0 for part, weight in enumerate(WEIGHTS)]
    logits = [
        sum(weight for part, weight in enumerate(own) if VARIANTS[label][part] == VARIANTS[0][part]) + bias
        for label, bias in enumerate((0.0, 0.1, 0.2, 0.5))
    ]
    return logits.index(max(logits))


def test_importances_by_hand() -> None:
    maps = torch.ones(1, 20, 20)
    regions = torch.zeros(2, 20, 20, dtype=torch.bool)
    regions[0, 10, 10] = regions[1, 0, 5:7] = True  # 5 × 5; at the border three rows of six
    assert importances(maps, regions).tolist() == [[25, 18]]
    called = important(torch.tensor([[25.0, 18.0]]).double(), maps)[0]
    assert torch.equal(called[:, 0], THRESHOLDS < 25 / 400) and torch.equal(called[:, 1], THRESHOLDS < 18 / 400)
    assert set_numbers(torch.tensor([[True, False, True, True]]), 3).tolist() == [5]


def test_what_hardly_counts_by_hand() -> None:
    drops = torch.tensor([0.2, 5.0, -1.0, 0.0, 0.4])
    for logit in (15.0, -15.0):  # a shift of all logits is no change
        assert irrelevant(drops, torch.tensor(logit), "effect").tolist() == [True, False, True, True, False]
    assert irrelevant(drops, torch.tensor(15.0), "logit").tolist() == [True, False, True, True, True]
    assert irrelevant(drops, torch.tensor(-15.0), "logit").tolist() == [False, False, True, False, False]
    assert irrelevant(torch.zeros(3), torch.tensor(1.0), "effect").all()


def test_single_deletion_by_hand() -> None:
    drops = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    sums = torch.stack([2 * drops, -drops, torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0]), torch.ones(5)])
    found = single_deletion_score(sums, drops, "chance")
    assert found.tolist() == pytest.approx([1, 0, 0.95, 0.5])  # Spearman of one swap of five: 1 − 6 · 2 / 120
    assert single_deletion_score(sums, drops, "dropped")[3].isnan()
    assert single_deletion_score(sums, torch.ones(5), "chance").isnan().all()


def test_contrast_by_hand(birds: FunnyBirds) -> None:
    assert contrast_of(birds.variants, 0, 0, 0) == Contrast((1, 2), ([0, 1], [2, 3]))
    assert contrast_of(birds.variants, 1, 0, 0) == Contrast((0, 3), ([0, 1], [2, 3]))
    assert contrast_of(birds.variants, 2, 0, 0) is None
    contrast = Contrast((1, 2), ([0, 1], [2, 3]))
    first, second = torch.tensor([[3.0, 0, 1, 1, 0]]), torch.tensor([[1.0, 1, 1, 2, 9]])
    assert target_sensitivity(first, second, contrast).tolist() == [1]
    assert target_sensitivity(second, first, contrast).tolist() == [0]
    assert target_sensitivity(first, first, contrast).tolist() == [0]
    assert target_sensitivity(first, second, Contrast((1, 2), ([0, 1], [2]))).tolist() == [0.5]


def test_thresholds_are_chosen_by_the_other_half() -> None:
    """Images at even places are best at the tenth threshold, those at odd places at the twentieth, a little better."""
    found = torch.zeros(4, 80).double()
    found[::2, 10], found[1::2, 20] = 0.8, 1.0
    complete = Completeness(found, found, found, found)
    assert chosen_thresholds(complete, "crossfit").tolist() == [20, 10, 20, 10]
    assert chosen_thresholds(complete, "oracle").tolist() == [20] * 4


def test_what_is_wrong_is_said(birds: FunnyBirds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 are needed"):
        judged(birds, monkeypatch, max_explained=1)
    assert judged(birds, monkeypatch, max_explained=1, protocol=PUBLISHED).scores
    with pytest.raises(InputError, match="unknown threshold 'oracel': did you mean 'oracle'"):
        Protocol(threshold=cast(Any, "oracel"))
    lacking = FunnyBirds(write_birds(tmp_path, (0, 1)), "test")
    (tmp_path / "test_interventions/1/000001" / f"{'_'.join(['body', *sorted(PARTS[1:])])}.png").unlink()
    with pytest.raises(InputError, match="1/000001 has no picture body_….png with beak, foot, tail, wing alone"):
        judged(lacking, monkeypatch)
