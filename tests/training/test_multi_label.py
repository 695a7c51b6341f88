"""Images that show several classes at once, or none: data, loss, measure, training, and what is refused."""

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional
from wandb_files import offline_runs

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.common.stopping import Stopped
from glasszoo.data import create_dataset
from glasszoo.data.folder import ImageFolder
from glasszoo.data.samples import targets_of
from glasszoo.data.subsets import Cached, Subset, split_validation
from glasszoo.evaluation import Conventions, evaluate
from glasszoo.evaluation.accuracy import average_precision
from glasszoo.evaluation.results import accuracy_line, as_csv, as_json
from glasszoo.heads import list_heads
from glasszoo.models import ImageClassifier
from glasszoo.training import Recipe, Trainer, load_recipe
from glasszoo.training.objective import Objective

NAMES = ("blue", "green", "red")
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
JUDGES_EACH = {
    "cam", "class_attention", "concepts", "dynamic_cam", "gated_attention", "gem", "gmp", "local_cam", "lse",
    "multiscale_cam", "noisy_or", "parts", "pay_attention", "scouter", "topk", "cbam",
}  # fmt: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images in which a red, a green and a blue square are there or not: all eight cases, eight times each."""
    root = tmp_path_factory.mktemp("squares")
    rows = []
    for split, repeats in (("train", 8), ("test", 2)):
        for shown, number in product(product((0, 1), repeat=3), range(repeats)):
            image = Image.new("RGB", (64, 64), (100 + 5 * number, 100, 100))
            for place, (name, is_there) in enumerate(zip(NAMES, shown, strict=True)):
                if is_there:
                    left, top = 20 * place + number % 3, 8 + 4 * number
                    image.paste(COLOURS[name], (left, top, left + 18, top + 18))
            path = f"{split}_{''.join(map(str, shown))}_{number}.png"
            image.save(root / path)
            rows.append([split, path, *shown])
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["split", "image", *NAMES], *rows])
    return root


def recipe_for(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(
        "coffee_multilabel",
        [
            f"data.name={folder}", f"data.options.labels=[{','.join(NAMES)}]", "data.validation=0.25",
            "data.batch_size=16", "model.backbone=test_byobnet", "model.output_stride=8", "model.image_size=64",
            "optimizer.lr=8e-3", "optimizer.warmup_epochs=0", "augmentation.crop=false", "augmentation.color_jitter=0",
            "epochs=12", *overrides,
        ],
    )  # fmt: skip


def test_a_folders_columns_are_the_classes(squares: Path) -> None:
    dataset = create_dataset(str(squares), "train", labels=["red", "blue"])
    targets = targets_of(dataset)
    assert dataset.classes == ("red", "blue") and targets is not None and targets.dtype == torch.uint8
    for index in range(len(dataset)):
        sample = dataset[index]
        assert isinstance(sample, dict)
        blue, _, red = map(int, sample["id"].split("_")[1])
        assert sample["targets"].tolist() == targets[index].tolist() == [red, blue]
        # The first that is there; 0 where none is.
        assert sample["label"] == dataset.labels[index] == (1 if blue and not red else 0)


@pytest.mark.parametrize(
    ("labels", "cell", "message"),
    [
        (["red", "gren"], "0", "unknown column of .*index.csv 'gren': did you mean 'green'"),
        (["red"], "2", "red of a.png is '2', where 0 or 1 is expected"),
        (["red"], "", "red of a.png is '', where 0 or 1"),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path: Path, labels: list[str], cell: str, message: str) -> None:
    (tmp_path / "index.csv").write_text(f"split,class,image,red,green\ntrain,x,a.png,{cell},1\n")
    with pytest.raises(InputError, match=message):
        ImageFolder(tmp_path, "train", labels)


def test_class_folders_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "oak").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "oak" / "a.png")
    with pytest.raises(InputError, match=r"has no index.csv, whose columns could be the labels red"):
        ImageFolder(tmp_path, "train", ["red"])


