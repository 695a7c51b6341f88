"""The sweep as a whole: what it leaves alone, what it counts, what it refuses, and what it writes."""

import copy
import csv
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.folder import ImageFolder
from glasszoo.data.samples import ImageDataset
from glasszoo.evaluation import (
    METHODS,
    Conventions,
    Evaluation,
    MapMethod,
    evaluate,
    lacking_methods,
    map_method,
    quick_methods,
)
from glasszoo.evaluation.cost import peak_memory
from glasszoo.evaluation.report import write_report
from glasszoo.evaluation.results import as_csv, as_json, as_table, score_rows, write_results
from glasszoo.models import BLACK_BOX, ImageClassifier, Preprocessing

SIZE = Preprocessing((3, 64, 64), crop_pct=1.0)


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return create_dataset("critters", "test", count=14)


def made(head: str = "cam", classes: int = 8) -> ImageClassifier:
    torch.manual_seed(0)
    options = {"num_classes": classes, "output_stride": 16, "preprocessing": SIZE}
    model = glasszoo.create_model("test_byobnet", head=head, **options)  # type: ignore[arg-type]
    return model.train()


def judged(model: ImageClassifier, dataset: ImageDataset, **options: object) -> Evaluation:
    settings = {"conventions": Conventions(steps=6, bootstrap=100), "progress": False} | options
    return evaluate(model, dataset, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def evaluation(dataset: ImageDataset) -> Evaluation:
    return judged(made(), dataset, max_explained=7)


def test_the_model_is_left_as_it_was(dataset: ImageDataset) -> None:
    model = made()
    before = copy.deepcopy(model.state_dict())
    judged(model, dataset, max_explained=3)
    judged(model, dataset, max_explained=3)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks and not model.backbone._forward_hooks


def test_scores_depend_on_neither_batch_nor_company(dataset: ImageDataset) -> None:
    one = judged(made(), dataset, batch_size=14)
    two = judged(made(), dataset, batch_size=4, methods=("random", "built-in"))
    for name in ("built-in", "random"):
        (a,), (b,) = ([m for m in run.methods if m.name == name] for run in (one, two))
        for metric, scores in a.scores.items():
            torch.testing.assert_close(scores, b.scores[metric], atol=1e-5, rtol=0, equal_nan=True)


def test_every_table_has_its_controls_and_costs(evaluation: Evaluation) -> None:
    methods = {method.name: method for method in evaluation.methods}
    assert set(methods) == set(quick_methods())
    assert {name for name, method in methods.items() if method.kind == "control"} == {"random", "centre", "uniform"}
    passes = {name: (method.cost["forwards"], method.cost["backwards"]) for name, method in methods.items()}
    assert passes["built-in"] == (1, 0) and passes["grad-cam"] == (1, 1) and passes["random"] == (0, 0)
    for method in methods.values():
        assert method.cost["milliseconds"] > 0
        assert all(len(scores) == 7 for scores in method.scores.values())
        assert all(len(curve) == 7 for curve in method.curves.values()), "six steps and a start"


def test_a_uniform_map_scores_chance(evaluation: Evaluation) -> None:
    (uniform,) = (method for method in evaluation.methods if method.name == "uniform")
    torch.testing.assert_close(uniform.scores["energy_pointing_game"], evaluation.chance, atol=1e-6, rtol=0)


def test_completeness_and_accuracy_are_those_of_the_model(dataset: ImageDataset, evaluation: Evaluation) -> None:
    assert len(evaluation.ids) == 14 and evaluation.gaps.max() < 1e-4
    assert torch.equal(evaluation.labels, dataset.labels)
    expected = (evaluation.logits.argmax(1) == dataset.labels).double().mean().item()
    assert evaluation.accuracy()["top1"].mean == pytest.approx(expected)


def test_grad_cam_of_a_linear_head_is_its_evidence(dataset: ImageDataset) -> None:
    """Known truth about an outside method: at the head's input, Grad-CAM and CAM differ by a constant factor."""
    model = made().eval()
    images = torch.randn(3, 3, 64, 64)
    classes, indices = torch.tensor([0, 5, 2]), torch.arange(3)
    evidence, grad_cam = (
        map_method(name, model).explain(images, classes, indices) for name in ("built-in", "grad-cam")
    )
    torch.testing.assert_close(grad_cam, evidence.detach(), atol=1e-6, rtol=1e-4)


def test_a_black_box_has_no_built_in_map(dataset: ImageDataset) -> None:
    evaluation = judged(made(BLACK_BOX), dataset, max_explained=2)
    assert "built-in" not in [method.name for method in evaluation.methods]
    assert evaluation.gaps.isnan().all() and as_json(evaluation)["completeness_gap_max"] is None
    with pytest.raises(InputError, match="a black box has no built-in map"):
        map_method("built-in", made(BLACK_BOX))


def test_a_broken_map_has_no_score_and_is_counted(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ImageClassifier) -> MapMethod:
        holed = torch.ones(64, 64)
        holed[3, 3] = torch.nan
        explain = lambda images, classes, indices: torch.stack(  # noqa: E731
            [holed if index == second else torch.ones(64, 64) for index in indices.tolist()]
        )
        return MapMethod("broken", "post-hoc", explain)

    second = zlib.crc32(dataset[14 // 3]["id"].encode())  # type: ignore[index]
    monkeypatch.setitem(METHODS, "broken", broken)
    evaluation = judged(made(), dataset, methods=["broken"], max_explained=3)
    for scores in evaluation.methods[0].scores.values():
        assert scores.isnan().tolist() == [False, True, False]
        assert evaluation.interval(scores).missing == 1
    assert "(n 2)" in as_table(score_rows(evaluation))


def test_target_label_scores_the_map_of_the_true_class(dataset: ImageDataset) -> None:
    conventions = Conventions(target="label", output="logit", steps=4, bootstrap=100)
    evaluation = judged(made(), dataset, methods=["built-in"], metrics=["deletion"], conventions=conventions)
    start = evaluation.methods[0].curves["deletion"][0].item()
    own = evaluation.logits.gather(1, evaluation.labels[:, None]).mean().item()
    assert start == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["gradcam"]}, "unknown explanation method 'gradcam': did you mean 'grad-cam'"),
        ({"metrics": ["insertoin"]}, "unknown metric 'insertoin': did you mean 'insertion'"),
    ],
)
def test_unknown_names_are_named(dataset: ImageDataset, options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judged(made(), dataset, **options)


def test_a_model_for_other_classes_is_refused(dataset: ImageDataset) -> None:
    with pytest.raises(
        InputError, match=r"the model knows 5 unnamed classes, but the data set has 8 classes \(horned-fan"
    ):
        judged(made(classes=5), dataset)
    model = glasszoo.create_model("test_byobnet", num_classes=8, class_names=tuple("abcdefgh"))
    with pytest.raises(InputError, match=r"the model knows 8 classes \(a, b, c, d, e, f, …\)"):
        judged(model, dataset)


@pytest.fixture
def with_broken(tmp_path: Path) -> ImageFolder:
    for number in range(8):
        path = tmp_path / f"class {number}" / "image.png"
        path.parent.mkdir()
        Image.new("RGB", (70, 64), (30 * number, 0, 0)).save(path)
    (tmp_path / "class 2" / "image.png").write_bytes(b"no image")
    return ImageFolder(tmp_path)


def test_unreadable_images_are_left_out_and_counted(with_broken: ImageFolder) -> None:
    with pytest.raises(InputError, match="class 2/image.png is no image"):
        judged(made(), with_broken)
    evaluation = judged(made(), with_broken, on_error="skip", batch_size=3)
    assert len(evaluation.ids) == len(evaluation.explained_ids) == 7
    assert len(evaluation.unreadable) == 1 and "class 2/image.png is no image" in evaluation.unreadable[0]


def test_without_masks_there_is_nothing_to_point_at(with_broken: ImageFolder) -> None:
    evaluation = judged(made(), with_broken, on_error="skip", methods=["random"])
    assert evaluation.methods[0].scores["pointing_game"].isnan().all()
    table = as_table(score_rows(evaluation))
    assert "–" in table and "chance" not in table


def test_what_is_written_agrees(evaluation: Evaluation, dataset: ImageDataset, tmp_path: Path) -> None:
    write_results(evaluation, tmp_path, command="me")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["about"]["command"] == "me" and results["model"]["head"] == "cam"
    assert results["conventions"]["steps"] == 6 and results["explained_images"] == 7
    rows = list(csv.DictReader(io.StringIO((tmp_path / "per_image.csv").read_text())))
    assert [row["id"] for row in rows] == evaluation.ids
    for method in results["methods"]:
        for metric, interval in method["scores"].items():
            cells = [float(row[f"{method['name']}/{metric}"]) for row in rows if row[f"{method['name']}/{metric}"]]
            assert len(cells) == interval["images"]
            assert sum(cells) / len(cells) == pytest.approx(interval["mean"], abs=1e-4)
            assert interval["low"] <= interval["mean"] <= interval["high"]
    assert as_csv(evaluation).count("\n") == 15


def test_the_report_stands_alone(evaluation: Evaluation, dataset: ImageDataset, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "A <title>", {"cam & co": evaluation}, dataset, examples=3, command="me")
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page and "cam &amp; co" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page and "https://" not in page and "<script" not in page
    for method in quick_methods():
        assert f"<td>{method}</td>" in page


def test_without_captum_the_rest_works(monkeypatch: pytest.MonkeyPatch, dataset: ImageDataset) -> None:
    monkeypatch.setattr("glasszoo.evaluation.methods.find_spec", lambda name: None)
    model = glasszoo.create_model("test_byobnet", num_classes=8, preprocessing=SIZE).eval()
    with pytest.raises(InputError, match=r"grad-cam needs captum: pip install 'glasszoo\[posthoc\]'"):
        evaluate(model, dataset, methods=["grad-cam"], progress=False)
    (sentence,) = lacking_methods()
    assert sentence.startswith("grad-cam needs captum")
    done = evaluate(model, dataset, metrics=["pointing_game"], max_explained=2, progress=False)
    assert [method.name for method in done.methods] == ["built-in", "random", "centre", "uniform"]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((90, 70), 80).convert("RGB").save(path)
    return path


def test_pictures_of_single_explanations(photograph: Path, tmp_path: Path) -> None:
    from glasszoo.evaluation.explaining import class_number, explain_images

    done = explain_images(made(), [photograph], tmp_path / "out", top=2)
    assert done[0].picture == tmp_path / "out" / "photo.png" and done[0].explained.classes.shape == (1, 2)
    with Image.open(done[0].picture) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 500
    chosen = explain_images(made(), [photograph], tmp_path / "out", classes=["3", "1"])
    assert chosen[0].explained.classes.tolist() == [[3, 1]]
    for wrong, message in ((["9"], "unknown class '9'"), (["x"], "unknown class 'x'")):
        with pytest.raises(InputError, match=message):
            explain_images(made(), [photograph], tmp_path, classes=wrong)
    for wrong, message in (
        ("crane", r"2 classes are called 'crane': give a number \(0, 2\)"),
        ("3", "unknown class '3'"),
    ):
        with pytest.raises(InputError, match=message):
            class_number(wrong, ["crane", "heron", "crane"])
    with pytest.raises(InputError, match="a black box does not explain itself"):
        explain_images(made(BLACK_BOX), [photograph], tmp_path)


def test_images_of_one_name_do_not_overwrite_each_other(photograph: Path, tmp_path: Path) -> None:
    from glasszoo.evaluation.explaining import explain_images

    twin = tmp_path / "other" / "photo.png"
    twin.parent.mkdir()
    Image.new("RGB", (64, 64)).save(twin)
    done = explain_images(made(), [photograph, twin, twin], tmp_path / "out")
    assert len({explanation.picture for explanation in done}) == 3


def test_the_coffee_masks_count(shared: Callable[[str], Path]) -> None:
    """On real data: healthy leaves have no lesion, so they have no pointing score."""
    dataset = create_dataset(str(shared("data/coffee_leaf")), "test")
    evaluation = judged(made(classes=5), dataset, methods=["uniform"], metrics=["pointing_game"], max_explained=40)
    healthy = sum(identifier.startswith("images/healthy") for identifier in evaluation.explained_ids)
    assert evaluation.interval(evaluation.chance).missing == healthy > 0


def test_placement_moves_maps_on_the_grid_and_no_others(dataset: ImageDataset) -> None:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_byobnet", num_classes=8, preprocessing=SIZE).eval()
    assert model.grid is not None and model.grid.centre != (model.grid.stride / 2,) * 2
    done = {
        placement: evaluate(
            model,
            dataset,
            methods=["built-in", "centre"],
            metrics=["energy_pointing_game"],
            conventions=Conventions(placement=placement),
            progress=False,
        ).methods
        for placement in ("stretched", "receptive_field")
    }
    (built_in, centre), (moved, unmoved) = done["stretched"], done["receptive_field"]
    assert not torch.equal(built_in.scores["energy_pointing_game"], moved.scores["energy_pointing_game"])
    assert torch.equal(centre.scores["energy_pointing_game"], unmoved.scores["energy_pointing_game"])


def test_maps_that_claim_to_add_up_are_held_to_it(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """One owes the logit's rise over the mean colour and gives half as much again; the others claim nothing."""
    model = made().eval()
    with torch.no_grad():
        nothing = model(torch.zeros(1, 3, 64, 64), explain=0).logits

    def generous(judged: ImageClassifier) -> MapMethod:
        def explain(images: torch.Tensor, classes: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            owed = (judged(images, explain=0).logits - nothing).gather(1, classes[:, None])[:, 0]
            return (1.5 * owed / 16)[:, None, None].expand(-1, 4, 4)

        return MapMethod("generous", "post-hoc", explain, completes=True)

    monkeypatch.setitem(METHODS, "generous", generous)
    names = ["built-in", "generous", "deeplift", "random"]
    found = judged(model, dataset, methods=names, metrics=["pointing_game"], batch_size=5)
    built_in, claimed, deeplift, random = found.methods
    torch.testing.assert_close(claimed.gaps, torch.full((14,), 0.5), atol=1e-3, rtol=0)
    assert claimed.gap == pytest.approx(0.5, abs=1e-3) and deeplift.gap < 1e-3
    assert built_in.gaps.isnan().all() and random.gaps.isnan().all()
    assert [row[-1] for row in score_rows(found)[1:3]] == ["–", "5e-01"]


def test_memory_is_what_is_held_at_once() -> None:
    def wasteful() -> None:
        first = torch.ones(2**18)  # one MiB
        second = first + 1
        del first
        (second + 1).sum()

    assert peak_memory(wasteful, torch.device("cpu")) == pytest.approx(2, abs=0.01)
    assert peak_memory(lambda: torch.ones(3 * 2**18), torch.device("cpu")) == pytest.approx(3, abs=0.01)
