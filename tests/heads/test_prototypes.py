"""ProtoPNet and what prototype heads share, against loops; projection, pruning and their traces in a run."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain, loader
from torch import nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import ProtoPNet
from glasszoo.heads.prototypes import cluster_and_separation
from glasszoo.heads.similarity import cosines, log_ratio, squared_distances
from glasszoo.training import Trainer, load_recipe

OPTIONS: list[dict[str, Any]] = [
    {},
    {"dim": None, "per_class": 2},
    {"similarity": "l2", "per_class": 3, "connection": "signed"},
    {"similarity": "l2", "dim": 4, "epsilon": 0.01, "connection": "fixed"},
]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(OPTIONS), st.integers(0, 99), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans()
)
def test_logits_and_evidence_by_loops(
    options: dict[str, Any], seed: int, classes: int, height: int, width: int, pruned: bool
) -> None:
    torch.manual_seed(seed)
    head = ProtoPNet(5, classes, **options).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    head.is_kept[0] = not pruned
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    out = head(features, "all")
    cells = head.add_on(features)
    logits = torch.zeros(2, classes, dtype=torch.float64)
    maps = torch.zeros(2, classes, height, width, dtype=torch.float64)
    weight = head.connection.own if head.connection.weight is None else head.connection.weight
    for image in range(2):
        for number, prototype in enumerate(head.prototypes):
            best = None
            for row in range(height):
                for column in range(width):
                    cell = cells[image, :, row, column]
                    if head.is_cosine:
                        similarity = max((cell @ prototype / cell.norm() / prototype.norm()).item(), 0.0)
                    else:
                        distance = (cell - prototype).square().sum()
                        similarity = ((distance + 1) / (distance + head.epsilon)).log().item()
                    assert out.parts[image, number, row, column].item() == pytest.approx(similarity, abs=1e-9)
                    if best is None or similarity > best[0]:
                        best = similarity, row, column
            assert best is not None
            for of_class in range(classes):
                factor = weight[of_class, number].item()
                if options.get("connection", "non_negative") == "non_negative":
                    factor = max(factor, 0.0)
                points = factor * best[0] * (number > 0 or not pruned)
                logits[image, of_class] += points
                maps[image, of_class, best[1], best[2]] += points
    torch.testing.assert_close(out.logits, logits, atol=1e-9, rtol=1e-9)
    # Where a cosine is negative everywhere, no cell is best and none holds anything.
    torch.testing.assert_close(out.maps, maps, atol=1e-9, rtol=1e-9)
    assert not out.offset.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distances_are_never_negative_nor_nan(dtype: torch.dtype) -> None:
    """The worst case: cells that equal a prototype, large, in half precision, where ‖z‖² − 2 z·p + ‖p‖² cancels."""
    prototypes = (torch.randn(4, 64) * 100).to(dtype)
    cells = prototypes.T[None, :, None]  # 1 d 1 p
    distances = squared_distances(cells, prototypes)
    assert distances.dtype == torch.float32 and (distances >= 0).all()
    assert log_ratio(distances).isfinite().all()
    assert cosines(cells, prototypes).isfinite().all() and cosines(torch.zeros_like(cells), prototypes).eq(0).all()
    head = ProtoPNet(64, 2, similarity="l2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(torch.randn(2, 64, 3, 3).to(dtype) * 100, "all")
    assert out.logits.dtype == torch.float32 and out.logits.isfinite().all() and out.parts.min() >= 0


def test_log_ratio_is_right_in_proportion_far_away() -> None:
    """Protopool's logits are differences of such small numbers."""
    distances = torch.linspace(0, 500, 1001)
    torch.testing.assert_close(log_ratio(distances).double(), log_ratio(distances.double()), rtol=1e-6, atol=0)


def test_log_ratio_of_known_distances() -> None:
    values = log_ratio(torch.tensor([0.0, 1.0, 1e6]), 1e-4)
    torch.testing.assert_close(values, torch.tensor([9.2103, 0.6930, 0.0]), atol=1e-3, rtol=0)


