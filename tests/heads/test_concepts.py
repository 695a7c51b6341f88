"""Concepts: logits, evidence and interventions by loops; what is kept; the start as a folded classifier."""

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.data import create_dataset
from glasszoo.data.critter_rules import RULES, class_attributes
from glasszoo.heads import Concepts, Phase, create_head
from glasszoo.models import InterpretableClassifier, save_pretrained
from glasszoo.training import Trainer, load_recipe

seeds = st.integers(0, 10_000)
TABLE = [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]]


class Images(NamedTuple):
    """As a loader's batch; the images are the features themselves."""

    images: Tensor
    labels: Tensor


class Identity(nn.Module):
    """A model whose backbone hands its images on."""

    backbone = nn.Identity()


def made(num_features: int = 6, num_classes: int = 3, seed: int = 0, **options: Any) -> Concepts:
    torch.manual_seed(seed)
    head = create_head("concepts", num_features, num_classes, **options)
    assert isinstance(head, Concepts)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def total(out: Any) -> Tensor:
    return out.maps.sum((-2, -1)) + out.offset


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 7))
def test_logits_and_evidence_by_loops(seed: int, images: int, height: int, width: int, number: int) -> None:
    head = made(seed=seed, num_concepts=number).double()
    head.is_kept.copy_(torch.rand(3, number, generator=torch.Generator().manual_seed(seed)) > 0.4)
    features = torch.randn(images, 6, height, width).double()
    with torch.no_grad():
        out = head(features, "all")
    assert out.parts.shape == (images, number, height, width)
    for image, c in itertools.product(range(images), range(3)):
        logit, offset = head.classifier.bias[c].item(), head.classifier.bias[c].item()
        evidence = np.zeros((height, width))
        for k in range(number):
            map_k = np.zeros((height, width))
            for d in range(6):
                map_k += features[image, d].numpy() * head.detector.weight[k, d].item()
            weight = head.classifier.weight[c, k].item() if head.is_kept[c, k] else 0.0
            logit += weight * (map_k.mean() + head.detector.bias[k].item())
            offset += weight * head.detector.bias[k].item()
            evidence += weight * map_k / (height * width)
            np.testing.assert_allclose(out.parts[image, k], map_k)
        assert out.logits[image, c].item() == pytest.approx(logit)
        assert out.offset[image, c].item() == pytest.approx(offset)
        np.testing.assert_allclose(out.maps[image, c], evidence, atol=1e-12)


# ---- intervention


@settings(deadline=None, max_examples=10)
@given(seeds, st.dictionaries(st.integers(0, 3), st.floats(-5, 5), max_size=4))
def test_an_intervention_changes_what_it_should(seed: int, values: dict[int, float]) -> None:
    head = made(seed=seed, attributes=TABLE).double()
    features = torch.randn(2, 6, 3, 4).double()
    state = head.score(features)
    before = state.parts.clone(), state.logits.clone()
    changed = head.intervene(state, values)
    expected = state.concepts.clone()
    for number, value in values.items():
        expected[:, number] = value
    torch.testing.assert_close(changed.concepts, expected)
    moved = (expected - state.concepts) @ head.weight.T
    torch.testing.assert_close(changed.logits, state.logits + moved)
    out = head.explained(changed, "all")
    torch.testing.assert_close(total(out), changed.logits, atol=1e-9, rtol=0)
    untouched = [k for k in range(4) if k not in values]
    torch.testing.assert_close(out.parts[:, untouched], state.parts[:, untouched])
    assert not out.parts[:, list(values)].any()
    assert torch.equal(before[0], state.parts) and torch.equal(before[1], state.logits), "the old state is left alone"


def test_setting_all_concepts_leaves_no_evidence_and_decides_the_class() -> None:
    head = made(attributes=TABLE)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor(TABLE) * 1.0)
        head.classifier.bias.zero_()
    state = head.score(torch.randn(2, 6, 3, 3))
    for label, row in enumerate(TABLE):
        out = head.explained(head.intervene(state, {k: 6.0 * value - 3 for k, value in enumerate(row)}), 1)
        assert out.classes[:, 0].tolist() == [label, label] and not out.maps.any()


