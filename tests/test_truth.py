"""glasszoo truth: what it finds of models, what it writes, and one sentence for what is wrong."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data.critter_rules import SLOTS
from glasszoo.data.critters import Critters
from glasszoo.evaluation import METHODS, Conventions, MapMethod
from glasszoo.evaluation.part_truth import part_renders, part_shapley, seen
from glasszoo.evaluation.truth import CONTROLS, TRUTH_SCORES, Truth, judge_truth, truth_methods
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing, open_model, save_pretrained

FEW = ("--data-option", "count=6", "--methods", "built-in", "--batch-size", "4", "--device", "cpu")
NAMES = list(TRUTH_SCORES)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained() -> ImageClassifier:
    """The checkpoint that ships."""
    return open_model("cam_test_byobnet.s64_critters")


@pytest.fixture(scope="module")
def critters() -> Critters:
    return Critters("test", count=12)


@pytest.fixture(scope="module")
def truth(trained: ImageClassifier, critters: Critters) -> Truth:
    return judge_truth(trained, critters, methods=["built-in"], progress=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained, but with classifiers that are not all zeros."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, head, classes) in enumerate((("cam", "cam", 8), ("dark", BLACK_BOX, 8), ("two", "cam", 2))):
        torch.manual_seed(seed)
        size = Preprocessing((3, 64, 64), crop_pct=1.0)
        model = glasszoo.create_model(
            "test_byobnet", head=head, num_classes=classes, output_stride=16, preprocessing=size
        )
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter)
        save_pretrained(model, folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


def scores_of(truth: Truth, method: str) -> dict[str, Tensor]:
    (found,) = [own for own in truth.methods if own.name == method]
    return found.scores


def exact(dataset: Critters, sign: float) -> Callable[[ImageClassifier], MapMethod]:
    """Maps whose sums over the parts are the Shapley values themselves, times a sign."""

    def make(model: ImageClassifier) -> MapMethod:
        def logits(images: Tensor, classes: Tensor) -> Tensor:
            return model(images, explain=0).logits.gather(1, classes[:, None])[:, 0]

        def explain(images: Tensor, classes: Tensor, indices: Tensor) -> Tensor:
            scenes = dataset.scenes(indices.numpy())
            worth = part_shapley(logits, part_renders(scenes, dataset.size, model.preprocess), classes)
            parts = seen(scenes, dataset.size, model.preprocess).parts
            return sign * torch.einsum("bp,bphw->bhw", worth / parts.sum((2, 3)), parts.double())

        return MapMethod(f"exact {sign:+g}", "post-hoc", explain)

    return make


def test_the_truth_beats_noise_and_noise_beats_its_opposite(
    trained: ImageClassifier, critters: Critters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "right", exact(critters, 1.0))
    monkeypatch.setitem(METHODS, "wrong", exact(critters, -1.0))
    truth = judge_truth(trained, critters, methods=["right", "wrong"], max_explained=6, progress=False)
    right, noise, wrong = (scores_of(truth, name) for name in ("exact +1", "random", "exact -1"))
    assert right["correctness"].min() > 0.999 and right["error"].max() < 1e-6
    assert wrong["correctness"].max() < -0.999 and wrong["error"].min() == 1
    for name in ("correctness", "error", "sufficiency", "necessity"):
        good, middle, bad = (own[name] if TRUTH_SCORES[name].best == "highest" else -own[name]
                             for own in (right, noise, wrong))  # fmt: skip
        assert good.mean() > middle.mean() > bad.mean(), name
    assert right["background"].max() < 1e-6 and noise["background"].mean() > 0.5
    # What the parts are worth adds up, whatever a method says of them.
    torch.testing.assert_close(truth.shapley.sum(1), truth.values[:, -1] - truth.values[:, 0], atol=1e-5, rtol=0)


def test_a_trained_model_uses_the_parts_of_the_rule(truth: Truth) -> None:
    worth = {slot: interval.mean for slot, interval in truth.worth().items()}
    assert min(worth["head"], worth["tail"]) > max(worth[slot] for slot in ("wing", "foot", "mark"))
    assert truth.rule_share().mean > 0.6 and truth.follows.float().mean() > 0.7
    assert [method.name for method in truth.methods] == ["built-in", *CONTROLS]
    assert all(list(method.scores) == NAMES for method in truth.methods)
    for method in truth.methods:
        # With none of the parts, or all, no order matters.
        torch.testing.assert_close(method.kept[[0, -1]], method.removed[[-1, 0]])
        torch.testing.assert_close(method.kept[[0, -1]], truth.values[:, [0, -1]].mean(0))


def test_controls(truth: Truth) -> None:
    oracle = scores_of(truth, "oracle")
    right = truth.predicted == truth.labels
    assert (oracle["rule_parts"][right] == 1).all() and (oracle["background"][right] == 0).all()
    assert (oracle["contrast"][truth.follows] == 1).all()
    for name in ("random", "centre", "uniform"):  # the same for every class
        contrasts = scores_of(truth, name)["contrast"]
        assert (contrasts[truth.follows] == 0).all() and contrasts[~truth.follows].isnan().all()


def test_neither_batches_nor_the_number_of_images_matter(
    trained: ImageClassifier, critters: Critters, truth: Truth
) -> None:
    trained.train()
    fewer = judge_truth(trained, critters, methods=["built-in"], batch_size=5, max_explained=8, progress=False)
    assert trained.training
    trained.eval()
    assert fewer.ids == truth.ids[:8]
    torch.testing.assert_close(fewer.shapley, truth.shapley[:8], atol=1e-5, rtol=0)
    for method in truth.methods:
        for name, scores in scores_of(fewer, method.name).items():
            torch.testing.assert_close(scores, method.scores[name][:8], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_the_target_chooses_the_class(models: dict[str, str], critters: Critters) -> None:
    model = open_model(models["cam"])
    found = {
        target: judge_truth(
            model, critters, methods=[], conventions=Conventions(target=target), max_explained=8, progress=False
        )
        for target in ("predicted", "label")
    }
    assert torch.equal(found["label"].classes, critters.labels[:8])
    assert torch.equal(found["predicted"].classes, found["predicted"].predicted)
    wrong = found["label"].predicted != found["label"].labels
    assert wrong.any() and (found["label"].shapley != found["predicted"].shapley)[wrong].any()
    assert scores_of(found["label"], "oracle")["rule_parts"].min() == 1


def test_the_table_and_the_files(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["truth", f"clear={models['cam']}", f"dark={models['dark']}", *FEW, "--out", "found"]) == 0
    printed = capsys.readouterr().out
    assert "clear: 6 images, top1" in printed and "mean Shapley value of head" in printed
    assert "correctness ↑" in printed and "on distractors ↓" in printed
    told = json.loads(Path("found/truth.json").read_text())
    assert list(told["models"]) == ["clear", "dark"] and told["about"]["command"].startswith("glasszoo truth")
    clear = told["models"]["clear"]
    assert list(clear["shapley"]) == list(SLOTS) and clear["images"] == 6
    with Path("found/truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["method"]) for row in rows] == [
        *(("clear", name) for name in ("built-in", *CONTROLS)),
        *(("dark", name) for name in CONTROLS),  # a black box has no map of its own
    ]
    for row, method in zip(rows, clear["methods"], strict=False):
        for name, interval in method["scores"].items():
            assert int(row[f"{name}_images"]) == interval["images"]
            if interval["mean"] is None:
                assert row[name] == ""
            else:
                assert float(row[name]) == pytest.approx(interval["mean"], rel=1e-5)
                assert interval["low"] <= interval["mean"] <= interval["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cam", "--methods", "grad-kam"], "unknown explanation method 'grad-kam': did you mean 'grad-cam'"),
        (["two"], "two: the model knows 2 unnamed classes, but the data set has 8 classes"),
        (["cam", "--data-option", "sise=64"], "unknown option of data set critters 'sise': did you mean 'size'"),
        (["cam", "--max-explained", "0"], "cam: at least 1 image is to be explained, got 0"),
        (["cam", "cam"], "the model 'cam' is given twice"),
        (["cam", "--batch-size", "0"], "cam: batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    named = [f"{word}={models[word]}" if word in models else word for word in arguments]
    assert main(["truth", *named, "--data-option", "count=6"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"glasszoo: {message}") and "\n" not in printed
    assert not Path("runs").exists()


def test_controls_come_with_every_table() -> None:
    assert truth_methods(["uniform", "built-in", "uniform"]) == ["uniform", "built-in", "random", "centre", "oracle"]
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        truth_methods(["oracel"])


def test_sizes_of_the_critters_are_tables_of_their_own(models: dict[str, str]) -> None:
    sizes = ("--object-size", "small", "--object-size", "large")
    assert main(["truth", f"cam={models['cam']}", *FEW, *sizes, "--out", "sizes"]) == 0
    told = json.loads(Path("sizes/truth.json").read_text())["models"]
    assert list(told) == ["cam small", "cam large"]
    expected = judge_truth(
        open_model(models["cam"]), Critters("test", count=6, object_size="small"), methods=["built-in"], progress=False
    )
    assert told["cam small"]["shapley"]["head"]["mean"] == pytest.approx(expected.worth()["head"].mean)
    assert told["cam small"]["shapley"] != told["cam large"]["shapley"]