def test_both_parts_show_every_class_and_images_of_none(squares: Path) -> None:
    dataset = create_dataset(str(squares), "train", labels=list(NAMES))
    parts = split_validation(dataset, 0.25, seed=0)
    assert sorted(parts[0].indices + parts[1].indices) == list(range(64))
    for part, share in zip(parts, (0.75, 0.25), strict=True):
        for targets in (targets_of(part), targets_of(Cached(part))):
            assert targets is not None
            assert torch.equal(targets, torch.stack([part[index]["targets"] for index in range(len(part))]))  # type: ignore[index]
            assert bool((targets.sum(1) == 0).any())
            assert all(abs(count / 32 - share) < 0.15 for count in targets.sum(0).tolist())


def test_rare_classes_are_dealt_out_first() -> None:
    class Rare:
        classes, groups, labels = ("common", "rare"), torch.arange(40), torch.zeros(40, dtype=torch.int64)
        targets = torch.tensor([[1, int(row >= 36)] for row in range(40)], dtype=torch.uint8)

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            raise NotImplementedError

    for seed in range(5):
        training, validation = split_validation(Rare(), 0.25, seed)
        assert [part.targets[:, 1].sum() for part in (training, validation) if part.targets is not None] == [3, 1]
        assert len(validation) == 10


def test_a_class_that_comes_with_a_rarer_one_is_held_out_with_it() -> None:
    class Together:
        classes, groups, labels = ("both", "one", "two"), torch.arange(12), torch.zeros(12, dtype=torch.int64)
        targets = torch.tensor([[int(row % 3 == 0), int(row < 6), int(row >= 6)] for row in range(12)])

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            raise NotImplementedError

    for seed in range(10):
        for part in split_validation(Together(), 0.2, seed):
            assert part.targets is not None and bool((part.targets.sum(0) > 0).all())


@pytest.mark.parametrize("is_rough", [False, True])
def test_average_precision_is_scikit_learns(is_rough: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(60, 5, generator=generator)
    scores = scores.round() if is_rough else scores  # many ties
    targets = (torch.rand(60, 5, generator=generator) < 0.3).int()
    found = average_precision(scores, targets)
    for column in range(5):
        assert found[column].item() == pytest.approx(average_precision_score(targets[:, column], scores[:, column]))


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None]
    assert average_precision(scores, torch.tensor([1, 0, 1, 0])[:, None]).item() == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, torch.tensor([0, 0, 0, 1])[:, None]).item() == pytest.approx(1 / 4)
    assert average_precision(torch.zeros(4, 1), torch.tensor([1, 0, 0, 0])[:, None]).item() == pytest.approx(1 / 4)
    assert average_precision(scores, torch.zeros(4, 1)).isnan().all()
    # A NaN ranks last.
    first = torch.tensor([torch.nan, 3.0, 2.0, 1.0])[:, None]
    assert average_precision(first, torch.tensor([1, 0, 0, 0])[:, None]).item() == pytest.approx(1 / 4)


def test_an_image_counted_twice_is_there_twice() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, targets = torch.randn(20, 3, generator=generator), (torch.rand(20, 3, generator=generator) < 0.4).int()
    counts = torch.randint(0, 4, (6, 20), generator=generator)
    found = average_precision(scores, targets, counts.double())
    for row, often in zip(found, counts, strict=True):
        torch.testing.assert_close(
            row, average_precision(scores.repeat_interleave(often, 0), targets.repeat_interleave(often, 0))
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_binary_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", num_classes=3)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    total, terms, _, logits, _ = Objective(model, smoothing, {}, multi_label=True)(torch.randn(2, 3, 64, 64), targets)
    wanted = targets * (1 - smoothing) + smoothing / 2
    by_hand = -(wanted * logits.sigmoid().log() + (1 - wanted) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(terms["classification"], by_hand)
    torch.testing.assert_close(total.detach(), by_hand)


@pytest.mark.parametrize("head", [*list_heads(), "black_box"])
def test_heads_that_judge_each_class_train_and_others_say_no(head: str) -> None:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head=head, num_classes=3)
    if head in JUDGES_EACH | {"black_box"}:
        objective = Objective(model, 0.0, {}, multi_label=True)
        loss = objective(torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).total
        loss.backward()
        assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())
    else:
        with pytest.raises(InputError, match=rf"head '{head}' learns one class an image; choose one"):
            Objective(model, 0.0, {}, multi_label=True)


