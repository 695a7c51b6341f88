"""Prototypes go, the last layer learns again, and what the command prints of both is true."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import glasszoo
from glasszoo.__main__ import main
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Unreadable
from glasszoo.data.subsets import Cached, split_validation
from glasszoo.evaluation.results import as_table
from glasszoo.heads import Phase
from glasszoo.models import (
    CardFacts,
    DataFacts,
    ImageClassifier,
    Metric,
    Preprocessing,
    load_pretrained,
    read_facts,
    save_pretrained,
)
from glasszoo.models.classifier import prototype_head
from glasszoo.training import Trainer, building, interaction, load_recipe
from glasszoo.training.interaction import Pruning, Refit, judge, last_layer_phase, prune, prune_and_refit, refit
from glasszoo.training.probe import FeatureBatch, FeatureLoader

OPTIONS: dict[str, dict[str, Any]] = {
    "protopnet": {"per_class": 3, "dim": 8, "connection": "signed"},
    "st_protopnet": {"per_branch": 1, "dim": 8},
    "protopool": {"prototypes": 12, "slots": 3, "dim": 8},
    "pipnet": {"num_prototypes": 12, "threshold": 0.05},
    "mgproto": {"per_class": 3, "kept": 2, "dim": 8},
}
DATA = {"size": 32, "count": 64}
NAMES = create_dataset("critters", "train", **DATA).classes
LINE = ["--data", "critters", "--data-option", "size=32", "--data-option", "count=64", "--validation", "0.25"]


@cache
def data() -> Any:
    return Cached(create_dataset("critters", "train", **DATA))


def projected(head: str, **options: Any) -> ImageClassifier:
    """A model of its own each time."""
    return copy.deepcopy(_projected(head, *options.items()))


@cache
def _projected(head: str, *options: tuple[str, Any]) -> ImageClassifier:
    torch.manual_seed(0)
    model = glasszoo.create_model(
        "test_resnet",
        head=head,
        num_classes=8,
        head_kwargs=OPTIONS[head] | dict(options),
        preprocessing=Preprocessing((3, 32, 32), crop_pct=1.0),
    ).eval()
    model.project(Loader(data(), model.preprocess, 16))
    return model


class Images(NamedTuple):
    images: Tensor
    labels: Tensor
    ids: list[str]


class Plain(nn.Module):
    """A model whose features are its images."""

    grid = None

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Identity(), head


def taught(head: str) -> tuple[ImageClassifier, FeatureBatch]:
    """A model, and features on which only what weighs its prototypes is left to learn.

    Cells of an image lie about the direction of its class, and prototypes are such cells.
    """
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head=head, num_classes=8, head_kwargs=OPTIONS[head]).eval()
    labels = torch.arange(64) % 8
    features = 0.5 * torch.randn(64, model.num_features, 3, 3)
    features += 3 * torch.randn(8, model.num_features, 1, 1)[labels]
    everything = FeatureBatch([features], labels, torch.zeros(64, 1, 1, dtype=torch.bool), torch.zeros(64, 0))
    chosen = head_of(model)
    chosen.project([Images(features, labels, [str(number) for number in range(64)])], Plain(chosen))
    for name, parameter in chosen.named_parameters():
        if name in ("connection.weight", "classifier.weight"):
            nn.init.uniform_(parameter)
    return model, everything


def logits(model: ImageClassifier, dataset: Any) -> tuple[Tensor, Tensor]:
    """From images, one by one, in fp64's stead with the model as it is; and their labels."""
    images = torch.stack([model.preprocess(dataset[number]["image"]) for number in range(len(dataset))])
    with torch.no_grad():
        return model.eval()(images, 0).logits, dataset.labels


def top1(model: ImageClassifier, seed: int = 0) -> str:
    """On the validation images of the run with that seed."""
    found, labels = logits(model, split_validation(data(), 0.25, seed)[1])
    return f"{(found.argmax(1) == labels).double().mean():.2%}"


