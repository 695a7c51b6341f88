"""Metrics judged on a classifier whose use of parts is set by hand: its truth, maps of known quality, and A13."""

import pytest
import torch
from torch import Tensor

from glasszoo.common.errors import InputError
from glasszoo.evaluation import METHODS, METRICS, Conventions, Evaluation, evaluate, map_method
from glasszoo.evaluation.metric_report import (
    EXACT,
    NEGATED,
    RANDOM,
    MetricJudgement,
    graded_maps,
    judge_metrics,
    order_agreement,
    true_errors,
)
from glasszoo.evaluation.programmed import WEIGHTS, PaintedCritters, programmed_classifier
from glasszoo.evaluation.statistics import Interval
from glasszoo.heads import Explained

IMAGES = 10
NAMES = [name for name in graded_maps() if name not in ("coarse", "shifted")] + [RANDOM]
# Blind to a map's sign, or to the truth altogether: the exact map is not better than the negated one, or no better than
# a random one. docs/metrics.md shows how they order maps.
BLIND = {
    "infidelity", "gini", "entropy", "gini_of_pixels", "entropy_of_pixels", "max_sensitivity", "stability_noise",
    "stability_jpeg", "stability_shift", "random_logit", "emprt", "mprt",
}  # fmt: skip
# A random map and a negated one both hit nothing, or the intervals of so few images touch.
COARSE = {"pointing_game", "max_box_acc_v2", "pxap"}
OTHER = {"grid_pointing", "difull", "dipart", "plc", "pac"}  # of mosaics; of the built-in map alone


@pytest.fixture(scope="module")
def data() -> PaintedCritters:
    return PaintedCritters(programmed_classifier(), IMAGES)


@pytest.fixture(scope="module")
def errors(data: PaintedCritters) -> Tensor:
    model, numbers = programmed_classifier(), range(IMAGES)
    makers = {**METHODS, **graded_maps()}
    with torch.no_grad():
        found = [makers[name](model).explain(data.images(numbers), data.labels, torch.arange(IMAGES)) for name in NAMES]
        maps = [torch.nn.functional.interpolate(own[:, None], size=64)[:, 0] for own in found]
        worth = data.shapley(numbers, data.labels)
    return true_errors(torch.stack(maps), data.parts(numbers), worth, counts_elsewhere=True)


@pytest.fixture(scope="module")
def judged(data: PaintedCritters) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:
        for name, maker in graded_maps().items():
            patch.setitem(METHODS, name, maker)
        return evaluate(
            programmed_classifier(), data, methods=NAMES, metrics=[name for name in METRICS if name not in OTHER],
            conventions=Conventions(bootstrap=300, confidence=0.9), progress=False,
        )  # fmt: skip


def explained(data: PaintedCritters) -> Explained:
    with torch.no_grad():
        return programmed_classifier()(data.images(range(IMAGES)), data.labels)


def test_every_pixel_s_worth_is_known(data: PaintedCritters) -> None:
    """Remove a pixel's paint, and the logit falls by what the map gives it; nothing else is worth anything."""
    out, images = explained(data), data.images(range(IMAGES))
    torch.testing.assert_close(out.logits.argmax(1), data.labels)
    parts = data.parts(range(IMAGES)).any(1)
    assert out.maps[:, 0].masked_fill(parts, 0).abs().sum((1, 2)).max() < 0.1
    changed = images.clone()
    changed[:, :, 20:30] = 0
    with torch.no_grad():
        fall = out.logits - programmed_classifier()(changed, explain=0).logits
    torch.testing.assert_close(
        fall.gather(1, data.labels[:, None])[:, 0], out.maps[:, 0, 20:30].sum((1, 2)), atol=1e-4, rtol=0
    )