def test_no_such_concept() -> None:
    head = made(attributes=TABLE)
    with pytest.raises(InputError, match="concept=4: must be between 0 and 3"):
        head.intervene(head.score(torch.randn(1, 6, 2, 2)), {4: 1.0})


# ---- losses


def test_losses_by_loops() -> None:
    head = made(attributes=TABLE).double()
    state, targets = head.score(torch.randn(2, 6, 3, 3).double()), torch.tensor([2, 0])
    wanted = 0.0
    for image, label in enumerate(targets.tolist()):
        for k, value in enumerate(TABLE[label]):
            probability = 1 / (1 + np.exp(-state.concepts[image, k].item()))
            wanted -= np.log(probability if value else 1 - probability) / 2
    terms = head.losses(state, targets)
    assert terms["concepts"].item() == pytest.approx(wanted)
    assert terms["sparsity"].item() == pytest.approx(sum(abs(w) for w in head.classifier.weight.flatten().tolist()))
    assert head.loss_weights() == {"sparsity": 1e-4, "concepts": 0.01}
    plain = made(num_concepts=4)
    assert plain.losses(plain.score(torch.randn(2, 6, 3, 3)), targets).keys() == {"sparsity"}
    assert plain.loss_weights() == {"sparsity": 1e-4}


# ---- the start


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
def test_enough_concepts_start_as_the_folded_classifier(seed: int, d: int, c: int, number: int) -> None:
    head = made(d, c, seed=seed, num_concepts=number).double()
    weight, bias = torch.randn(c, d).double(), torch.randn(c).double()
    is_exact = head.fold(weight, bias)
    assert is_exact == (number >= min(c, d))
    features = torch.randn(3, d, 2, 3).double()
    reference = nn.functional.linear(features.mean((2, 3)), weight, bias)
    product = (head.weight @ head.detector.weight).detach().numpy()
    if is_exact:
        torch.testing.assert_close(head(features).logits, reference, atol=1e-9, rtol=1e-9)
    else:  # Eckart and Young: no product of fewer concepts is nearer, and its error is the rest of the spectrum
        rest = np.linalg.svd(weight.numpy(), compute_uv=False)[number:]
        assert np.linalg.norm(weight.numpy() - product) == pytest.approx(np.linalg.norm(rest))