def test_cluster_and_separation_by_hand() -> None:
    proximities = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
    cluster, separation = cluster_and_separation(proximities, torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    assert cluster.item() == pytest.approx(-(0.9 + 0.4) / 2)
    assert separation.item() == pytest.approx((0.5 + 0.3) / 2)
    _, nothing = cluster_and_separation(proximities, torch.zeros(3), torch.tensor([0, 0]))
    assert nothing == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_a_projected_prototype_is_its_patch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = ProtoPNet(5, 2, **options).train()
    model = Plain(head)
    head.project(loader(), model)
    every = {name: (image, int(label)) for batch in loader() for image, label, name in zip(*batch, strict=True)}
    assert [entry["prototype"] for entry in head.provenance] == list(range(len(head.owners)))
    cells = set()
    for entry in head.provenance:
        image, label = every[entry["image"]]
        row, column = entry["cell"]
        assert label == entry["class"] == head.owners[entry["prototype"]]
        proximity = head.proximity(head.add_on(image[None]))[0, entry["prototype"]]
        assert proximity[row, column].item() == pytest.approx(1.0 if head.is_cosine else 0.0, abs=1e-4)
        assert proximity.max() == proximity[row, column]
        # The middle of the cell, and half a receptive field to each side.
        x, y = 10 * column + 5, 10 * row + 5
        assert entry["box"] == [x - 10, y - 15, x + 10, y + 15]
        cells.add((entry["class"], entry["image"], row, column))
    assert len(cells) == len(head.owners), "a cell was given twice within a class"
    assert json.loads(json.dumps(head.provenance)) == head.provenance


def test_projection_repeats_itself_and_leaves_a_class_without_images_alone() -> None:
    torch.manual_seed(0)
    one, two = ProtoPNet(5, 3, per_class=2), ProtoPNet(5, 3, per_class=2)
    two.load_state_dict(one.state_dict())
    before = one.prototypes.detach().clone()
    one.project(loader(), Plain(one))
    two.project(loader(), Plain(two))
    assert torch.equal(one.prototypes, two.prototypes) and one.provenance == two.provenance
    is_same = (one.prototypes == before).all(1)
    assert is_same.tolist() == [False] * 4 + [True] * 2 and len(one.provenance) == 4


def test_pruning_drops_what_stands_for_other_classes() -> None:
    """The prototype of class 0 that lies among images of class 1 goes; the last one of a class never does."""
    head = ProtoPNet(5, 2, per_class=2, dim=None)
    images = torch.zeros(12, 5, 1, 1)
    images[:6, 0], images[6:, 1] = 1, 1
    batches = [Images(images, torch.tensor([0] * 6 + [1] * 6), [f"{number}" for number in range(12)])]
    with torch.no_grad():
        head.prototypes.zero_()
        head.prototypes[0, 0] = head.prototypes[1, 1] = 1  # its own class; the other's
        head.prototypes[2:, 0] = 1  # both of class 1 lie among class 0
    assert head.prune(batches, Plain(head)) == {"prototypes": 2.0}
    assert head.is_kept.tolist() == [True, False, True, False]
    assert not head.weight[:, 1].any()


def test_a_budget_keeps_what_adds_most() -> None:
    """All prototypes are found alike, so weights decide: class 0 has the three best, and class 1 keeps one beside."""
    head = ProtoPNet(5, 2, per_class=3, dim=None)
    with torch.no_grad():
        head.prototypes.fill_(1)
        for number, weight in enumerate([5.0, 4.0, 3.0, 1.0, 2.0, 1.0]):
            head.connection.weight[number // 3, number] = weight
    batches = [Images(torch.ones(4, 5, 2, 2), torch.tensor([0, 1, 0, 1]), list("abcd"))]
    assert head.prune_to(3, batches, Plain(head)) == {"prototypes": 4.0}
    assert head.is_kept.tolist() == [True, True, True, False, True, False]


def test_non_negative_weights_come_back() -> None:
    head = ProtoPNet(5, 2)
    assert head.connection.weight is not None
    with torch.no_grad():
        head.connection.weight.fill_(-1)
    assert (head.weight == 0).all()
    head.after_step()
    assert (head.connection.weight == 0).all()
    head.weight.sum().backward()
    assert (head.connection.weight.grad == 1).all(), "at 0 it can rise again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "per_class=0"),
        ({"dim": 0}, "dim=0"),
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"connection": "sign"}, "did you mean 'signed'"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProtoPNet(5, 2, **options)


RECIPE = """
data: {name: critters, options: {size: 64, count: 80}, validation: 0.25, batch_size: 16}
model: {backbone: test_resnet, head: protopnet, image_size: 64, crop_pct: 1.0, head_kwargs: {per_class: 2, dim: 8}}
epochs: 4
"""


def test_a_run_projects_prunes_and_publishes_where_from(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    phases = (
        "phases=[{name: joint, epochs: 1, project: true}, {name: last, trains: ['head.connection.*'], prune: true}, "
        "{name: judged, epochs: 1, trains: []}]"
    )
    trainer = Trainer(load_recipe(str(path), [phases]), tmp_path / "run", shows_progress=False)
    trainer.fit()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["top1_before_projection"] == rows[0]["val_top1"] and rows[1]["top1_after_projection"]
    assert rows[3]["top1_before_pruning"] == rows[2]["val_top1"] and float(rows[3]["prototypes"]) <= 16
    assert rows[3]["train_loss"] == "" and rows[3]["val_top1"] == rows[3]["top1_after_pruning"], "only judged"
    model = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'run' / 'best'}")
    assert [entry["prototype"] for entry in model.provenance] == list(range(16))
    assert model.provenance == trainer.model.provenance
    training = trainer.loaders.training.dataset
    assert {entry["image"] for entry in model.provenance} <= {training[number]["id"] for number in range(len(training))}
    (tmp_path / "run" / "best" / "prototypes.json").write_text("[{")
    with pytest.raises(InputError, match=r"prototypes\.json is truncated"):
        glasszoo.load_pretrained(f"local-dir:{tmp_path / 'run' / 'best'}")


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_in_any_phase(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    whole = Trainer(load_recipe(str(path)), tmp_path / "whole", shows_progress=False)
    whole.fit()
    stopped = Trainer(load_recipe(str(path)), tmp_path / "stopped", shows_progress=False)
    validate = stopped._validate

    def until() -> dict[str, float]:
        if stopped.progress.done == stop:
            raise RuntimeError("stopped")
        return validate()

    monkeypatch.setattr(stopped, "_validate", until)
    with pytest.raises(RuntimeError, match="stopped"):
        stopped.fit()
    resumed = Trainer(load_recipe(str(path)), tmp_path / "stopped", resume=True, shows_progress=False)
    resumed.fit()
    assert resumed.model.provenance == whole.model.provenance
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
