"""ProtoTree against a tree walked by recursion: probabilities, evidence, the leaves' votes, projection and pruning."""

import copy
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing, nn

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import ProtoTree
from glasszoo.training import Trainer, load_recipe


class Node(NamedTuple):
    number: int
    absent: "Tree"
    present: "Tree"


Tree = Node | int  # a leaf is its number


def grown(depth: int, unknowing: set[int], number: int = 0, first_leaf: int = 0) -> Tree | None:
    """The tree below a node without the leaves that know nothing; None where nothing is left of it."""
    if depth == 0:
        return None if first_leaf in unknowing else first_leaf
    half = 2 ** (depth - 1)
    absent = grown(depth - 1, unknowing, 2 * number + 1, first_leaf)
    present = grown(depth - 1, unknowing, 2 * number + 2, first_leaf + half)
    if absent is None or present is None:
        return present if absent is None else absent
    return Node(number, absent, present)


def paths(tree: Tree, so_far: tuple[tuple[int, bool], ...] = ()) -> dict[int, tuple[tuple[int, bool], ...]]:
    """Leaf → the nodes on its way, and whether their prototype is there."""
    if isinstance(tree, int):
        return {tree: so_far}
    below = paths(tree.absent, (*so_far, (tree.number, False)))
    return below | paths(tree.present, (*so_far, (tree.number, True)))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def found_by_loops(head: ProtoTree, image: Tensor) -> list[tuple[float, int, int]]:
    """Of each prototype in an image `d h w`: its similarity at the best cell, the cell."""
    cells = torch.einsum("kd,dhw->hwk", head.add_on[0].weight[:, :, 0, 0], image).sigmoid()  # type: ignore[index]
    result = []
    for prototype in head.prototypes:
        best = (-1.0, 0, 0)
        for row in range(cells.shape[0]):
            for column in range(cells.shape[1]):
                distance = (cells[row, column] - prototype).square().sum().item()
                similarity = math.exp(-math.sqrt(distance + 1e-8))
                if similarity > best[0]:
                    best = (similarity, row, column)
        result.append(best)
    return result


def shares_by_loops(head: ProtoTree, tree: Tree, image: Tensor) -> dict[int, float]:
    """π of each leaf for an image `d h w`."""
    found = found_by_loops(head, image)
    return {
        leaf: math.prod(found[node][0] if there else 1 - found[node][0] for node, there in path)
        for leaf, path in paths(tree).items()
    }


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sets(st.integers(0, 15), max_size=12),
)
def test_probabilities_and_evidence_by_recursion(
    depth: int, seed: int, classes: int, height: int, width: int, unknowing: set[int]
) -> None:
    torch.manual_seed(seed)
    head = ProtoTree(5, classes, depth=depth, dim=3, least=0.0).double()
    nn.init.normal_(head.leaves)
    tree = grown(depth, unknowing)
    if tree is None:
        tree = grown(depth, set())
    else:
        # What knows nothing is made so: probabilities are above 0, so only these are at or below it.
        head.least = 1 / classes
        if classes == 1:
            return
        for leaf in unknowing & set(range(2**depth)):
            head.leaves[leaf] = 0.5
        head.prune([], Plain(head))
    assert tree is not None
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    out = head(features, "all")
    for image in range(2):
        found = found_by_loops(head, features[image])
        probabilities, offsets = [0.0] * classes, [0.0] * classes
        maps = torch.zeros(classes, height, width, dtype=torch.float64)
        for leaf, path in paths(tree).items():
            share = math.prod(found[node][0] if there else 1 - found[node][0] for node, there in path)
            for of_class, sure in enumerate(softmax(head.leaves[leaf].tolist())):
                probabilities[of_class] += share * sure
                if not path:
                    offsets[of_class] += share * sure
                for node, there in path:
                    if there:
                        maps[of_class, found[node][1], found[node][2]] += share * sure / len(path)
                    else:
                        offsets[of_class] += share * sure / len(path)
        assert sum(probabilities) == pytest.approx(1.0)
        assert out.logits[image].exp().tolist() == pytest.approx(probabilities, abs=1e-9)
        torch.testing.assert_close(out.maps[image], maps, atol=1e-9, rtol=1e-9)
        assert out.offset[image].tolist() == pytest.approx(offsets, abs=1e-9)
        for node, (similarity, row, column) in enumerate(found):
            assert out.parts[image, node, row, column].item() == pytest.approx(similarity, abs=1e-9)
            assert out.parts[image, node].max().item() == pytest.approx(similarity, abs=1e-9)


def test_begins_near_uniform() -> None:
    torch.manual_seed(0)
    probabilities = ProtoTree(5, 4).eval()(torch.randn(3, 5, 4, 4)).logits.exp()
    torch.testing.assert_close(probabilities, torch.full((3, 4), 0.25), atol=0.1, rtol=0)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


