"""Sparse features: the selection against HiGHS and against all choices there are, the head against loops."""

import copy
import csv
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from torch import Tensor, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import SparseFeatures, create_head
from glasszoo.heads.feature_selection import Problem, _best_subsets, select, upper_bound
from glasszoo.heads.feature_statistics import FeatureStatistics
from glasszoo.models import InterpretableClassifier, save_pretrained
from glasszoo.training import Trainer, load_recipe

seeds = st.integers(0, 10_000)


# ---- the selection


def problem(seed: int, d: int, c: int, n: int, k: int, redundancy: float = 1.2) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.randn(d, c, generator=generator, dtype=torch.float64)
    similarity = torch.nn.functional.normalize(relevance, dim=1)
    similarity = (similarity @ similarity.T).clamp(min=0).fill_diagonal_(0)
    bonus = torch.rand(d, generator=generator, dtype=torch.float64)
    return Problem(relevance / (k * c), 0.05 * bonus / n, redundancy * similarity / (n * (n - 1) / 2), n, k)


def value(problem: Problem, chosen: Any, edges: list[Any]) -> float:
    """The objective, term by term."""
    total = sum(problem.gain[f, c] for c, features in enumerate(edges) for f in features)
    total += sum(problem.bonus[f] for f in chosen)
    return float(total - sum(problem.penalty[f, g] for f, g in itertools.combinations(chosen, 2)))


def best_of_all(problem: Problem) -> float:
    """Every set of features, and for each the best assignment of different subsets to the classes."""
    best = -np.inf
    for chosen in itertools.combinations(range(len(problem.bonus)), problem.num_selected):
        subsets = list(itertools.combinations(chosen, problem.per_class))
        gains = np.array([[own[list(subset)].sum() for subset in subsets] for own in problem.gain.T])
        places = linear_sum_assignment(gains, maximize=True)[1]
        best = max(best, value(problem, chosen, [subsets[place] for place in places]))
    return best


def solved(problem: Problem, is_integer: bool) -> float:
    """HiGHS's optimum, of the relaxation or with whole features; classes may have the same edges."""
    gain, bonus, penalty = (tensor.numpy() for tensor in problem[:3])
    d, c = gain.shape
    first, second = np.nonzero(np.triu(penalty))
    pairs = len(first)
    in_pair = sparse.csr_matrix((np.ones(2 * pairs), (np.tile(np.arange(pairs), 2), np.r_[first, second])), (pairs, d))
    no_edges, no_pairs = sparse.csr_matrix((pairs, d * c)), sparse.csr_matrix((d * c, pairs))
    over_features = sparse.hstack([np.ones((1, d)), sparse.csr_matrix((1, d * c + pairs))])
    over_edges = [sparse.csr_matrix((c, d)), sparse.kron(np.ones((1, d)), sparse.eye(c)), sparse.csr_matrix((c, pairs))]
    rows = [  # over x (d), e (d c), y (pairs)
        (sparse.hstack([-sparse.kron(sparse.eye(d), np.ones((c, 1))), sparse.eye(d * c), no_pairs]), -np.inf, 0),
        (sparse.hstack([in_pair, no_edges, -sparse.eye(pairs)]), -np.inf, 1),
        (over_features, problem.num_selected, problem.num_selected),
        (sparse.hstack(over_edges), problem.per_class, problem.per_class),
    ]
    done = milp(
        -np.concatenate([bonus, gain.ravel(), -penalty[first, second]]),
        constraints=[LinearConstraint(matrix, low, high) for matrix, low, high in rows],
        bounds=Bounds(0, 1),
        integrality=np.r_[np.full(d, int(is_integer)), np.zeros(d * c + pairs)],
    )
    assert done.success
    return -done.fun


SIZES = [(7, 4, 4, 2), (8, 6, 5, 3), (6, 3, 3, 1)]