def test_attributes_start_as_the_table_and_as_near_as_they_can() -> None:
    weight, bias = torch.randn(3, 6), torch.randn(3)
    head = made(attributes=TABLE)
    assert head.fold(weight, bias)
    assert head.weight.tolist() == TABLE
    features = torch.randn(2, 6, 3, 3)
    reference = nn.functional.linear(features.mean((2, 3)), weight, bias)
    torch.testing.assert_close(head(features).logits, reference, atol=1e-5, rtol=1e-4)
    dependent = [[1, 0], [0, 1], [1, 1]]
    head = made(attributes=dependent).double()
    assert not head.fold(weight, None) and not head.classifier.bias.any()
    nearest = np.linalg.lstsq(np.array(dependent, dtype=float), weight.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(head.detector.weight.detach(), nearest, atol=1e-6)


def test_timms_classifier_is_taken_over_only_where_it_is_met(shared: Callable[[str], Path]) -> None:
    source = f"local-dir:{shared('weights/mobilenetv2_100.coral_in1k')}"
    with pytest.raises(InputError, match="head 'concepts' cannot start as timm's classifier: give num_classes"):
        glasszoo.create_model(source, head="concepts", pretrained=True)
    assert glasszoo.create_model(source, head="concepts", pretrained=True, num_classes=5).num_classes == 5


# ---- what is kept


def test_each_class_keeps_the_concepts_that_move_its_logit() -> None:
    head = made(num_concepts=5, per_class=2)
    features = 3 * torch.randn(40, 6, 2, 2) + 1
    before = head(features).logits
    with torch.no_grad():
        concepts = head.score(features).concepts.numpy()
    movement = np.abs(head.classifier.weight.detach().numpy()) * concepts.std(0)
    wanted = np.argsort(-movement, axis=1)[:, :2]
    batches = [Images(features[:30], torch.zeros(30).long()), Images(features[30:], torch.zeros(10).long())]
    report = head.project(batches, Identity())
    assert head.is_kept.sum(1).tolist() == [2, 2, 2]
    assert all(head.is_kept[c, list(wanted[c])].all() for c in range(3))
    assert ((head.weight != 0) == head.is_kept).all()
    kept = np.take_along_axis(movement, wanted, 1).sum() / movement.sum()
    assert report == {"concepts_kept": pytest.approx(kept, rel=1e-5)}
    after = head(features)
    torch.testing.assert_close(after.logits.mean(0), before.mean(0), atol=1e-4, rtol=1e-4)
    out = head(features, "all")
    torch.testing.assert_close(total(out), out.logits, atol=1e-4, rtol=1e-4)


def test_phases() -> None:
    kept = made(num_concepts=5)
    assert [phase.project for phase in kept.phases()] == [True, False]
    assert made(num_concepts=5, per_class=None).phases() == [Phase()]


def test_what_is_kept_is_saved_exported_and_compiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"attributes": TABLE, "per_class": 2}
    model = glasszoo.create_model("test_resnet", head="concepts", num_classes=3, head_kwargs=options)
    model.project([Images(torch.randn(12, 3, 64, 64), torch.arange(12) % 3)])
    assert isinstance(model, InterpretableClassifier) and model.head.is_kept.sum() == 6 and not model.training
    save_pretrained(model, tmp_path)
    images = torch.randn(3, 3, 64, 64)
    again = glasszoo.load_pretrained(f"local-dir:{tmp_path}")
    assert all(torch.equal(one, two) for one, two in zip(model(images, "all"), again(images, "all"), strict=True))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for theirs in (program(images), compiled(images)):
        for ours, other in zip(model(images), theirs, strict=True):
            torch.testing.assert_close(other, ours, atol=1e-5, rtol=1e-4)


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_concepts": 0}, "num_concepts=0: must be at least 1"),
        ({"per_class": 0}, "per_class=0: must be at least 1"),
        ({"attributes": [[1, 0]]}, "attributes: 1 rows given for 3 classes"),
        ({"attributes": [[1], [0, 1], [1]]}, "a list of zeros and ones for each class"),
        ({"attributes": [[1], [2], [1]]}, "a list of zeros and ones for each class"),
        ({"attributes": [[], [], []]}, "a list of zeros and ones for each class"),
        ({"attributes": [1, 0, 1]}, "a list of zeros and ones for each class"),
        ({"attributes": TABLE, "num_concepts": 5}, "num_concepts=5: the attributes are 4; leave num_concepts out"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head("concepts", 6, 3, **options)


def test_another_number_of_classes_does_not_fit_the_attributes() -> None:
    model = glasszoo.create_model("test_resnet", head="concepts", num_classes=3, head_kwargs={"attributes": TABLE})
    with pytest.raises(InputError, match="3 rows given for 4 classes"):
        model.reset_classifier(4)


# ---- critters


@pytest.mark.parametrize("rule", sorted(RULES))
def test_critters_know_the_attributes_of_their_classes(rule: str) -> None:
    names, table = class_attributes(rule)
    classes = create_dataset("critters", "train", rule=rule, count=8).classes
    assert len(set(names)) == len(names) and len(table) == len(classes)
    for name, row in zip(classes, table, strict=True):
        assert name == "-".join(attribute for attribute, has in zip(names, row, strict=True) if has)


RECIPE = """
data: {name: critters, options: {size: 32, count: 120, rule: conjunction}, validation: 0.2, batch_size: 16}
model: {backbone: test_byobnet, output_stride: 16, image_size: 32, crop_pct: 1.0, head: concepts}
optimizer: {lr: 1e-2}
epochs: 3
"""


def test_a_run_learns_attributes_and_ends_with_few_concepts(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    names, table = class_attributes("conjunction")
    own = [f"model.head_kwargs.attributes={table}", "model.head_kwargs.per_class=3", "loss_weights.concepts=1"]
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), own)
    trained = Trainer(recipe, tmp_path / "run", device="cpu", shows_progress=False).fit()
    model = glasszoo.load_pretrained(f"local-dir:{trained.best}")
    assert isinstance(model, InterpretableClassifier)
    assert model.head.is_kept.sum(1).tolist() == [3] * 8 and model.head.is_kept.shape[1] == len(names)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["concepts_kept"] != "" for row in rows] == [False, False, True]
    losses = [float(row["concepts"]) for row in rows]
    assert losses[-1] < losses[0]
