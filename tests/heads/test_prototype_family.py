"""TesNet, ST-ProtoPNet and ProtoPool against loops: logits, evidence, losses, projection, and what is drawn when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain, loader
from torch import Tensor, nn
from torch.nn import functional

from glasszoo.common.errors import InputError
from glasszoo.heads import Head, ProtoPool, STProtoPNet, TesNet, create_head
from glasszoo.heads.nearest import Search, nearest_patches
from glasszoo.heads.prototypes import PrototypeHead
from glasszoo.training import Trainer, load_recipe

TESNET: list[dict[str, Any]] = [
    {"per_class": 3},
    {"per_class": 2, "dim": 3, "connection": "signed"},
    {"per_class": 1, "connection": "fixed"},
]
ST: list[dict[str, Any]] = [
    {"per_branch": 2},
    {"per_branch": 2, "dim": 3, "upsampling": 2, "connection": "signed"},
    {"per_branch": 1, "upsampling": 3, "connection": "fixed"},
]
POOL: list[dict[str, Any]] = [
    {"prototypes": 7},
    {"prototypes": 3, "slots": 2, "dim": 4, "connection": "signed", "epsilon": 0.01},
    {"prototypes": 1, "slots": 1, "connection": "fixed"},
]
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("tesnet", {"per_class": 3, "dim": 4}),
    ("st_protopnet", {"per_branch": 2, "dim": 4}),
    ("st_protopnet", {"per_branch": 2, "dim": 4, "upsampling": 2}),
    ("protopool", {"prototypes": 6, "slots": 2, "dim": 4}),
]
SEEDS, CLASSES, SIDES = st.integers(0, 99), st.integers(1, 3), st.integers(1, 3)


def drawn(head: Head) -> Any:
    """The head in fp64 with every parameter drawn, so that nothing holds by a start value."""
    head = head.double().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


def factors(head: PrototypeHead[Any], options: dict[str, Any]) -> Tensor:
    """The connection's weights by the option's definition."""
    if head.connection.weight is None:
        return head.connection.own
    weight = head.connection.weight
    return weight if options.get("connection") == "signed" else weight.clamp(min=0)


def check(
    head: PrototypeHead[Any], features: Tensor, similarities: Tensor, weight: Tensor, is_focal: bool = False
) -> None:
    """The output is that of similarity maps `b p h w` with weights `c p`: each prototype at its best cell."""
    state = head.score(features)
    out = head.explained(state, "all")
    batch, number, height, width = similarities.shape
    logits = torch.zeros(batch, len(weight), dtype=torch.float64)
    offset = torch.zeros_like(logits)
    maps = torch.zeros(batch, len(weight), height, width, dtype=torch.float64)
    for image in range(batch):
        for prototype in range(number):
            grid = similarities[image, prototype]
            best = max(grid.flatten().tolist())
            row, column = divmod(int(state.places[image, prototype]), width)  # of equals any may be taken
            assert grid[row, column].item() == pytest.approx(best, abs=1e-9)
            mean = sum(grid.flatten().tolist()) / grid.numel() if is_focal else 0.0
            for of_class in range(len(weight)):
                factor = weight[of_class, prototype].item()
                logits[image, of_class] += factor * (best - mean)
                maps[image, of_class, row, column] += factor * best
                offset[image, of_class] -= factor * mean
    torch.testing.assert_close(out.parts, similarities, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.logits, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.maps, maps, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.offset, offset, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(TESNET), SEEDS, CLASSES, SIDES, SIDES)
def test_tesnet_by_loops(options: dict[str, Any], seed: int, classes: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    head = drawn(TesNet(5, classes, **options))
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    cells = head.add_on(features)
    assert cells.min() >= 0 and cells.max() <= 1, "cells come out of a sigmoid"
    similarities = torch.zeros(2, len(head.prototypes), height, width, dtype=torch.float64)
    for image, number, row, column in torch.cartesian_prod(*map(torch.arange, similarities.shape)).tolist():
        prototype = head.prototypes[number]
        similarities[image, number, row, column] = cells[image, :, row, column] @ prototype / prototype.norm()
    check(head, features, similarities.detach(), factors(head, options))


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(ST), SEEDS, CLASSES, SIDES, SIDES)
def test_st_protopnet_by_loops(options: dict[str, Any], seed: int, classes: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    head = drawn(STProtoPNet(5, classes, **options))
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    finer, per_branch = options.get("upsampling", 1), options["per_branch"]
    stretched = functional.interpolate(features, (height * finer, width * finer), mode="bilinear")
    cells = [head.add_on.trivial(stretched), head.add_on.support(stretched)]
    similarities = torch.zeros(2, 2 * per_branch * classes, height * finer, width * finer, dtype=torch.float64)
    for image, number, row, column in torch.cartesian_prod(*map(torch.arange, similarities.shape)).tolist():
        is_support = number % (2 * per_branch) >= per_branch
        cell, prototype = cells[is_support][image, :, row, column], head.prototypes[number]
        similarities[image, number, row, column] = (cell @ prototype / cell.norm() / prototype.norm()).clamp(min=0)
    check(head, features, similarities.detach(), factors(head, options))


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(POOL), SEEDS, CLASSES, SIDES, SIDES)
def test_protopool_by_loops(options: dict[str, Any], seed: int, classes: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    head = drawn(ProtoPool(5, classes, **options))
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    cells = head.add_on(features)
    similarities = torch.zeros(2, options["prototypes"], height, width, dtype=torch.float64)
    for image, number, row, column in torch.cartesian_prod(*map(torch.arange, similarities.shape)).tolist():
        distance = (cells[image, :, row, column] - head.prototypes[number]).square().sum()
        similarities[image, number, row, column] = ((distance + 1) / (distance + head.epsilon)).log()
    weight = torch.zeros(classes, options["prototypes"], dtype=torch.float64)
    for slot, logits in enumerate(head.slots.logits.tolist()):
        for of_class in range(classes):
            weight[of_class, logits.index(max(logits))] += factors(head, options)[of_class, slot].detach()
    check(head, features, similarities.detach(), weight, is_focal=True)


def of_class(head: PrototypeHead[Any], number: int) -> list[Tensor]:
    return [
        vector / vector.norm() for vector, owner in zip(head.prototypes, head.owners, strict=True) if owner == number
    ]


def by_loops(proximities: Tensor, is_own: list[list[bool]], labels: list[int]) -> tuple[float, float]:
    """Minus the nearest of the own class and the nearest of the others, means over images."""
    own, others = 0.0, 0.0
    for image, label in enumerate(labels):
        values = proximities[image].tolist()
        own -= max(value for value, mine in zip(values, is_own[label], strict=True) if mine)
        others += max((value for value, mine in zip(values, is_own[label], strict=True) if not mine), default=0.0)
    return own / len(labels), others / len(labels)


@pytest.mark.parametrize("classes", [1, 3])
def test_tesnet_losses_by_loops(classes: int) -> None:
    torch.manual_seed(0)
    head = drawn(TesNet(5, classes, per_class=2, dim=4))
    features, labels = torch.randn(4, 5, 3, 2, dtype=torch.float64), [0, classes - 1, classes // 2, 0]
    _, losses = head.forward_with_losses(features, torch.tensor(labels))
    cosines = torch.stack(
        [functional.cosine_similarity(head.add_on(features), each[None, :, None, None]) for each in head.prototypes], 1
    )
    own = [[owner == number for owner in head.owners.tolist()] for number in range(classes)]
    cluster, separation = by_loops(cosines.amax((2, 3)), own, labels)
    bases = [torch.stack(of_class(head, number)) for number in range(classes)]
    orthonormality = sum((basis @ basis.T - torch.eye(2)).abs().sum().item() for basis in bases) / classes
    distances = [
        (one.T @ one - two.T @ two).norm().item() / 2**0.5
        for place, one in enumerate(bases)
        for two in bases[place + 1 :]
    ]
    expected = {
        "cluster": cluster,
        "separation": separation,
        "sparsity": (factors(head, {}) * (1 - head.connection.own)).sum().item(),
        "orthonormality": orthonormality,
        "subspace_separation": -sum(distances) / max(1, len(distances)),
    }
    assert {name: term.item() for name, term in losses.items()} == pytest.approx(expected, abs=1e-9)
    assert head.loss_weights().keys() == losses.keys()


@pytest.mark.parametrize("classes", [1, 3])
def test_st_protopnet_losses_by_loops(classes: int) -> None:
    torch.manual_seed(0)
    head = drawn(STProtoPNet(5, classes, per_branch=2, dim=4))
    features, labels = torch.randn(4, 5, 3, 2, dtype=torch.float64), [0, classes - 1, classes // 2, 0]
    _, losses = head.forward_with_losses(features, torch.tensor(labels))
    expected = {"sparsity": (factors(head, {}) * (1 - head.connection.own)).sum().item()}
    for branch, add_on in enumerate([head.add_on.trivial, head.add_on.support]):
        name = ("trivial", "support")[branch]
        places = [place for place in range(4 * classes) if place % 4 // 2 == branch]
        cosines = torch.stack(
            [functional.cosine_similarity(add_on(features), head.prototypes[p][None, :, None, None]) for p in places], 1
        )
        own = [[place // 4 == number for place in places] for number in range(classes)]
        cluster, separation = by_loops(cosines.amax((2, 3)), own, labels)
        bases = [torch.stack(of_class(head, number)[2 * branch : 2 * branch + 2]) for number in range(classes)]
        deviations = [(basis @ basis.T - torch.eye(2)).square().sum().item() for basis in bases]
        pairs = [(one @ two.T).flatten().tolist() for at, one in enumerate(bases) for two in bases[at + 1 :]]
        expected |= {
            f"{name}_cluster": cluster,
            f"{name}_separation": separation,
            f"{name}_orthonormality": sum(deviations) / classes,
        }
        if name == "trivial":
            expected["discrimination"] = sum(map(max, pairs)) / max(1, len(pairs))
        else:
            expected["closeness"] = -sum(map(min, pairs)) / max(1, len(pairs))
    assert {name: term.item() for name, term in losses.items()} == pytest.approx(expected, abs=1e-9)
    assert head.loss_weights().keys() == losses.keys()


@pytest.mark.parametrize(("classes", "prototypes", "slots"), [(1, 4, 3), (3, 5, 2), (3, 5, 1), (2, 1, 2)])
def test_protopool_losses_by_loops(classes: int, prototypes: int, slots: int) -> None:
    torch.manual_seed(0)
    head = drawn(ProtoPool(5, classes, prototypes=prototypes, slots=slots, dim=4, anneal_steps=10))
    head.slots.steps.fill_(5)
    features, labels = torch.randn(4, 5, 3, 2, dtype=torch.float64), [0, classes - 1, classes // 2, 0]
    _, losses = head.forward_with_losses(features, torch.tensor(labels))
    distances = (head.add_on(features)[:, None] - head.prototypes[..., None, None]).square().sum(2)
    held = head.slots.logits.argmax(1).tolist()
    own = [[p in held[slots * c : slots * (c + 1)] for p in range(prototypes)] for c in range(classes)]
    cluster, separation = by_loops(-distances.amin((2, 3)), own, labels)
    likely = (head.slots.logits * (1.3 * 1000) ** 0.5 / 0.5).softmax(1)  # half of the way from 1.3 to 1000
    cosines = [
        functional.cosine_similarity(likely[slots * c + n], likely[slots * c + m], dim=0).item()
        for c in range(classes)
        for n in range(slots)
        for m in range(n)
    ]
    expected = {
        "cluster": cluster,
        "separation": separation,
        "slot_orthogonality": sum(cosines) / max(1, len(cosines)),
        "sparsity": (factors(head, {}) * (1 - head.connection.own)).sum().item(),
    }
    assert {name: term.item() for name, term in losses.items()} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "options"), SMALL)
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_numbers_and_halves_of_a_batch_give_those_of_the_whole(
    name: str, options: dict[str, Any], classes: int
) -> None:
    """Even where every prototype is the same, so that nothing is apart; in eval mode nothing differs by draw."""
    torch.manual_seed(0)
    features, labels = torch.randn(4, 5, 3, 2, dtype=torch.float64), torch.tensor([0, classes - 1, 0, classes - 1])

    def gradients(head: Head, chosen: slice) -> dict[str, Tensor]:
        head.zero_grad()
        out, losses = head.forward_with_losses(features[chosen], labels[chosen])
        loss = functional.cross_entropy(out.logits, labels[chosen])
        torch.stack([loss, *losses.values()]).sum().backward()
        found = {key: parameter.grad for key, parameter in head.named_parameters()}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
        return {key: gradient.clone() for key, gradient in found.items() if gradient is not None}

    head = drawn(create_head(name, 5, classes, **options))
    whole, first, second = (gradients(head, part) for part in (slice(4), slice(2), slice(2, 4)))
    for key, gradient in whole.items():
        torch.testing.assert_close((first[key] + second[key]) / 2, gradient, atol=1e-12, rtol=1e-9)
    nn.init.ones_(head.prototypes)
    gradients(head.train(), slice(4))


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_a_projected_prototype_is_its_patch(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = create_head(name, 5, 2, **options)
    assert isinstance(head, PrototypeHead)
    model = Plain(head.train())
    before = head.prototypes.detach().clone()
    held_by = head.belongs.clone()
    numbers = head.project(loader(), model)
    every = {key: (image, int(label)) for batch in loader() for image, label, key in zip(*batch, strict=True)}
    held = held_by.any(0).nonzero()[:, 0].tolist()
    assert [entry["prototype"] for entry in head.provenance] == held
    assert torch.equal(head.prototypes[~held_by.any(0)], before[~held_by.any(0)]), "what no class holds stays"
    found, cells = [], set()
    finer = options.get("upsampling", 1)
    for entry in head.provenance:
        number, (row, column) = entry["prototype"], entry["cell"]
        image, label = every[entry["image"]]
        assert label == entry["class"] and held_by[label, number]
        with torch.no_grad():
            features, proximity = head.found(image[None])
        vector = features[0, :, row, column]
        if name == "tesnet":
            perfect = vector.norm().item()
            torch.testing.assert_close(head.prototypes[number], vector / vector.norm())
        elif name == "st_protopnet":
            perfect = 1.0
            torch.testing.assert_close(head.prototypes[number], vector.chunk(2)[number % 4 // 2])
            assert proximity[0, number].max() <= 1 + 1e-5
        else:
            perfect = 0.0
            torch.testing.assert_close(head.prototypes[number], vector)
        assert proximity[0, number, row, column].item() == pytest.approx(perfect, abs=1e-4)
        # The middle of the cell, and half a receptive field to each side; fine cells are parts of the features' cells.
        x, y = (10 / finer * (place + 0.5) for place in (column, row))
        assert entry["box"] == pytest.approx([x - 10, y - 15, x + 10, y + 15])
        cells.add((head.owners[number].item(), entry["image"], row, column))
        found.append(entry["proximity"])
    assert len(cells) == len(held), "a cell was given twice within a class"
    assert numbers["projection_proximity"] == pytest.approx(sum(found) / len(found))


@pytest.mark.parametrize("name", ["tesnet", "st_protopnet", "protopool"])
def test_a_projection_takes_the_nearest_of_all(name: str) -> None:
    """With one prototype a class nothing stands back for another."""
    torch.manual_seed(1)
    options = {"tesnet": {"per_class": 1}, "st_protopnet": {"per_branch": 1}, "protopool": {"prototypes": 4}}[name]
    head = create_head(name, 5, 2, **options)
    assert isinstance(head, PrototypeHead)
    belongs = head.belongs.tolist()
    nearest = [float("-inf")] * len(head.prototypes)
    for batch in loader():
        _, proximity = head.found(batch.images)
        for image, label in enumerate(batch.labels.tolist()):
            for number in range(len(nearest)):
                if belongs[label][number]:
                    nearest[number] = max(nearest[number], proximity[image, number].max().item())
    head.project(loader(), Plain(head))
    for entry in head.provenance:
        if name != "protopool" or head.owners.bincount()[head.owners[entry["prototype"]]] == 1:
            assert entry["proximity"] == pytest.approx(nearest[entry["prototype"]], abs=1e-5)


def test_a_shared_prototype_is_sought_in_all_classes_that_hold_it() -> None:
    """And in no others: nearest first, of three classes the first two."""

    def embed(features: Any) -> tuple[Tensor, Tensor]:
        return features[:, :1], features

    images = torch.tensor([1.0, 3.0, 9.0])[:, None, None, None]
    batches = [Images(images, torch.tensor([0, 1, 2]), list("abc"))]
    search = Search(embed, 3, torch.tensor([[True], [True], [False]]))
    found = nearest_patches(batches, Plain(TesNet(5, 2)), search)
    assert [patch.image for patch in found[0]] == ["b", "a"]


def pool(**options: Any) -> ProtoPool:
    torch.manual_seed(0)
    return ProtoPool(5, 3, **{"prototypes": 6, "slots": 2, "dim": 4, **options})


def test_slots_are_drawn_in_training_only() -> None:
    """Evaluation draws nothing: the same numbers, one prototype a slot, and torch's generator left where it was."""
    head, features = pool(), torch.randn(2, 5, 3, 3)
    head.eval()
    state = torch.get_rng_state()
    first, second = head(features, "all"), head(features, "all")
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first.logits, second.logits)
    one_hot = functional.one_hot(head.slots.logits.argmax(1), 6)
    assert torch.equal(head.slots(), one_hot.float())
    head.train()
    assert not torch.equal(head(features).logits, head(features).logits)
    torch.manual_seed(7)
    once = head(features).logits
    torch.manual_seed(7)
    assert torch.equal(head(features).logits, once), "another generator was used"
    torch.testing.assert_close(head.slots().sum(1), torch.ones(6))
    assert head.slots().max() < 1