@settings(deadline=None, max_examples=8)
@given(seeds, st.sampled_from(SIZES), st.sampled_from([0.0, 1.2]))
def test_the_objective_is_what_was_chosen_and_lies_below_the_bound(
    seed: int, sizes: tuple[int, ...], redundancy: float
) -> None:
    own = problem(seed, *sizes, redundancy)
    choice = select(own)
    features = [row.nonzero()[:, 0].tolist() for row in choice.edges]
    assert choice.objective == pytest.approx(value(own, choice.selected.tolist(), features))
    assert choice.objective <= best_of_all(own) + 1e-9 <= choice.bound + 2e-9
    assert choice.gap == pytest.approx((choice.bound - choice.objective) / abs(choice.bound))


@pytest.mark.parametrize(("sizes", "redundancy"), list(itertools.product(SIZES[:2], [0.0, 1.2])))
def test_the_choice_is_near_the_best_of_all(sizes: tuple[int, ...], redundancy: float) -> None:
    problems = [problem(seed, *sizes, redundancy) for seed in range(6)]
    best = [best_of_all(own) for own in problems]
    missed = np.array(best) - [select(own).objective for own in problems]
    assert missed.mean() <= 0.03 * np.mean(best) and (missed < 1e-9).mean() >= 0.5


def test_it_reckons_with_classes_that_want_the_same() -> None:
    """Four classes much alike, and only six different lists: what is best for each alone cannot be had."""
    problems = [problem(seed, 7, 4, 4, 2) for seed in range(6)]
    problems = [own._replace(gain=(own.gain + 4 * own.gain.mean(1, keepdim=True)) / 3) for own in problems]
    best = np.array([best_of_all(own) for own in problems])
    assert (best - [select(own).objective for own in problems]).mean() <= 0.1 * best.mean()


@pytest.mark.parametrize("sizes", [(12, 5, 5, 2), (20, 8, 6, 3), (30, 6, 10, 4)])
@pytest.mark.parametrize("redundancy", [0.0, 1.2])
def test_the_bound_is_that_of_the_relaxation(sizes: tuple[int, ...], redundancy: float) -> None:
    own = problem(1, *sizes, redundancy)
    relaxed = solved(own, is_integer=False)
    assert relaxed - 1e-7 <= upper_bound(own) <= relaxed + 0.01 * abs(relaxed)


def test_against_the_mixed_integer_optimum() -> None:
    """Which lets classes share edges, so that it bounds the choice from above."""
    own = problem(3, 20, 8, 8, 3)
    choice, optimum = select(own), solved(own, is_integer=True)
    assert 0.85 * optimum <= choice.objective <= optimum + 1e-9 <= choice.bound + 2e-9