def bits(model: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def head_of(model: ImageClassifier) -> Any:
    return prototype_head(model)


def test_what_is_asked_for_is_done_in_turn() -> None:
    """Removed first; a budget leaves as many, and one a class whatever it is."""
    model = projected("protopnet")
    images = Loader(data(), model.preprocess, 16)
    prune(model, Pruning(remove=[0, 4], budget=20), images)
    kept = head_of(model).is_kept
    assert kept.sum() == 20 and not kept[[0, 4]].any()
    prune(model, Pruning(budget=1), images)
    assert head_of(model).is_kept.view(8, 3).sum(1).tolist() == [1] * 8
    both, alone = projected("mgproto"), projected("mgproto")
    prune(both, Pruning(remove=[0, 1], as_in_paper=True), images)
    prune(alone, Pruning(as_in_paper=True), images)
    assert head_of(both).is_kept.view(8, 3).sum(1).tolist() == [1] + [2] * 7
    assert head_of(both).is_kept[2] and head_of(alone).is_kept.view(8, 3).sum(1).tolist() == [2] * 8


def test_without_numbers_nothing_is_removed() -> None:
    """To the bit: MGProto's priors would be divided anew."""
    one, two = projected("mgproto"), projected("mgproto")
    images = Loader(data(), one.preprocess, 16)
    for model in (one, two):
        head_of(model).priors.copy_(torch.rand(24, generator=torch.Generator().manual_seed(1)))
    one.prune(images)
    prune(two, Pruning(as_in_paper=True), images)
    assert torch.equal(head_of(one).priors, head_of(two).priors)


@pytest.mark.parametrize("head", [name for name in OPTIONS if name != "mgproto"])
def test_only_the_last_layer_learns_and_it_learns(head: str) -> None:
    model, everything = taught(head)
    prune(model, Pruning(remove=[1]), [])
    training, same = FeatureLoader(everything, 16, shuffle=True), FeatureLoader(everything, 16)
    before, (loss_before, top1_before) = bits(model), judge(model, same)
    assert refit(model, training, same, Refit(epochs=10, lr=3e-2)) > 0
    own = "head.classifier.weight" if head == "pipnet" else "head.connection.weight"
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == [own]
    assert head == "protopnet" or (model.state_dict()[own] >= 0).all(), "brought back after each step"
    loss, top1_after = judge(model, same)
    assert top1_after > top1_before + 0.2 and loss < loss_before, (top1_before, top1_after)
    assert not model.training and not head_of(model).is_kept[1]


@pytest.mark.parametrize("weight", [None, 0.05])
def test_the_loss_of_the_refit_is_that_of_the_phase(weight: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps by hand: cross entropy and the sparsity of weights, by AdamW along a cosine, without decay."""
    (model, everything), (peer, _) = taught("protopnet"), taught("protopnet")
    if weight is not None:
        own = Phase(trains=("head.connection.*",), loss_weights={"sparsity": weight})
        monkeypatch.setattr(head_of(model), "phases", lambda: [Phase(), own])
    losses = iter([3.0, 2.0, 1.0])  # so that the last epoch is kept
    monkeypatch.setattr(interaction, "judge", lambda *_: (next(losses), 0.5))
    refit(model, FeatureLoader(everything, 64, shuffle=True), FeatureLoader(everything, 64), Refit(3, lr=1e-2))
    head: Any = peer.head
    optimizer = torch.optim.AdamW([head.connection.weight], weight_decay=0.0)
    for rate in (1e-2, 7.5e-3, 2.5e-3):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        state = head.score(everything.features[0])
        others = torch.arange(8)[:, None] != head.owners
        sparsity = (weight or 1e-4) * head.connection.weight[others].abs().sum()
        (nn.functional.cross_entropy(state.logits, everything.labels) + sparsity).backward()
        optimizer.step()
    mine: Any = model.head
    torch.testing.assert_close(mine.connection.weight, head.connection.weight, atol=1e-5, rtol=1e-4)


def test_an_epoch_follows_from_the_seed_and_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a loss draws; and no epoch repeats the order of another."""
    runs = []
    for state in (1, 2):
        model, everything = taught("protopnet")
        weight: Tensor = head_of(model).connection.weight
        orders: list[Tensor] = []

        def drawn(_: Any, targets: Tensor, weight: Tensor = weight, orders: list[Tensor] = orders) -> dict[str, Tensor]:
            orders.append(targets)
            return {"noise": torch.randn(()) * weight.sum()}

        monkeypatch.setattr(head_of(model), "losses", drawn)
        torch.manual_seed(state)
        loader = FeatureLoader(everything, 16, shuffle=True)
        refit(model, loader, FeatureLoader(everything, 64), Refit(epochs=2, lr=1e-2), seed=7)
        runs.append((weight.detach(), torch.cat(orders).view(2, 64)))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    assert not torch.equal(*runs[0][1])


def test_a_heads_own_rates_count() -> None:
    """PIP-Net's classifier learns a hundred times as fast as its prototypes, and shrinks with each step."""
    phase = last_layer_phase(projected("pipnet"), 3)
    assert phase is not None and dict(phase.lr_scale) == {"head.classifier.*": 100.0}
    assert (phase.epochs, tuple(phase.trains), phase.project, phase.prune) == (3, ("head.classifier.*",), False, False)
    assert last_layer_phase(projected("protopnet", connection="fixed"), 3) is None


def test_the_epoch_that_is_best_on_validation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation labels are false, so that the more is learned the worse it is."""
    model, everything = taught("protopnet")
    judged: list[tuple[tuple[float, float], dict[str, Tensor]]] = []

    def noted(model: ImageClassifier, loader: FeatureLoader) -> tuple[float, float]:
        loss, accuracy = judge(model, loader)
        judged.append(((accuracy, -loss), bits(model)))
        return loss, accuracy

    monkeypatch.setattr(interaction, "judge", noted)
    false = everything._replace(labels=(everything.labels + 3) % 8)
    epoch = refit(model, FeatureLoader(everything, 16, shuffle=True), FeatureLoader(false, 64), Refit(5, lr=3e-2))
    scores = [score for score, _ in judged]
    assert len(scores) == 5 and epoch == scores.index(max(scores)) + 1 < 5
    assert all(torch.equal(tensor, judged[epoch - 1][1][name]) for name, tensor in model.state_dict().items())


def test_a_rate_that_breaks_everything_is_named() -> None:
    model, everything = taught("protopnet")
    loaders = FeatureLoader(everything, 16, shuffle=True), FeatureLoader(everything, 16)
    with pytest.raises(InputError, match="the loss is no number any more in epoch [12] of the re-fit: lower its lr"):
        refit(model, *loaders, Refit(epochs=2, lr=3e37))


class Torn:
    """The images, one of which cannot be read."""

    def __init__(self, number: int) -> None:
        self.inner, self.number = data(), number
        self.classes, self.labels, self.groups = self.inner.classes, self.inner.labels, self.inner.groups

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return Unreadable("torn", "torn.png is no image") if index == self.number else self.inner[index]


@pytest.mark.parametrize("part", [0, 1])
def test_unreadable_images_stop_it_or_are_told(part: int) -> None:
    torn = Torn(split_validation(data(), 0.25, 0)[part].indices[3])
    parts, pruning = split_validation(torn, 0.25, 0), Pruning(remove=[1], budget=20)
    with pytest.raises(InputError, match="torn.png is no image"):
        prune_and_refit(projected("protopnet"), *parts, pruning)
    done = prune_and_refit(projected("protopnet"), *parts, pruning, on_error="skip")
    assert done.unreadable == ["torn.png is no image"] and len(done.stages) == 3


def table(printed: str) -> dict[str, tuple[int, str]]:
    """Prototypes and accuracy by stage."""
    rows = re.findall(r"^(before|after removal|after re-fit) +(\d+) +(\d+\.\d\d%)$", printed, re.MULTILINE)
    return {stage: (int(count), accuracy) for stage, count, accuracy in rows}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    metric = Metric("top1", 0.5, "of the model before", "critters", "test", 9)
    facts = CardFacts(DataFacts("critters", license="MIT"), commands=("glasszoo train",), seed=5, metrics=(metric,))
    save_pretrained(projected("protopnet"), tmp_path / "model", facts)
    return tmp_path / "model"


def test_the_command_tells_what_it_does(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number is that of the checkpoint it stands for; and no split but the training one is opened."""
    splits = []

    def watched(name: str, split: str, **options: Any) -> Any:
        splits.append(split)
        return create_dataset(name, split, **options)

    monkeypatch.setattr(building, "create_dataset", watched)
    asked = ["prune", "--model", f"local-dir:{checkpoint}", *LINE, "--remove", "3", "17", "--budget", "20"]
    again = ["--lr", "0.03", "--refit-epochs", "4"]
    printed = {}
    runs = {"first": again, "second": again, "removed": ["--refit-epochs", "0"], "seed": ["--seed", "1"]}
    for out, more in runs.items():
        assert main([*asked, *more, "--out", out]) == 0
        printed[out] = capsys.readouterr().out
    before, removed, after = (load_pretrained(f"local-dir:{folder}") for folder in (checkpoint, "removed", "first"))
    assert table(printed["first"]) == {
        "before": (24, top1(before)),
        "after removal": (20, top1(removed)),
        "after re-fit": (20, top1(after)),
    }
    images = torch.randn(2, *before.config.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    logits = [model(images, 0).logits for model in (before, removed, after)]
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[1], logits[2]), "both have an effect"
    assert re.search(r"re-fitted for 4 epochs; the best on validation, epoch [1-4], is kept", printed["first"])
    assert "the new checkpoint is local-dir:first\n" in printed["first"]
    assert "last layer not re-fitted" in printed["removed"] and "after re-fit" not in printed["removed"]
    assert printed["first"] == printed["second"].replace("second", "first")
    assert table(printed["seed"])["before"] == (24, top1(before, seed=1))
    same = projected("protopnet")
    parts = split_validation(data(), 0.25, 0)
    done = prune_and_refit(same, *parts, Pruning([3, 17], budget=20), Refit(4, lr=0.03))
    assert table(as_table(done.rows())) == table(printed["first"])
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in same.state_dict().items())
    kept = head_of(after).is_kept
    assert kept.sum() == 20 and not kept[[3, 17]].any() and torch.equal(kept, head_of(removed).is_kept)
    assert (Path("first") / "model.safetensors").read_bytes() == (Path("second") / "model.safetensors").read_bytes()
    assert set(splits) == {"train"}
    facts = read_facts("first")
    assert facts.data == DataFacts("critters", license="MIT") and facts.seed == 5 and facts.metrics == ()
    assert len(facts.commands) == 2 and facts.commands[0] == "glasszoo train"
    card = (Path("first") / "README.md").read_text()
    assert "--remove 3 17 --budget 20" in card and all(
        accuracy in card for _, accuracy in table(printed["first"]).values()
    )


def test_the_checkpoint_is_the_model_that_was_judged(tmp_path: Path) -> None:
    """Reloaded, it gives the same logits to the bit; sources of removed prototypes stay, as those of pruned ones do."""
    model = projected("protopnet")
    sources = list(model.provenance)
    prune_and_refit(model, *split_validation(data(), 0.25, 0), Pruning(remove=[2], as_in_paper=True))
    save_pretrained(model, tmp_path / "new")
    saved = load_pretrained(f"local-dir:{tmp_path / 'new'}")
    assert torch.equal(logits(saved, data())[0], logits(model, data())[0])
    assert saved.provenance == sources and any(entry["prototype"] == 2 for entry in sources)


def test_before_is_what_the_training_run_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's seed and share the validation images are the run's."""
    changes = [
        *("model.head=protopnet", "model.backbone=test_resnet", "model.output_stride=null", "model.image_size=32"),
        *("model.head_kwargs={per_class: 2, dim: 8}", "data.options={size: 32, count: 64}", "data.validation=0.25"),
        *("probe=true", "epochs=3", "seed=5", "data.batch_size=16"),
    ]
    trained = Trainer(load_recipe("critters", changes), tmp_path / "run", shows_progress=False).fit()
    asked = ["prune", "--model", f"local-dir:{trained.best}", *LINE, "--seed", "5", "--budget", "12"]
    assert main([*asked, "--out", str(tmp_path / "new")]) == 0
    assert table(capsys.readouterr().out)["before"] == (16, f"{trained.score:.2%}")


@pytest.mark.parametrize(("head", "options"), [("mgproto", {}), ("protopnet", {"connection": "fixed"})])
def test_fixed_weights_are_left_alone(
    head: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(projected(head, **options), tmp_path / "model")
    asked = ["prune", "--model", f"local-dir:{tmp_path / 'model'}", *LINE, "--remove", "3"]
    assert main([*asked, "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "nothing is re-fitted: this head's prototypes count by fixed weights\n" in printed
    assert set(table(printed)) == {"before", "after removal"}
    expected = projected(head, **options)
    head_of(expected).remove([3])
    saved = load_pretrained(f"local-dir:{tmp_path / 'new'}")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in saved.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out new", r"no prototype is to go: say which \(--remove\), --as-in-paper, or how many stay \(--budget\)"),
        ("--remove 24 --out new", "there is no prototype 24: they are 0 to 23"),
        ("--remove 0 1 2 --out new", f"class {NAMES[0]} would be left without any prototype"),
        ("--budget 0 --out new", "budget=0: must be at least 1"),
        ("--budget 20 --refit-epochs -1 --out new", "epochs=-1: must be at least 0"),
        ("--budget 20 --lr nan --out new", "lr=nan: must be at least 0"),
        ("--budget 20 --validation 1.5 --out new", "the validation fraction must lie between 0 and 1"),
        ("--budget 20 --out model", "model is not empty: name a new folder"),
        ("--budget 20 --out model/config.json", "config.json is a file: name a new folder"),
        ("--budget 20 --model local-dir:cam --out new", "head 'cam' has no prototypes with weights for classes"),
        ("--budget 20 --model local-dir:tree --out new", "head 'prototree' has no prototypes with weights for classes"),
        ("--budget 20 --model local-dir:two --out new", "the model knows 2 unnamed classes, but the data set has 8"),
        ("--budget 20 --data /no/such --out new", "data set folder /no/such does not exist"),
    ],
)
def test_wrong_input_gets_one_sentence_and_leaves_nothing(
    arguments: str, message: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, head, classes in (("cam", "cam", 8), ("tree", "prototree", 8), ("two", "protopnet", 2)):
        if f"local-dir:{name}" in arguments:
            save_pretrained(glasszoo.create_model("test_resnet", head=head, num_classes=classes), name)

    def refuse(*_: Any) -> None:
        raise AssertionError("features were computed first")

    monkeypatch.setattr(interaction, "computed_features", refuse)
    files = {path: path.read_bytes() for path in checkpoint.iterdir()}
    # What is said twice counts the second time.
    assert main(["prune", "--model", "local-dir:model", *LINE, *arguments.split()]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert files == {path: path.read_bytes() for path in checkpoint.iterdir()} and not Path("new").exists()
