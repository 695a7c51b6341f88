"""Interventions: a model that adds up pixels, whose maps' claims are exact, and claims that are wrong."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from glasszoo import load_pretrained
from glasszoo.__main__ import main
from glasszoo.data import create_dataset
from glasszoo.data.critters import Critters
from glasszoo.evaluation import METHODS, Conventions, MapMethod
from glasszoo.evaluation.interventions import INTERVENTIONS, Outcome, judge_interventions, spread
from glasszoo.evaluation.part_truth import seen
from glasszoo.models import Preprocessing

CHOSEN = Conventions(bootstrap=100)


class Sum(nn.Module):
    """Each class a weighted sum of all pixels' distances from white, as far as judging looks at a classifier."""

    def __init__(self) -> None:
        super().__init__()
        plain = Preprocessing((3, 64, 64), crop_pct=1.0, mean=(1, 1, 1), std=(1, 1, 1))
        self.config = SimpleNamespace(class_names=None, preprocessing=plain)
        self.preprocess, self.num_classes, self.grid, self.contract = plain.transform(), 8, None, None
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, images: Tensor, explain: int = 0) -> SimpleNamespace:
        return SimpleNamespace(logits=-images.sum((1, 2, 3))[:, None] * self.weight / 100)

    def worth(self, images: Tensor, classes: Tensor) -> Tensor:
        return -images.sum(1) * self.weight[classes][:, None, None] / 100


@pytest.fixture(scope="module")
def data() -> Critters:
    dataset = create_dataset("critters", "test", count=24)
    assert isinstance(dataset, Critters)
    return dataset


def judged(data: Critters, monkeypatch: pytest.MonkeyPatch, **how: int) -> dict[str, Outcome]:
    model = Sum()
    maps = {
        "right": lambda images, classes, indices: model.worth(images, classes).detach(),
        "halved": lambda images, classes, indices: model.worth(images, classes).detach() / 2,
        "turned": lambda images, classes, indices: -model.worth(images, classes).detach(),
        "empty": lambda images, classes, indices: torch.zeros_like(images[:, 0]),
    }
    for name, explain in maps.items():
        method = MapMethod(name, "post-hoc", explain)
        monkeypatch.setitem(METHODS, name, lambda model, method=method: method)
    found = judge_interventions(model, data, list(maps), conventions=CHOSEN, progress=False, **how)  # type: ignore[arg-type]
    return {outcome.intervention: outcome for outcome in found}


def test_what_is_said_is_the_worth_of_what_is_taken(data: Critters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing a part takes its worth away; what stood behind it comes, so that the claim is right in proportion."""
    model, found = Sum(), judged(data, monkeypatch)
    assert list(found) == list(INTERVENTIONS)
    scenes = data.scenes(range(24))
    before = seen(scenes, 64, model.preprocess)
    with torch.no_grad():
        worth = model.worth(before.images, torch.full((24,), 7))
    wing = found["remove wing"]
    right, halved, turned, empty = wing.claims
    torch.testing.assert_close(right.predicted, -(worth * before.parts[:, 1]).sum((1, 2)).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(halved.predicted * 2, right.predicted)
    torch.testing.assert_close(turned.predicted, -right.predicted)
    assert wing.slope(halved).mean == pytest.approx(2 * wing.slope(right).mean)
    assert wing.correlation(turned).mean == pytest.approx(-wing.correlation(right).mean)
    assert wing.correlation(empty).images == 24 and wing.slope(empty).mean != wing.slope(empty).mean, "NaN"


def test_a_claim_about_all_that_changes_is_exact() -> None:
    """Of an additive model, with white put in the region's place: slope and correlation are 1."""
    model = Sum()
    images = torch.rand(50, 3, 8, 8)
    region = torch.rand(50, 8, 8) < 0.3
    with torch.no_grad():
        worth = model.worth(images, torch.full((50,), 7))
        after = model(images.masked_fill(region[:, None], 0)).logits[:, 7] - model(images).logits[:, 7]
    outcome = Outcome("x", CHOSEN, after, torch.zeros(50), [])
    claim = SimpleNamespace(predicted=-(worth * region).sum((1, 2)))
    assert outcome.slope(claim).mean == pytest.approx(1, abs=1e-4)  # type: ignore[arg-type]
    assert outcome.correlation(claim).mean == pytest.approx(1, abs=1e-4)  # type: ignore[arg-type]


def test_real_changes_are_those_of_the_scenes(data: Critters, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(data, monkeypatch)
    assert found["move"].claims == [] and found["move"].real.abs().mean() > 0
    assert not found["remove head"].flips.any(), "class 7 has the largest weight, always"
    assert found["new background"].real.std() > 10 * found["remove mark"].real.std()


def test_batches_do_not_count(data: Critters, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, apart = (judged(data, monkeypatch, batch_size=size, max_explained=10) for size in (10, 3))
    for name in INTERVENTIONS:
        torch.testing.assert_close(whole[name].real, apart[name].real, atol=1e-4, rtol=1e-4)
        for one, two in zip(whole[name].claims, apart[name].claims, strict=True):
            torch.testing.assert_close(one.predicted, two.predicted, atol=1e-4, rtol=1e-4)


def test_a_cell_s_evidence_is_spread_and_its_sum_stays() -> None:
    maps = torch.rand(2, 4, 3) - 0.5
    pixels = spread(maps, (64, 48))
    torch.testing.assert_close(pixels.sum((1, 2)), maps.double().sum((1, 2)))
    torch.testing.assert_close(pixels[:, :16, :16].sum((1, 2)), maps[:, 0, 0].double())
    assert torch.equal(spread(pixels, (64, 48)), pixels)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "cam_test_byobnet.s64_critters"
    assert main(["do", f"cam={name}", "--max-explained", "6", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "do.csv").open(newline="")))
    told = json.loads((tmp_path / "do.json").read_text())["outcomes"]
    assert len(rows) == len(told) == 3 * (len(INTERVENTIONS) - 1) + 1
    assert {row["change"] for row in rows} == set(INTERVENTIONS) and "swap to another class" in printed
    head = next(row for row in rows if row["change"] == "remove head" and row["map"] == "built-in")
    assert float(head["real"]) < -2 and float(head["correlation_images"]) == 6
    model = load_pretrained(name)
    assert main(["do", f"cam={name}", "--methods", "xyz"]) == 2 and model.num_classes == 8
    assert "unknown explanation method 'xyz'" in capsys.readouterr().err