def test_swaps_undo_what_greed_took_too_early() -> None:
    """Feature 0 serves both classes fairly well, so it is taken first; 1 and 2 serve one each, and better."""
    gain = torch.tensor([[0.6, 0.6], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    choice = select(Problem(gain, torch.zeros(3).double(), torch.zeros(3, 3).double(), 2, 1))
    assert choice.selected.tolist() == [1, 2] and choice.objective == 2 and choice.gap == pytest.approx(0, abs=1e-6)


@settings(deadline=None, max_examples=8)
@given(seeds, st.integers(1, 9), st.integers(1, 12))
def test_every_class_has_its_own_list(seed: int, k: int, c: int) -> None:
    """Even where all classes want the same, up to as many classes as there are lists."""
    n = k + 2
    c = min(c, (k + 1) * (k + 2) // 2)
    own = problem(seed, n + 3, 1, n, k)
    own = own._replace(gain=own.gain.expand(-1, c) / c)
    choice = select(own)
    assert choice.selected.tolist() == sorted(set(choice.selected.tolist())) and len(choice.selected) == n
    assert choice.edges.sum(1).eq(k).all() and len({tuple(row.tolist()) for row in choice.edges}) == c
    assert not choice.edges[:, [f for f in range(n + 3) if f not in choice.selected]].any()


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_subsets_come_best_first_and_each_once(seed: int, number: int, size: int) -> None:
    size = min(size, number)
    values = torch.rand(number, generator=torch.Generator().manual_seed(seed)).sort(descending=True).values
    found = [tuple(sorted(places)) for places in _best_subsets(values, size)]
    sums = [values[list(places)].sum().item() for places in found]
    assert sorted(found) == list(itertools.combinations(range(number), size))
    assert all(one >= two - 1e-6 for one, two in itertools.pairwise(sums))


# ---- what it is based on


class Images(NamedTuple):
    """As a loader's batch; the images are the features themselves."""

    images: Tensor
    labels: Tensor


class Identity(nn.Module):
    """A model whose backbone hands its images on."""

    backbone = nn.Identity()


def planted(seed: int = 0, classes: int = 4, features: int = 12, each: int = 30) -> Images:
    """Features 0 to `classes` − 1 light up for one class each, the rest are noise; all in the middle of the grid."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    maps = torch.rand(len(labels), features, 4, 5, generator=generator)
    maps[torch.arange(len(labels)), labels, 1:3, 2] += 3
    return Images(maps, labels)


def statistics(data: Images, classes: int) -> FeatureStatistics:
    own = FeatureStatistics(data.images.shape[1], classes)
    for start in range(0, len(data.labels), 7):
        own.add(data.images[start : start + 7], data.labels[start : start + 7])
    return own


def test_statistics_are_those_of_numpy() -> None:
    data = planted(classes=3, features=6)
    data.images[:, 5] -= 0.5  # some means below zero
    own = statistics(data, 3)
    pooled = data.images.double().numpy().mean((2, 3))
    mean, deviation = own.moments()
    np.testing.assert_allclose(mean, pooled.mean(0))
    np.testing.assert_allclose(deviation, pooled.std(0), rtol=1e-6)
    correlation = np.array([[np.corrcoef(pooled[:, f], data.labels == c)[0, 1] for c in range(3)] for f in range(6)])
    made = own.problem(4, 2)
    np.testing.assert_allclose(made.gain, correlation / correlation.max() / (2 * 3), atol=1e-9)
    unit = correlation / np.linalg.norm(correlation, axis=1, keepdims=True)
    cosine = np.maximum(unit @ unit.T, 0) * (1 - np.eye(6))
    np.testing.assert_allclose(made.penalty, 1.2 * cosine / 6, atol=1e-9)
    for f in range(6):
        peaks, at_edge, weights = [], [], []
        for image in data.images.double():
            share = torch.softmax(image[f].flatten(), 0)
            row, column = divmod(int(share.argmax()), 5)
            weights.append(max(image[f].mean().item(), 0))
            peaks.append(share.max().item())
            at_edge.append(row in (0, 3) or column in (0, 4))
        is_local = np.average(at_edge, weights=weights) <= 0.5
        if is_local:
            assert made.bonus[f].item() == pytest.approx(0.05 * np.average(peaks, weights=weights) / 4)
        else:
            assert made.bonus[f] == made.bonus.min()
    assert made.bonus[:3].min() > made.bonus[3:].max(), "what lights up inside the grid is more local than noise"


def test_dead_features_and_absent_classes_are_no_nan() -> None:
    data = planted(classes=3, features=6)
    data.images[:, 4], data.images[:, 5] = 0.0, 7 + 1e-4 * data.images[:, 5]
    own = statistics(data, 4)
    made = own.problem(3, 2)
    assert all(tensor.isfinite().all() for tensor in made[:3])
    assert made.gain[4:].eq(0).all() and made.gain[:, 3].eq(0).all()
    assert own.moments()[1][4:].tolist() == [1, 1]


# ---- the head


def selected(seed: int = 0, **options: Any) -> tuple[SparseFeatures, dict[str, float], Images]:
    data = planted(seed)
    head = create_head("sparse_features", 12, 4, num_selected=6, per_class=2, **options)
    assert isinstance(head, SparseFeatures)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    batches = [Images(*(part[start : start + 16] for part in data)) for start in range(0, 120, 16)]
    return head, head.project(batches, Identity()), data


SELECTED = selected()[0]


def test_before_the_selection_it_is_cam_to_the_bit() -> None:
    head, cam = create_head("sparse_features", 16, 6), create_head("cam", 16, 6)
    weight, bias = torch.randn(6, 16), torch.randn(6)
    assert head.fold(weight, bias) and cam.fold(weight, bias)
    ours, theirs = head(features := torch.randn(3, 16, 5, 4), "all"), cam(features, "all")
    assert all(torch.equal(one, two) for one, two in zip(ours[:4], theirs[:4], strict=True))
    assert ours.parts.shape == (3, 16, 5, 4) and not ours.parts.any(), "nothing is selected yet"


def test_the_selection_finds_what_was_planted() -> None:
    head, report, data = selected()
    assert set(range(4)) <= set(head.selected.tolist())
    assert head.edges.sum(1).tolist() == [2, 2, 2, 2] and head.edges[range(4), range(4)].all()
    assert (head(data.images).logits.argmax(1) == data.labels).float().mean() > 0.9
    assert report.keys() == {"selection_objective", "selection_bound", "selection_gap"}
    assert 0 <= report["selection_gap"] < 1 and report["selection_objective"] <= report["selection_bound"]


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_selected_logits_and_evidence_by_loops(seed: int, images: int, height: int, width: int) -> None:
    head = copy.deepcopy(SELECTED).double()
    features = torch.randn(images, 12, height, width, generator=torch.Generator().manual_seed(seed)).double()
    out = head(features, "all")
    for c in range(4):
        chosen = [f for f in range(12) if head.edges[c, f]]
        standard = [(features[:, f].mean((1, 2)) - head.mean[f]) / head.deviation[f] for f in chosen]
        torch.testing.assert_close(out.logits[:, c], torch.stack(standard).sum(0))
        torch.testing.assert_close(out.offset[:, c], out.logits[:, c] - out.maps[:, c].sum((1, 2)), atol=1e-9, rtol=0)
        for row, column in itertools.product(range(height), range(width)):
            cell = sum(features[:, f, row, column] / head.deviation[f] for f in chosen) / (height * width)
            torch.testing.assert_close(out.maps[:, c, row, column], cell)
        places = [head.selected.tolist().index(f) for f in chosen]
        torch.testing.assert_close(out.parts[:, places].mean((2, 3)).sum(1), out.logits[:, c])


def test_selected_it_adds_up_in_fp32_and_repeats_itself() -> None:
    head, _, data = selected()
    out, again = head(data.images, "all"), head(data.images, "all")
    gap = (out.maps.sum((-2, -1)) + out.offset - out.logits).abs().max()
    assert gap <= 1e-4 * out.logits.abs().max()
    assert all(torch.equal(one, two) for one, two in zip(out, again, strict=True))


def test_selected_ones_do_not_learn_and_the_features_do() -> None:
    head, _, data = selected()
    features = data.images.clone().requires_grad_()
    out, losses = head.forward_with_losses(features, data.labels)
    (nn.functional.cross_entropy(out.logits, data.labels) + losses["diversity"]).backward()
    assert head.classifier.weight.grad is not None and not head.classifier.weight.grad.any()
    assert features.grad is not None
    of_features = features.grad.abs().sum((0, 2, 3))
    assert of_features[head.selected].gt(0).all()


def test_the_selection_depends_on_neither_batches_nor_their_order() -> None:
    head, report, data = selected()
    other = copy.deepcopy(head)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    halves = [Images(data.images[places], data.labels[places]) for places in order.split(100)]
    again = other.project(halves, Identity())
    assert torch.equal(head.edges, other.edges) and torch.equal(head.selected, other.selected)
    assert again == pytest.approx(report)


def test_a_state_dict_holds_the_selection() -> None:
    head, _, data = selected()
    fresh = create_head("sparse_features", 12, 4, num_selected=6, per_class=2)
    fresh.load_state_dict(head.state_dict())
    for one, two in zip(head(data.images, "all"), fresh(data.images, "all"), strict=True):
        assert torch.equal(one, two)


def test_a_selected_model_saves_exports_and_compiles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head="sparse_features", num_classes=4, head_kwargs={"num_selected": 9})
    model.project([Images(torch.randn(24, 3, 64, 64), torch.arange(24) % 4)])
    assert isinstance(model, InterpretableClassifier) and model.head.is_selected and not model.training
    save_pretrained(model, tmp_path)
    images = torch.randn(3, 3, 64, 64)
    out = model(images, "all")
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path}")(images, "all")
    assert all(torch.equal(one, two) for one, two in zip(out, again, strict=True))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for theirs in (program(images), compiled(images)):
        for ours, other in zip(model(images), theirs, strict=True):
            torch.testing.assert_close(other, ours, atol=1e-5, rtol=1e-4)


# ---- diversity, options, training


@settings(deadline=None, max_examples=10)
@given(seeds, st.booleans())
def test_diversity_by_loops(seed: int, is_selected: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = copy.deepcopy(SELECTED).double()
    head.is_selected.fill_(is_selected)
    features = torch.randn(2, 12, 2, 3, generator=generator).double() + 0.5
    state = head.score(features)
    expected = []
    for image in range(2):
        label = int(state.logits[image].argmax())
        weight = head.edges[label].double() if is_selected else head.classifier.weight[label].detach().abs()
        means = [max(features[image, f].mean().item(), 0) for f in range(12)]
        total = 0.0
        for row, column in itertools.product(range(2), range(3)):
            total += max(
                (features[image, f].exp() / features[image, f].exp().sum())[row, column].item()
                * means[f] / max(means) * weight[f].item() / weight.norm().item()
                for f in range(12)
            )  # fmt: skip
        expected.append(-total)
    assert head.losses(state, torch.zeros(2).long())["diversity"].item() == pytest.approx(np.mean(expected))
    assert head.loss_weights() == {"diversity": 0.196}


def test_diversity_prefers_features_at_different_places() -> None:
    head = copy.deepcopy(SELECTED)
    apart, together = torch.zeros(1, 12, 2, 2), torch.zeros(1, 12, 2, 2)
    first, second = head.edges[0].nonzero()[:, 0].tolist()
    apart[0, first, 0, 0] = apart[0, second, 1, 1] = 9.0
    together[0, first, 0, 0] = together[0, second, 0, 0] = 9.0
    values = [head.losses(head.score(features), torch.zeros(1).long())["diversity"] for features in (apart, together)]
    assert values[0] < values[1] - 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 0}, "num_selected=0: must be at least 1"),
        ({"per_class": 0}, "per_class=0: must be at least 1"),
        ({"num_selected": 4, "per_class": 5}, "4 features make 0 different lists of per_class=5"),
        (
            {"num_selected": 4, "per_class": 4},
            "4 features make 1 different lists .* too few for 6 classes",
        ),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head("sparse_features", 16, 6, **options)


def test_no_more_features_than_there_are_or_than_classes_can_use() -> None:
    for num_features, num_classes, expected in ((16, 6, 16), (64, 3, 15), (64, 40, 50)):
        head = create_head("sparse_features", num_features, num_classes)
        assert head(torch.randn(1, num_features, 2, 2)).parts.shape[1] == expected


RECIPE = """
data: {name: critters, options: {size: 32, count: 120, rule: mark}, validation: 0.2, batch_size: 16}
model: {backbone: test_byobnet, output_stride: 16, image_size: 32, crop_pct: 1.0, head: sparse_features}
optimizer: {lr: 2e-3}
epochs: 2
"""


def test_a_run_ends_sparse_and_goes_on_from_before_the_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), ["ema_decay=0.9"])
    trained = Trainer(recipe, tmp_path / "run", device="cpu", shows_progress=False).fit()

    def killed(*arguments: Any) -> None:
        raise RuntimeError("killed")

    stopped = Trainer(recipe, tmp_path / "stopped", device="cpu", shows_progress=False)
    monkeypatch.setattr(stopped.model, "project", killed)
    with pytest.raises(RuntimeError, match="killed"):
        stopped.fit()
    Trainer(recipe, tmp_path / "stopped", resume=True, device="cpu", shows_progress=False).fit()
    for which in ("best", "last"):
        one, two = (load_file(tmp_path / run / which / "model.safetensors") for run in ("run", "stopped"))
        assert all(torch.equal(one[name], two[name]) for name in one)
    model = glasszoo.load_pretrained(f"local-dir:{trained.best}")
    assert isinstance(model, InterpretableClassifier) and model.head.is_selected, "the dense epochs do not compete"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        dense, fine = csv.DictReader(file)
    assert (dense["phase"], fine["phase"]) == ("dense", "sparse") and dense["selection_gap"] == ""
    assert 0 <= float(fine["selection_gap"]) < 1 and float(fine["diversity"]) < 0
