"""The sheet of a comparison: its front, its correlations, and files that say what the evaluations say."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judged import judged, method
from scipy.stats import spearmanr

from glasszoo.common.errors import InputError
from glasszoo.evaluation import METRICS, Conventions, Metric
from glasszoo.evaluation.sheet import NO_MAP, Sheet, pareto_front, spearman
from glasszoo.evaluation.sheet_files import as_csv, as_json, as_text, sheet_rows, write_sheet

NAN = math.nan


def test_front_of_hand_made_points() -> None:
    points = torch.tensor(
        [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.4], [0.0, 1.0], [0.0, 0.9], [2.0, NAN], [0.4, 0.45]]
    )
    assert pareto_front(points).tolist() == [True, True, True, False, True, False, False, False]
    assert pareto_front(torch.zeros(0, 2)).tolist() == []
    assert pareto_front(torch.full((2, 2), NAN)).tolist() == [False, False]


def two_models() -> Sheet:
    """`exact` is always right, `rough` half of the time; `rough` has the better maps."""
    exact = judged(
        [
            method("built-in", {"insertion": 0.6, "deletion": 0.3}, "built-in"),
            method("grad-cam", {"insertion": 0.6 + 2e-7, "deletion": 0.2}),
            method("random", {"insertion": 0.99, "deletion": 0.01}, "control"),
        ]
    )
    rough = judged(
        [
            method("built-in", {"insertion": 0.5, "deletion": 0.3}, "built-in"),
            method("grad-cam", {"insertion": (0.7, 0.9, NAN, NAN), "deletion": 0.1}),
        ],
        right=2,
    )
    return Sheet([("exact", exact), ("rough", rough)])


def test_the_front_takes_directions_ties_and_controls_into_account() -> None:
    sheet = two_models()
    assert sheet.front_by is METRICS["insertion"]
    assert [(row.model, row.method) for row in sheet.rows] == [
        ("exact", "built-in"), ("exact", "grad-cam"), ("exact", "random"), ("rough", "built-in"), ("rough", "grad-cam"),
    ]  # fmt: skip
    # The first two are the same up to rounding, the control is no explanation.
    assert sheet.on_front == [True, True, False, False, True]
    by_deletion = Sheet(list(sheet.evaluations.items()), "deletion")
    assert by_deletion.on_front == [False, True, False, False, True], "the lowest deletion is the best"


def test_missing_scores_are_counted_and_shown() -> None:
    sheet = two_models()
    interval = sheet.rows[-1].scores["insertion"]
    assert (interval.images, interval.missing) == (2, 2) and interval.mean == pytest.approx(0.8)
    text = as_text(sheet)
    assert "(n 2)" in text and "for want of a score (NaN), over all rows: insertion 2" in text
    nothing = Sheet([("blind", judged([method("built-in", {"insertion": NAN, "deletion": 0.3}, "built-in")]))])
    assert nothing.on_front == [False]
    assert "–" in sheet_rows(nothing)[1] and as_json(nothing)["rows"][0]["scores"]["insertion"]["mean"] is None


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_scipys(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randint(0, 6, (2, 9), generator=generator).double()  # with ties
    assert spearman(one, two) == pytest.approx(spearmanr(one, two).statistic, abs=1e-12)
    one[[1, 4]] = NAN
    known = ~one.isnan()
    assert spearman(one, two) == pytest.approx(spearmanr(one[known], two[known]).statistic, abs=1e-12)


def test_rank_correlation_is_not_invented() -> None:
    full = torch.tensor([1.0, 2.0, 3.0])
    assert math.isnan(spearman(full, torch.tensor([1.0, 2.0, NAN]))), "two rows say nothing"
    assert math.isnan(spearman(full, torch.ones(3))), "the same in all rows"
    assert spearman(full, torch.tensor([5.0, 6.0, 9.0])) == pytest.approx(1)


def test_correlation_has_directions_aligned_and_leaves_controls_out() -> None:
    scores = {"a": (0.9, 0.1), "b": (0.8, 0.2), "c": (0.7, 0.3)}  # insertion falls as deletion grows: they agree
    methods = [method(name, {"insertion": i, "deletion": d}) for name, (i, d) in scores.items()]
    against = [method(name, {"insertion": 0.95 - i / 10, "deletion": 0.9}, "control") for i, name in enumerate("xyz")]
    matrix = Sheet([("one", judged([*methods, *against]))]).correlation
    torch.testing.assert_close(matrix, torch.ones(2, 2))
    assert Sheet([("one", judged([*methods[:2], *against]))]).correlation.isnan().all()


def test_csv_and_json_say_what_the_evaluations_say(tmp_path: Path) -> None:
    sheet = two_models()
    write_sheet(sheet, tmp_path, command="glasszoo compare …")
    told = json.loads((tmp_path / "sheet.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "sheet.csv").read_text())))
    assert told["about"]["command"] == "glasszoo compare …" and told["conventions"]["steps"] == 28
    assert (
        told["metrics"]["deletion"]["best"] == "lowest" and "lower is better" in told["metrics"]["deletion"]["protocol"]
    )
    by_row = {(line["model"], line["method"], line["quantity"]): line for line in lines}
    assert len(by_row) == len(lines)
    for row in told["rows"]:
        evaluation = sheet.evaluations[row["model"]]
        (own,) = (found for found in evaluation.methods if found.name == row["method"])
        assert row["top1"]["mean"] == evaluation.accuracy()["top1"].mean
        for metric in ("insertion", "deletion"):
            expected = evaluation.score(own, metric)
            line = by_row[row["model"], row["method"], metric]
            assert row["scores"][metric] == expected._asdict()
            assert [float(line[key]) for key in ("value", "low", "high")] == list(expected[:3])
            assert (int(line["images"]), int(line["missing"])) == expected[3:]
            assert line["better"] == METRICS[metric].best and line["protocol"]
        assert row["cost"] == own.cost
        assert float(by_row[row["model"], row["method"], "milliseconds"]["value"]) == own.cost["milliseconds"]
        assert (row["completeness_gap"] is None) == (row["kind"] != "built-in")
        assert bool(int(line["on_front"])) == row["is_on_front"]
    assert told["models"]["rough"]["accuracy"]["top1"]["mean"] == 0.5


def test_any_metric_of_the_registry_has_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is known by name: one that nobody foresaw, pooled over the set, with a cost that nobody foresaw."""
    pool = lambda values, counts: (counts @ values[:, 0].double()) / counts.sum(1)  # noqa: E731
    strange = Metric("strangeness", "strange", "lowest", lambda _: {}, lambda _: "how strange it is", pool=pool)
    monkeypatch.setitem(METRICS, "strangeness", strange)
    ways = [method(name, {}) for name in ("a", "b")]
    for way, value in zip(ways, (0.2, 0.4), strict=True):
        way.pooled["strangeness"] = torch.full((4, 1), value)
        way.cost["peak_megabytes"] = 12.5
    sheet = Sheet([("one", judged(ways))])
    header, first, _ = sheet_rows(sheet)
    assert {"strange ↓", "peak megabytes"} <= set(header) and "0.200 ± 0.000" in first and "12.50" in first
    assert sheet.front_by is strange and sheet.on_front == [True, False]
    assert "how strange it is" in as_csv(sheet)


def test_a_model_without_a_map_keeps_its_row() -> None:
    sheet = Sheet([("one", judged([method("built-in", {"insertion": 0.5}, "built-in")])), ("dark", judged([]))])
    assert [(row.model, row.method) for row in sheet.rows] == [("one", "built-in"), ("dark", NO_MAP)]
    assert sheet.on_front == [True, False] and "dark" in as_text(sheet)
    assert as_text(Sheet([("dark", judged([]))]))


def test_what_does_not_compare_is_refused() -> None:
    one = judged([method("a", {"insertion": 0.5})])
    for wrong, sentence in (
        ([("same", one), ("same", one)], "'same' is given twice"),
        (
            [("one", one), ("two", replace(one, conventions=Conventions(steps=7)))],
            "other conventions.*: steps, bootstrap",
        ),
        ([("one", one), ("two", replace(one, ids=["1", "2", "3", "4"]))], "other images"),
        ([], "at least one"),
    ):
        with pytest.raises(InputError, match=sentence):
            Sheet(wrong)
    with pytest.raises(InputError, match="deletion, which was not scored: insertion were"):
        Sheet([("one", one)], "deletion")
    with pytest.raises(InputError, match="unknown metric 'insertoin'"):
        Sheet([("one", one)], "insertoin")