def test_parts_are_worth_what_they_were_given(data: PaintedCritters) -> None:
    """Sums of the map over the parts, and so the Shapley values but for what parts hide; by weight times area."""
    numbers = range(IMAGES)
    areas = data.parts(numbers).double().mean((2, 3))
    usual = torch.tensor([0.093, 0.054, 0.036, 0.017, 0.014]).double()
    given = torch.tensor(WEIGHTS).double()[data.labels] * areas / usual
    worth = data.shapley(numbers, data.labels)
    assert (worth - given).abs().max() < 0.1 * given.abs().max()
    sums = torch.einsum("bhw,bphw->bp", explained(data).maps[:, 0].double(), data.parts(numbers).double())
    torch.testing.assert_close(sums, given, atol=0.02 * given.abs().max().item(), rtol=0)


def test_masks_and_labels_follow_the_weights(data: PaintedCritters) -> None:
    sample = data[3]
    parts = data.parts([3])[0]
    speaks = [slot for slot, weight in enumerate(WEIGHTS[sample["label"]]) if weight > 0]
    assert torch.equal(sample["mask"] == 255, parts[speaks].any(0))
    rows, columns = torch.where(sample["mask"] == 255)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sample["boxes"].tolist() == [[int(each) for each in expected]]


def test_errors_of_maps_of_known_quality(errors: Tensor) -> None:
    mean = dict(zip(NAMES, errors.mean(1).tolist(), strict=True))
    assert mean[EXACT] < 0.01 and mean[NEGATED] == pytest.approx(1) and mean[RANDOM] > 0.95
    assert mean[EXACT] < mean["noise 25 %"] < mean["noise 50 %"] < mean["noise 75 %"] < mean[RANDOM]
    assert mean["equal parts"] > mean["strongest part"] and mean["other class"] > 0.5


def test_a13_faithful_metrics_climb_from_negated_to_exact(judged: Evaluation, errors: Tensor) -> None:
    found = {each.metric: each for each in judge_metrics(judged, errors)}
    assert set(found) == set(METRICS) - OTHER
    climbing = {name for name, each in found.items() if each.climbs}
    assert climbing | COARSE == set(METRICS) - OTHER - BLIND
    for name in climbing:
        assert found[name].agreement.low > 0.5, name
    best = next(iter(found))
    assert best == "mu_fidelity" and found[best].agreement.mean > 0.9


def test_agreement_by_hand() -> None:
    scores = torch.tensor([[1.0, 1, 5], [2, 1, 5], [3, 1, torch.nan], [4, 1, 6]])
    truth = torch.tensor([[0.1, 0.1, 0.2], [0.2, 0.2, 0.1], [0.4, 0.3, 0.9], [0.3, 0.4, 0.3]])
    found = order_agreement(scores, truth)
    assert found[0].item() == pytest.approx(0.8) and found[1].isnan()
    assert found[2].item() == pytest.approx(0.8660254)


def test_a_ladder_climbs_only_with_intervals_apart() -> None:
    def interval(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high, 10, 0)

    agreement = interval(0, 1)
    rungs = interval(0.8, 0.9), interval(0.4, 0.6), interval(0, 0.1)
    assert MetricJudgement("insertion", agreement, rungs).climbs
    assert MetricJudgement("deletion", agreement, rungs[::-1]).climbs
    assert not MetricJudgement("deletion", agreement, rungs).climbs
    assert not MetricJudgement("insertion", agreement, (interval(0.55, 0.9), *rungs[1:])).climbs


def test_other_weights_and_wrong_ones() -> None:
    model = programmed_classifier([(0, 0, 0, 0, 1), (1, 0, 0, 0, 0)])
    assert model.num_classes == 2 and set(PaintedCritters(model, 8).labels.tolist()) <= {0, 1}
    with pytest.raises(InputError, match=r"weights of shape \(classes, 5\) expected, got \(1, 2\)"):
        programmed_classifier([(1, 2)])


def test_gradients_reach_full_paint(data: PaintedCritters) -> None:
    maps = map_method("gradient", programmed_classifier()).explain(
        data.images(range(4)), data.labels[:4], torch.arange(4)
    )
    parts = data.parts(range(4))
    uses = torch.tensor(WEIGHTS)[data.labels[:4]] != 0
    assert (maps * (parts & uses[..., None, None]).any(1)).flatten(1).sum(1).min() > 0