def test_concepts_with_attributes_need_one_class() -> None:
    attributes = {"attributes": [[1, 0], [0, 1], [1, 1]]}
    model = glasszoo.create_model("test_resnet", head="concepts", num_classes=3, head_kwargs=attributes)
    with pytest.raises(InputError, match="'concepts' learns one class"):
        Objective(model, 0.0, {}, multi_label=True)


def test_a_term_over_the_labels_evidence_is_refused() -> None:
    model = glasszoo.create_model("test_resnet", num_classes=3)
    with pytest.raises(InputError, match=r"loss_weights.evidence_l1: with multi_label an image has no one label"):
        Objective(model, 0.0, {"evidence_l1": 0.0}, multi_label=True)


@pytest.mark.parametrize("overrides", [["multi_label=false"], ["data.options={}", "data.name=critters"]])
def test_recipe_and_data_must_agree(squares: Path, tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(InputError, match="multi_label goes with a data set that says which classes"):
        Trainer(recipe_for(squares, *overrides), tmp_path / "run", shows_progress=False)


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, Trainer(recipe_for(squares), folder, device="cpu", shows_progress=False).fit().score


def test_a_run_learns_and_is_chosen_by_precision(trained: tuple[Path, float]) -> None:
    folder, score = trained
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert score == max(float(row["val_map"]) for row in rows) > 0.95  # a third to a half is chance
    assert "val_top1" not in rows[0] and float(rows[-1]["train_label_accuracy"]) > 0.9
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    card = (folder / "best" / "README.md").read_text(encoding="utf-8")
    assert "mean_average_precision" in card and "average precision of their ranking" in card


def test_the_checkpoint_knows(trained: tuple[Path, float], squares: Path) -> None:
    model = glasszoo.load_pretrained(f"local-dir:{trained[0] / 'best'}").eval()
    assert model.config.multi_label and model.class_names == NAMES
    dataset = create_dataset(str(squares), "test", labels=list(NAMES))
    images = torch.stack([model.preprocess(dataset[index])["image"] for index in range(len(dataset))])  # type: ignore[arg-type]
    with torch.no_grad():
        out = model(images, explain="all")
    torch.testing.assert_close(out.maps.sum((-2, -1)) + out.offset, out.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.probabilities(out.logits), out.logits.sigmoid())
    plain = glasszoo.create_model("test_resnet", num_classes=3)
    torch.testing.assert_close(plain.probabilities(out.logits), out.logits.softmax(1))


def test_evaluation_tells_precision(trained: tuple[Path, float], squares: Path) -> None:
    model = glasszoo.load_pretrained(f"local-dir:{trained[0] / 'best'}")
    dataset = create_dataset(str(squares), "test", labels=list(NAMES))
    found = evaluate(model, dataset, methods=["built-in"], metrics=["deletion"], max_explained=4, progress=False)
    targets = targets_of(dataset)
    assert targets is not None and found.targets is not None and torch.equal(found.targets, targets.float())
    by_class = [average_precision_score(targets[:, place], found.logits[:, place]) for place in range(3)]
    assert list(found.precisions().values()) == pytest.approx(by_class)
    interval = found.accuracy()["map"]
    assert interval.mean == pytest.approx(sum(by_class) / 3) and interval.low <= interval.mean <= interval.high
    told = as_json(found)
    assert told["average_precision"].keys() == set(NAMES) and "selective" not in told
    assert "mAP" in accuracy_line(found) and "AP of red" in accuracy_line(found) and "ECE" not in accuracy_line(found)
    labels = [row["label"] for row in csv.DictReader(as_csv(found).splitlines())]
    assert labels[0] == "none" and labels[-1] == "blue + green + red"
    with pytest.raises(InputError, match="maps of the label cannot be judged"):
        evaluate(model, dataset, conventions=Conventions(target="label"), progress=False)


def test_the_command_evaluates_and_reports(
    trained: tuple[Path, float], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", f"local-dir:{trained[0] / 'best'}", "--data", str(squares)]
    several = ["--data-option", f"labels=[{','.join(NAMES)}]", "--methods", "built-in", "--max-explained", "4"]
    for out, mode in (("plain", "disabled"), ("reported", "offline")):
        assert main(["evaluate", *asked, *several, "--out", str(tmp_path / out), "--wandb", mode]) == 0
        assert "mAP" in capsys.readouterr().out
    page = (tmp_path / "plain/report.html").read_text(encoding="utf-8")
    assert "AP: average precision" in page and "Brier" not in page
    (logged,) = offline_runs(tmp_path / "reported")
    accuracy = json.loads((tmp_path / "reported/results.json").read_text())["accuracy"]["map"]
    (row,) = [row for row in logged.history if "evaluation.path" in row]
    scores = {own["quantity"]: own["value"] for own in logged.table(row, "evaluation")}
    assert scores["map"] == pytest.approx(accuracy["mean"]) and "top1" not in scores
    (point,) = logged.table(row, "pareto_table")
    assert point["map"] == scores["map"] and point["insertion"] == pytest.approx(scores["insertion"])


def test_evaluation_without_labels_of_several_is_as_ever(trained: tuple[Path, float]) -> None:
    assert targets_of(Subset(create_dataset("critters", "test", size=32, count=8), [0])) is None


def test_a_stopped_run_goes_on_to_the_bit(trained: tuple[Path, float], squares: Path, tmp_path: Path) -> None:
    folder, _ = trained
    trainer = Trainer(recipe_for(squares), tmp_path / "run", device="cpu", shows_progress=False)
    learn, steps = trainer.engine.learn, iter(range(1000))

    def stopping(*given: Any) -> Any:
        if next(steps) == 7:  # in the midst of the third epoch
            trainer._interruptions.is_asked = True
        return learn(*given)

    trainer.engine.learn = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.fit()
    again = Trainer(recipe_for(squares), tmp_path / "run", resume=True, device="cpu", shows_progress=False)
    again.fit()
    for checkpoint in ("best", "last"):
        one, two = (glasszoo.load_pretrained(f"local-dir:{each / checkpoint}") for each in (folder, tmp_path / "run"))
        assert_same(one, two)


def assert_same(one: ImageClassifier, two: ImageClassifier) -> None:
    states = one.state_dict(), two.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_probe_keeps_targets(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_for(squares, "probe=true", f"feature_cache={tmp_path / 'cache'}", "epochs=3", "model.head=noisy_or")
    first, second = (
        Trainer(recipe, tmp_path / name, device="cpu", shows_progress=False).fit().score for name in ("one", "two")
    )
    assert first == second and len(list((tmp_path / "cache").iterdir())) == 2


def test_validation_loss_is_the_plain_one(squares: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe_for(squares, "label_smoothing=0.3"), tmp_path / "run", device="cpu", shows_progress=False)
    found = trainer.engine.judge(trainer.loaders.validation)
    model, batches = trainer.model.eval(), list(trainer.loaders.validation)
    with torch.no_grad():
        logits = torch.cat([model(batch.images, explain=0).logits for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert found["val_loss"] == pytest.approx(functional.binary_cross_entropy_with_logits(logits, targets).item())
