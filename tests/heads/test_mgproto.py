"""MGProto against loops: densities and their maps, losses, the priors' update, projection, pruning, unknown images."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain
from torch import Tensor, distributed, multiprocessing, nn

from glasszoo.common.errors import InputError
from glasszoo.heads import MGProto


def made(classes: int = 3, seed: int = 0, **options: Any) -> MGProto:
    """A head with random means and priors."""
    torch.manual_seed(seed)
    head = MGProto(5, classes, **{"per_class": 3, "kept": 2, "dim": 4, **options}).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    head.priors.copy_(torch.rand(classes, head.votes.shape[1]).softmax(1).flatten())
    return head


def likeness(cell: Tensor, mean: Tensor) -> Tensor:
    """p_k by its definition."""
    return torch.exp(-math.pi * (cell / cell.norm() - mean / mean.norm()).square().sum())


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([4, None]),
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)
def test_densities_and_maps_by_loops(
    dim: int | None, seed: int, classes: int, height: int, width: int, pruned: bool
) -> None:
    head = made(classes, seed, dim=dim)
    if pruned:
        head.prune([], Plain(head))
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    out, places = head(features, "all"), head.score(features).places
    cells = head.add_on(features)
    densities = torch.zeros(2, classes, dtype=torch.float64)
    maps = torch.zeros(2, classes, height, width, dtype=torch.float64)
    for image in range(2):
        for number, mean in enumerate(head.prototypes):
            found = {
                (row, column): likeness(cells[image, :, row, column], mean).item()
                for row in range(height)
                for column in range(width)
            }
            for (row, column), value in found.items():
                assert out.parts[image, number, row, column].item() == pytest.approx(value, abs=1e-9)
            # Of cells that are alike, any may be taken.
            best = list(found)[places[image, number]]
            assert found[best] == pytest.approx(max(found.values()), abs=1e-9)
            of_class = number // 3
            share = head.priors[number].item() * found[best]
            densities[image, of_class] += share
            maps[image, of_class, best[0], best[1]] += share
    torch.testing.assert_close(out.logits, densities.log(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.maps, maps, atol=1e-9, rtol=1e-9)
    assert not out.offset.any()


def test_logits_stay_finite() -> None:
    """Cells opposite to all means of a class, and a prior too small for a float."""
    head = MGProto(4, 2, per_class=2, dim=None)
    with torch.no_grad():
        head.prototypes.copy_(torch.eye(4))
        head.priors.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    features = -100 * torch.eye(4)[:2, :, None, None]
    out = head(features, "all")
    assert out.logits.isfinite().all()
    assert out.logits[0, 0].item() == pytest.approx(-4 * math.pi, abs=1e-4)
    losses = head.losses(head.score(features), torch.tensor([0, 1]))
    torch.stack(list(losses.values())).sum().backward()
    assert head.prototypes.grad is not None and head.prototypes.grad.isfinite().all()


@torch.no_grad()
def losses_by_loops(head: MGProto, features: Tensor, targets: Tensor) -> tuple[dict[str, float], Tensor]:
    """The loss terms, and the sum over images of each class's responsibilities `c k`."""
    cells = head.add_on(features).flatten(2)
    classes, per_class = head.votes.shape
    means = head.prototypes.unflatten(0, (classes, per_class))
    priors = head.priors.unflatten(0, (classes, per_class))
    mixture, mining, votes = [], [], torch.zeros(classes, per_class, dtype=torch.float64)
    for image, target in enumerate(targets.tolist()):
        table = torch.tensor(
            [[[likeness(cell, mean) for mean in of_class] for of_class in means] for cell in cells[image].T],
            dtype=torch.float64,
        )  # cells, classes, prototypes
        count = min(head.mined, len(table))
        joint = table[:, target] * priors[target]
        chosen = joint[joint.sum(1).argsort(descending=True)[:count]]
        mixture += [-row.sum().log().item() for row in chosen]
        votes[target] += (chosen / chosen.sum(1, keepdim=True)).mean(0)
        best = (table.amax(0) * priors).sum(1)
        for level in range(1, count):
            levels = best.clone()
            levels[target] = (table[:, target].sort(dim=0, descending=True).values[level] * priors[target]).sum()
            mining.append(-(levels[target] / levels.sum()).log().item())
    overlaps = [
        likeness(means[c, k], means[c, other]).item()
        for c in range(classes)
        for k in range(per_class)
        for other in range(k)
        if head.is_kept.view(classes, per_class)[c, [k, other]].all()
    ]
    average = {
        name: sum(values) / max(1, len(values))
        for name, values in (("mixture", mixture), ("mining", mining), ("diversity", overlaps))
    }
    return average, votes


@pytest.mark.parametrize("options", [{}, {"mined": 4}, {"mined": 1}, {"per_class": 1}, {"classes": 1}])
@pytest.mark.parametrize("pruned", [False, True])
def test_losses_and_the_priors_by_loops(options: dict[str, Any], pruned: bool) -> None:
    head = made(**options).train()
    if pruned:
        head.prune([], Plain(head))
    features = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0]).clamp(max=head.num_classes - 1)
    expected, votes = losses_by_loops(head, features, targets)
    found = head.losses(head.score(features), targets)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, abs=1e-8)
    before = head.priors.clone()
    head.after_step()
    means = votes / votes.sum(1, keepdim=True)
    wanted = 0.99 * before.view_as(votes) + 0.01 * means
    if len(wanted) == 3:
        wanted[2] = before.view_as(votes)[2]  # no image of class 2
    torch.testing.assert_close(head.priors.view_as(votes), wanted, atol=1e-9, rtol=1e-9)
    again = head.priors.clone()
    head.after_step()
    assert torch.equal(head.priors, again), "votes count once"