def test_late_draws_are_what_evaluation_uses() -> None:
    head, features = pool(anneal_steps=5), torch.randn(2, 5, 3, 3)
    nn.init.normal_(head.slots.logits)
    head.slots.steps.fill_(5)
    expected = head.eval()(features).logits
    torch.testing.assert_close(head.train()(features).logits, expected, atol=1e-4, rtol=1e-4)


def test_steps_count_while_slots_learn_and_are_kept() -> None:
    head = pool(anneal_steps=2)
    head.train()
    scales = []
    for _ in range(4):
        scales.append((head.slots.scaled() / head.slots.logits).mean().item())
        head.after_step()
    assert scales == pytest.approx([1.3, (1.3 * 1000) ** 0.5, 1000, 1000], rel=1e-4)
    head.slots.eval()  # as the trainer does with what is frozen
    head.after_step()
    assert head.slots.steps == 4 and head.state_dict()["slots.steps"] == 4


def test_a_single_cell_has_no_focus() -> None:
    out = pool()(torch.randn(2, 5, 1, 1), "all")
    assert not out.logits.any() and not (out.maps.sum((-2, -1)) + out.offset).any() and out.offset.all()


def test_a_shared_prototype_is_kept_for_every_class_that_holds_it() -> None:
    """Prototypes 0 and 1 of three, the first held by both classes: of it nothing foreign is near, of 1 all is."""
    head = ProtoPool(5, 2, prototypes=3, slots=2, dim=4)
    with torch.no_grad():
        head.slots.logits.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]))
    assert head.belongs.tolist() == [[True, True, False], [True, False, False]]
    assert head.leading().tolist()[:2] == [1, 0]
    images = torch.randn(12, 5, 1, 1)
    batches = [Images(images, torch.tensor([1] * 12), [f"{number}" for number in range(12)])]
    assert head.prune(batches, Plain(head)) == {"prototypes": 1.0}
    assert head.is_kept.tolist() == [True, False, False]
    assert (head.weight > 0).tolist() == [[True, False, False], [True, False, False]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tesnet", {"dim": 0}, "dim=0"),
        ("tesnet", {"per_class": 0}, "per_class=0"),
        ("tesnet", {"per_class": 9, "dim": 8}, "per_class=9: must be between 1 and 8"),
        ("tesnet", {"connection": "fix"}, "did you mean 'fixed'"),
        ("st_protopnet", {"per_branch": 0}, "per_branch=0"),
        ("st_protopnet", {"dim": 0}, "dim=0"),
        ("st_protopnet", {"upsampling": 0}, "upsampling=0"),
        ("st_protopnet", {"upsampling": 5}, "between 1 and 4"),
        ("protopool", {"prototypes": 0}, "prototypes=0"),
        ("protopool", {"slots": 0}, "slots=0"),
        ("protopool", {"dim": 0}, "dim=0"),
        ("protopool", {"epsilon": 0.0}, "epsilon"),
        ("protopool", {"anneal_steps": 0}, "anneal_steps=0"),
        ("protopool", {"connection": "sign"}, "did you mean 'signed'"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_head(name, 5, 2, **options)


RECIPE = """
data: {name: critters, options: {size: 64, count: 80}, validation: 0.25, batch_size: 16}
model:
  backbone: test_resnet
  head: protopool
  image_size: 64
  crop_pct: 1.0
  head_kwargs: {prototypes: 8, slots: 2, dim: 8, anneal_steps: 4}
epochs: 4
"""


def test_a_stopped_run_draws_what_a_whole_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    whole = Trainer(load_recipe(str(path)), tmp_path / "whole", shows_progress=False)
    whole.fit()
    stopped = Trainer(load_recipe(str(path)), tmp_path / "stopped", shows_progress=False)
    validate = stopped._validate

    def until() -> dict[str, float]:
        if stopped.progress.done == 1:
            raise RuntimeError("stopped")
        return validate()

    monkeypatch.setattr(stopped, "_validate", until)
    with pytest.raises(RuntimeError, match="stopped"):
        stopped.fit()
    resumed = Trainer(load_recipe(str(path)), tmp_path / "stopped", resume=True, shows_progress=False)
    resumed.fit()
    assert resumed.model.provenance == whole.model.provenance and whole.model.provenance
    steps = whole.model.state_dict()["head.slots.steps"]
    assert 0 < steps < 4 * len(whole.loaders.training), "the last phase leaves the slots alone"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
