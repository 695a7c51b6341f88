"""Differences between models and between methods, image by image, and seeds merged: cases worked out by hand."""

import json
import math

import pytest
import torch
from judged import IMAGES, judged, method

from glasszoo.evaluation.paired import method_differences, model_differences, over_seeds
from glasszoo.evaluation.sheet import Sheet
from glasszoo.evaluation.sheet_files import as_json, as_text, method_difference_rows, model_difference_rows, seed_rows

NAN = math.nan


def test_models_are_held_against_the_most_accurate() -> None:
    sheet = Sheet([("rough", judged([], right=1)), ("exact", judged([])), ("twin", judged([]))])
    rough, twin = model_differences(sheet)
    assert (rough.model, rough.reference, twin.model, twin.reference) == ("rough", "exact", "twin", "exact")
    assert rough.top1.mean == -0.75 and (rough.mcnemar.only_first, rough.mcnemar.only_second) == (0, 3)
    assert rough.mcnemar.p_value == 0.25, "two of the eight outcomes of three coins are as extreme"
    assert twin.top1[:4] == (0, 0, 0, 1) and twin.mcnemar.p_value == 1


def test_methods_are_held_against_the_built_in_map() -> None:
    methods = [
        method("random", {"insertion": (0.1, 0.3, NAN, 0.4)}, "control"),
        method("built-in", {"insertion": (0.5, 0.6, 0.7, 0.5), "deletion": 0.2}, "built-in"),
    ]
    (found,) = method_differences(Sheet([("only", judged(methods))]))
    assert (found.model, found.method, found.metric) == ("only", "random", "insertion")
    assert found.score.mean == pytest.approx(-0.8 / 3) and (found.score.images, found.score.missing) == (3, 1)
    assert found.score.p_value == 0.25 and found.score.high < 0
    black_box = [method("grad-cam", {"insertion": 0.5}), method("random", {"insertion": 0.1}, "control")]
    assert method_differences(Sheet([("box", judged(black_box))])) == []


def test_seeds_are_merged_by_name() -> None:
    def seed(right: int, insertion: float) -> object:
        own = method("built-in", {"insertion": insertion}, "built-in")
        return judged([own, *([method("grad-cam", {"insertion": 0.1})] if right == 4 else [])], right=right)

    sheet = Sheet([("cam@0", seed(4, 0.5)), ("gmp", seed(1, 0.9)), ("cam@1", seed(2, 0.7)), ("lone@0", seed(1, 0.2))])
    top1, insertion = over_seeds(sheet)
    assert (top1.model, top1.method, top1.metric, top1.merged.mean) == ("cam", "", "top1", 0.75)
    assert (insertion.method, insertion.metric) == ("built-in", "insertion"), "Grad-CAM is there for one seed only"
    assert insertion.merged.mean == pytest.approx(0.6) and insertion.merged.seeds == 2
    assert insertion.merged.seed_deviation == pytest.approx(0.2 / 2**0.5)
    assert insertion.merged.images_low == pytest.approx(0.6), "all images alike: another test set changes nothing"
    assert insertion.merged.low < 0.6 < insertion.merged.high


def test_what_is_told_is_what_was_found() -> None:
    methods = [method("built-in", {"insertion": 0.5}, "built-in"), method("random", {"insertion": 0.25}, "control")]
    sheet = Sheet([("a@0", judged(methods)), ("a@1", judged(methods, right=1))])
    row = model_difference_rows(sheet)[1]
    assert row[:2] == ["a@1", "a@0"] and row[2].startswith("-0.750 [-1.000, ") and row[3:] == ["0", "3", "0.25"]
    assert method_difference_rows(sheet)[1] == ["a@0", "random", "-0.250 [-0.250, -0.250]", "0.12"]
    assert [row[:4] for row in seed_rows(sheet)[1:]] == [
        ["a", "–", "top-1 ↑", "0.625"],
        ["a", "built-in", "insertion ↑", "0.500"],
        ["a", "random", "insertion ↑", "0.250"],
    ]
    text, tree = as_text(sheet), json.loads(json.dumps(as_json(sheet)))
    assert "Over seeds" in text and "Against the most accurate model" in text
    assert tree["differences"]["models"][0]["mcnemar"] == {"only_first": 0, "only_second": 3, "p_value": 0.25}
    assert tree["differences"]["over_seeds"][0]["merged"]["images"] == IMAGES
    alone = as_text(Sheet([("a", judged(methods[:1]))]))
    assert "Over seeds" not in alone and "Against" not in alone


def test_an_evaluation_tells_how_sure_it_is() -> None:
    found = judged([], right=3)
    confidence = torch.tensor(4.0).exp() / (torch.tensor(4.0).exp() + 2)
    rest = (1 - confidence) / 2
    right, wrong = (1 - confidence) ** 2 + 2 * rest**2, confidence**2 + (1 - rest) ** 2 + rest**2
    assert found.brier().mean == pytest.approx(((3 * right + wrong) / 4).item(), rel=1e-5)
    assert found.selective().accuracy_at(1) == pytest.approx(0.75)