def test_leaves_take_in_their_votes_and_forget_as_many() -> None:
    torch.manual_seed(0)
    head = ProtoTree(5, 3, depth=2, dim=3, memory=20).double().train()
    nn.init.normal_(head.leaves, std=2)
    tree = grown(2, set())
    assert tree is not None
    before = head.leaves.tolist()
    wanted = [[value * (1 - 6 / 20) for value in leaf] for leaf in before]
    # Two batches before one step, as when gradients are accumulated.
    for size in (4, 2):
        features, targets = torch.randn(size, 5, 2, 2).double(), torch.randint(3, (size,))
        assert head.losses(head.score(features), targets) == {}
        for image, target in zip(features, targets.tolist(), strict=True):
            shares = shares_by_loops(head, tree, image)
            answers = {leaf: share * softmax(before[leaf])[target] for leaf, share in shares.items()}
            for leaf, answer in answers.items():
                wanted[leaf][target] += answer / sum(answers.values())
    assert head.leaves.tolist() == before, "only a step changes them"
    head.after_step()
    torch.testing.assert_close(head.leaves, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    assert not head.votes.any() and "votes" not in head.state_dict()
    head.after_step()
    torch.testing.assert_close(head.leaves, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=1e-9)


def test_a_batch_larger_than_the_memory_replaces_all() -> None:
    head = ProtoTree(5, 2, depth=1, memory=2).train()
    head.leaves.fill_(100.0)
    head.losses(head.score(torch.randn(6, 5, 2, 2)), torch.tensor([0, 0, 0, 0, 0, 1]))
    head.after_step()
    torch.testing.assert_close(head.leaves.sum(0), torch.tensor([5.0, 1.0]))


def test_evaluation_changes_nothing() -> None:
    head = ProtoTree(5, 3).eval()
    before = copy.deepcopy(head.state_dict())
    head.forward_with_losses(torch.randn(4, 5, 3, 3), torch.tensor([0, 1, 2, 0]))
    assert not head.votes.any()
    head.after_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(voted(rank, 2), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def voted(rank: int, devices: int) -> Tensor:
    torch.manual_seed(0)
    head = ProtoTree(5, 3, depth=3, memory=30).train()
    features, targets = torch.randn(8, 5, 3, 3), torch.randint(3, (8,))
    for _ in range(2):
        head.losses(head.score(features.chunk(devices)[rank]), targets.chunk(devices)[rank])
        head.after_step()
    return head.leaves


def test_two_devices_keep_the_leaves_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, voted(0, 1), atol=1e-5, rtol=1e-5)


def test_what_is_too_unlikely_for_a_float_still_teaches() -> None:
    head = ProtoTree(5, 2, depth=3)
    head.leaves[:, 0], head.leaves[:, 1] = 500.0, 0.0
    out = head(torch.randn(2, 5, 2, 2))
    assert out.logits[:, 1].tolist() == pytest.approx([-500.0] * 2, rel=1e-4)
    head.leaves[0] = torch.tensor([0.0, 0.0])
    nn.functional.cross_entropy(head(torch.randn(2, 5, 2, 2)).logits, torch.tensor([1, 1])).backward()
    assert head.prototypes.grad is not None
    assert head.prototypes.grad.isfinite().all() and head.prototypes.grad.any()


def test_a_perfect_match_is_finite() -> None:
    head = ProtoTree(5, 2, depth=2, dim=3)
    nn.init.constant_(head.prototypes, 0.5)  # the sigmoid of 0: a distance of exactly 0
    out = head(torch.zeros(1, 5, 1, 1), "all")
    assert (out.parts > 0.998).all() and out.logits.isfinite().all()
    out.logits[0, 1].backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def toy(count: int = 60) -> tuple[Tensor, Tensor]:
    """Class 0 has nothing, 1 one thing, 2 another, somewhere."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 5, 3, 3, generator=generator) * 0.1
    cells = torch.randint(9, (count,), generator=generator)
    for number in range(count):
        if labels[number]:
            images[number, labels[number], cells[number] // 3, cells[number] % 3] = 3
    return images, labels


def trained(head: ProtoTree, steps: int, learns: bool) -> tuple[list[float], float]:
    """Losses on the toy, by the leaves alone or with the prototypes as well, and the accuracy at the end."""
    images, labels = toy()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0)
    losses = []
    for _ in range(steps):
        out, _ = head.forward_with_losses(images, labels)
        loss = nn.functional.nll_loss(out.logits, labels)
        losses.append(loss.item())
        if learns:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.after_step()
    return losses, (head.eval()(images).logits.argmax(1) == labels).float().mean().item()


def test_leaves_learn_what_good_prototypes_tell_apart() -> None:
    torch.manual_seed(0)
    head = ProtoTree(5, 3, depth=2, dim=8, memory=60).train()
    with torch.no_grad():
        head.add_on[0].weight.mul_(3)  # type: ignore[index,union-attr,operator]
        things = torch.zeros(2, 5, 1, 1)
        things[0, 1] = things[1, 2] = 3
        head.prototypes.copy_(head.add_on(things)[[0, 1, 1], :, 0, 0])
    losses, correct = trained(head, 20, learns=False)
    assert losses[-1] < 0.7 * losses[0] and correct > 0.8


def test_leaves_and_prototypes_learn_together() -> None:
    torch.manual_seed(1)
    losses, correct = trained(ProtoTree(5, 3, depth=3, dim=8, memory=60).train(), 80, learns=True)
    assert losses[-1] < 0.5 * losses[0] and correct > 0.95


def loader() -> list[Images]:
    generator = torch.Generator().manual_seed(0)
    return [
        Images(torch.randn(2, 5, 3, 4, generator=generator), torch.tensor([0, 1]), [f"{number}a", f"{number}b"])
        for number in range(2)
    ]


def test_each_prototype_becomes_a_patch_of_its_own() -> None:
    torch.manual_seed(0)
    head = ProtoTree(5, 2, depth=4, dim=3)
    start = head.prototypes.detach().clone()
    numbers = head.project(loader(), Plain(head))
    assert [entry["prototype"] for entry in head.provenance] == list(range(15))
    every = {name: image for batch in loader() for image, name in zip(batch.images, batch.ids, strict=True)}
    for entry in head.provenance:
        row, column = entry["cell"]
        cells = head.add_on(every[entry["image"]][None])[0]
        torch.testing.assert_close(head.prototypes[entry["prototype"]], cells[:, row, column])
        assert entry["class"] is None and entry["box"][0] == 10 * column + 5 - 10
        distance = (start[entry["prototype"]] - cells[:, row, column]).square().sum().item()
        assert entry["proximity"] == pytest.approx(-distance, abs=1e-5)
    assert len({(entry["image"], *entry["cell"]) for entry in head.provenance}) == 15
    # The nearest pair of all is free to choose.
    best = max(
        -(head.add_on(image[None])[0] - prototype[:, None, None]).square().sum(0).min().item()
        for image in every.values()
        for prototype in start
    )
    assert max(entry["proximity"] for entry in head.provenance) == pytest.approx(best, abs=1e-6)
    mean = sum(entry["proximity"] for entry in head.provenance) / 15
    assert numbers == {"projection_proximity": pytest.approx(mean)}
    assert json.loads(json.dumps(head.provenance)) == head.provenance


def test_pruning_drops_leaves_that_know_nothing_and_nodes_that_decide_nothing() -> None:
    head = ProtoTree(5, 4, depth=2)  # least: 0.5
    head.leaves.zero_()
    head.prune([], Plain(head))
    assert head.is_kept.all() and (head.turns != 0).sum() == 8, "nothing but such leaves: it stays"
    head.project(loader(), Plain(head))
    head.leaves[:3, 1] = 5.0
    assert head.prune([], Plain(head)) == {"leaves": 3.0, "prototypes": 2.0}
    assert head.is_kept.tolist() == [True, True, True, False]
    assert head.turns.tolist() == [[-1, -1, 0], [-1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert [entry["prototype"] for entry in head.provenance] == [0, 1]
    out = head(torch.randn(3, 5, 2, 2))
    torch.testing.assert_close(out.logits.exp().sum(1), torch.ones(3))
    head.train().losses(head.score(torch.randn(3, 5, 2, 2)), torch.tensor([0, 1, 2]))
    assert head.votes.sum().item() == pytest.approx(3) and not head.votes[3].any(), "a pruned leaf has no vote"


def test_what_counts_as_knowing() -> None:
    assert ProtoTree(5, 200).least == pytest.approx(0.01), "the paper's"
    assert ProtoTree(5, 2).least < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"depth": 13}, "depth=13"),
        ({"dim": 0}, "dim=0"),
        ({"memory": 0}, "memory=0"),
        ({"least": 1.5}, "least=1.5"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProtoTree(5, 2, **options)


RECIPE = """
data: {name: critters, options: {size: 64, count: 80}, validation: 0.25, batch_size: 16}
model: {backbone: test_resnet, head: prototree, image_size: 64, crop_pct: 1.0, head_kwargs: {depth: 3, dim: 8}}
epochs: 3
"""


def test_a_run_of_its_own_phases(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    trainer = Trainer(load_recipe(str(path)), tmp_path / "run", shows_progress=False)
    assert [phase.name for phase in trainer.plan] == ["warm", "joint", "judged"]
    head = trainer.model.get_classifier()
    assert isinstance(head, ProtoTree)
    before = head.leaves.clone()
    trainer.fit()
    assert not torch.equal(head.leaves, before)
    judged = trainer.progress.history[-1]
    assert judged["leaves"] == float(head.is_kept.sum()) and judged["prototypes"] == len(head.provenance)
    folder = tmp_path / "run" / "best"
    assert "head.leaves" in load_file(folder / "model.safetensors")
    assert "head.votes" not in load_file(folder / "model.safetensors")
    published = glasszoo.load_pretrained(f"local-dir:{folder}")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(published(images).logits, trainer.model.eval()(images).logits)
    assert published.provenance == head.provenance