def test_a_single_cell_leaves_nothing_to_mine() -> None:
    head = made()
    losses = head.losses(head.score(torch.randn(2, 5, 1, 1, dtype=torch.float64)), torch.tensor([0, 2]))
    assert losses["mining"] == 0 and all(term.isfinite() for term in losses.values())


def test_losses_gather_over_the_batches_of_a_step() -> None:
    """Gradient accumulation: two halves and one step move the priors as the whole batch does."""
    features, targets = torch.randn(6, 5, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 2])
    whole, halves = made().train(), made().train()
    whole.losses(whole.score(features), targets)
    for part in (slice(0, 2), slice(2, 6)):
        halves.losses(halves.score(features[part]), targets[part])
    before = whole.priors.clone()
    whole.after_step()
    halves.after_step()
    torch.testing.assert_close(halves.priors, whole.priors)
    assert not torch.equal(whole.priors, before)
    torch.testing.assert_close(whole.priors.view(3, 3).sum(1), torch.ones(3, dtype=torch.float64))


def test_evaluation_changes_nothing() -> None:
    head = made().eval()
    before = copy.deepcopy(dict(head.named_buffers()))
    features = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    head.losses(head.score(features), torch.tensor([0, 1, 2, 0]))
    head.after_step()
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_the_mixture_moves_no_feature() -> None:
    head = made()
    features = torch.randn(4, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    losses = head.losses(head.score(features), torch.tensor([0, 1, 2, 0]))
    assert torch.autograd.grad(losses["mixture"], features, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(losses["mixture"], head.prototypes, retain_graph=True)[0].any()
    assert torch.autograd.grad(losses["mining"], features)[0].any()


def test_no_votes_in_a_checkpoint() -> None:
    """Nothing but weights, means, priors, and which prototypes belong where and were kept."""
    assert set(MGProto(5, 2, dim=None).state_dict()) == {"prototypes", "priors", "owners", "is_kept", "connection.own"}


def work(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    head = made().train()
    features, targets = batch()
    part = slice(0, 2) if rank == 0 else slice(2, 6)
    head.losses(head.score(features[part]), targets[part])
    head.after_step()
    torch.save(head.priors, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def batch() -> tuple[Tensor, Tensor]:
    features = torch.randn(6, 5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return features, torch.tensor([0, 1, 1, 0, 0, 2])


def test_two_devices_move_the_priors_as_one(tmp_path: Path) -> None:
    alone = made().train()
    features, targets = batch()
    alone.losses(alone.score(features), targets)
    alone.after_step()
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone.priors)


def test_a_projected_mean_is_its_patch() -> None:
    head = made(2).float()
    generator = torch.Generator().manual_seed(0)
    batches = [
        Images(torch.randn(2, 5, 3, 4, generator=generator), torch.tensor([label] * 2), [f"{label}a", f"{label}b"])
        for label in (0, 1)
    ]
    head.project(batches, Plain(head))
    every = {name: (image, int(label)) for batch in batches for image, label, name in zip(*batch, strict=True)}
    cells = set()
    assert [entry["prototype"] for entry in head.provenance] == list(range(6))
    for entry in head.provenance:
        image, label = every[entry["image"]]
        row, column = entry["cell"]
        assert label == entry["class"] == head.owners[entry["prototype"]]
        parts = head(image[None]).parts[0, entry["prototype"]]
        assert parts[row, column].item() == pytest.approx(1, abs=1e-5) and parts.max() == parts[row, column]
        cells.add((label, entry["image"], row, column))
    assert len(cells) == 6, "a cell was given twice within a class"


def test_pruning_keeps_the_largest_priors() -> None:
    head = made(2, per_class=4)
    head.priors.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3, 0.25, 0.25, 0.25, 0.25]))
    assert head.prune([], Plain(head)) == {"prototypes": 4.0}
    assert head.is_kept.tolist() == [False, True, False, True, True, True, False, False]
    expected = torch.tensor([0, 4 / 7, 0, 3 / 7, 0.5, 0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(head.priors, expected)
    features, targets = torch.randn(4, 5, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    head.train().losses(head.score(features), targets)
    head.after_step()
    assert not head.priors[~head.is_kept].any() and (head.priors != expected).any(), "what was pruned stays so"
    assert head.prune([], Plain(head)) == {"prototypes": 4.0}


def test_unknown_images_have_a_lower_density() -> None:
    """Cells near the means against noise, and by the definition."""
    head = made(3, dim=None)
    generator = torch.Generator().manual_seed(0)
    images = [
        head.prototypes[3 * number : 3 * number + 3].T[None, :, None]
        + 0.1 * torch.randn(1, 5, 1, 3, dtype=torch.float64, generator=generator)
        for number in range(3)
    ]
    with torch.no_grad():
        known = head.density(head(torch.cat(images)).logits)
        away = -head.prototypes.mean(0)[None, :, None, None].expand(8, 5, 1, 3)
        noise = away + 0.3 * torch.randn(8, 5, 1, 3, dtype=torch.float64, generator=generator)
        logits = head(noise).logits
    torch.testing.assert_close(head.density(logits), logits.exp().sum(1).log())
    assert known.min() > head.density(logits).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "per_class=0"),
        ({"kept": 0}, "kept=0"),
        ({"dim": 0}, "dim=0"),
        ({"mined": 0}, "mined=0"),
        ({"momentum": 1.5}, "momentum=1.5: must be between 0 and 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MGProto(5, 2, **options)


def test_it_prunes_where_it_projects() -> None:
    assert [(phase.name, phase.project, phase.prune) for phase in MGProto(5, 2).phases()] == [
        ("warm", False, False),
        ("joint", True, True),
        ("judged", False, False),
    ]
