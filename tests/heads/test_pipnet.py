"""PIP-Net against loops: logits, evidence, losses; weights that shrink, abstention, phases, projection and pruning."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_stubs import Images, Plain
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import glasszoo
from glasszoo.common.errors import InputError
from glasszoo.heads import PIPNet
from glasszoo.training import Trainer, load_recipe


def presence_by_loops(head: PIPNet, features: Tensor) -> list[list[list[list[float]]]]:
    """Of image, row, column and prototype."""
    if isinstance(head.add_on, nn.Conv2d):
        assert head.add_on.bias is not None
        cells = torch.einsum("kd,bdhw->bhwk", head.add_on.weight[:, :, 0, 0], features) + head.add_on.bias
    else:
        cells = features.movedim(1, -1)

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]

    return [[[softmax(cell) for cell in row] for row in image] for image in cells.tolist()]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([None, 3, 12]),
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_logits_and_evidence_by_loops(
    number: int | None, seed: int, classes: int, height: int, width: int, training: bool, pruned: bool
) -> None:
    torch.manual_seed(seed)
    head = PIPNet(5, classes, num_prototypes=number, threshold=0.4).double().train(training)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    head.is_kept[0] = not pruned
    features = torch.randn(2, 5, height, width, dtype=torch.float64)
    out = head(features, "all")
    presence = presence_by_loops(head, features)
    logits, maps = torch.zeros(2, classes).double(), torch.zeros(2, classes, height, width).double()
    for image in range(2):
        for prototype in range(head.is_kept.numel()):
            best, place = -1.0, (0, 0)
            for row in range(height):
                for column in range(width):
                    value = presence[image][row][column][prototype]
                    assert out.parts[image, prototype, row, column].item() == pytest.approx(value, abs=1e-9)
                    if value > best:
                        best, place = value, (row, column)
            if (best < 0.4 and not training) or (pruned and prototype == 0):
                continue
            for of_class in range(classes):
                points = max(head.classifier.weight[of_class, prototype].item(), 0.0) * best
                logits[image, of_class] += points
                maps[image, of_class, place[0], place[1]] += points
    torch.testing.assert_close(out.logits, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.maps, maps, atol=1e-9, rtol=1e-9)
    assert not out.offset.any()


@pytest.mark.parametrize("views", [1, 2])
def test_losses_by_loops(views: int) -> None:
    torch.manual_seed(0)
    head = PIPNet(4, 3).double()
    features, targets = torch.randn(views * 2, 4, 2, 3).double() * 2, torch.tensor([2, 0])
    state = head.score(features)
    terms = head.losses(state, targets)
    assert terms.keys() == head.loss_weights().keys() - {"classification"}
    presence = presence_by_loops(head, features)
    align = uniformity = classification = 0.0
    for image in range(2):
        other = image + 2 * (views - 1)
        for row in range(2):
            for column in range(3):
                pair = zip(presence[image][row][column], presence[other][row][column], strict=True)
                align -= math.log(sum(one * two for one, two in pair)) / (2 * 2 * 3)
    for view in range(views):
        for prototype in range(4):
            total = sum(
                max(presence[2 * view + image][row][column][prototype] for row in range(2) for column in range(3))
                for image in range(2)
            )
            uniformity -= math.log(math.tanh(total) + 1e-8) / (4 * views)
        for image in range(2):
            scores = [1 + value**2 for value in state.logits[2 * view + image].tolist()]
            classification -= math.log(scores[int(targets[image])] / sum(scores)) / (2 * views)
    assert terms["align"].item() == pytest.approx(align, abs=1e-9)
    assert terms["uniformity"].item() == pytest.approx(uniformity, abs=1e-9)
    assert terms["sparse_classification"].item() == pytest.approx(classification, abs=1e-9)


def test_one_view_asks_for_one_prototype_a_cell() -> None:
    head = PIPNet(4, 3)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    targets = torch.tensor([0, 1])
    terms = head.losses(head.score(features), targets)
    (gradient,) = torch.autograd.grad(terms["align"], features)
    before = head.score(features).parts.amax(1)
    assert (head.score(features - 0.01 * gradient / gradient.norm()).parts.amax(1) - before).sum() > 0
    sure = head.losses(head.score(1000 * features), targets)["align"]
    assert sure < 1e-6 < terms["align"]


def test_weights_shrink_and_stop_at_zero_unless_frozen() -> None:
    head = PIPNet(4, 2, shrink=0.25)
    start = torch.tensor([[1.0, 0.25, 0.1, -1.0], [0.5, 0.0, 2.0, 0.3]])
    with torch.no_grad():
        head.classifier.weight.copy_(start)
    head.classifier.weight.requires_grad_(False)
    head.after_step()
    assert torch.equal(head.classifier.weight, start), "frozen, as while the prototypes are pretrained"
    head.classifier.weight.requires_grad_(True)
    head.after_step()
    wanted = torch.tensor([[0.75, 0, 0, 0], [0.25, 0, 1.75, 0.05]])
    torch.testing.assert_close(head.classifier.weight.detach(), wanted)
    head.weight.sum().backward()
    assert torch.equal(head.classifier.weight.grad, (wanted > 0).float()), "what was dropped stays dropped"


@pytest.mark.parametrize("training", [False, True])
def test_abstains_where_nothing_is_found(training: bool) -> None:
    head = PIPNet(20, 3).train(training)
    features = torch.zeros(3, 20, 2, 2)  # each prototype 1/20 present
    features[1, 4, 0, 1] = 5
    features[2, 7, 0, 1] = 5
    with torch.no_grad():
        head.classifier.weight[:, 7] = 0
    assert head.abstains(head(features).logits).tolist() == ([False] * 3 if training else [True, False, True])


def test_evaluation_changes_nothing() -> None:
    head = PIPNet(4, 3, num_prototypes=6).eval()
    before = copy.deepcopy(head.state_dict())
    head.forward_with_losses(torch.randn(4, 4, 3, 3), torch.tensor([0, 1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def loader() -> list[Images]:
    generator = torch.Generator().manual_seed(0)
    return [
        Images(torch.randn(2, 5, 3, 4, generator=generator) * 3, torch.tensor([0, 1]), [f"{number}a", f"{number}b"])
        for number in range(3)
    ]


def test_projection_moves_nothing_and_remembers_the_best_patch() -> None:
    torch.manual_seed(0)
    head = PIPNet(5, 2, num_prototypes=7)
    before = copy.deepcopy(head.state_dict())
    numbers = head.project(loader(), Plain(head))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    assert [entry["prototype"] for entry in head.provenance] == list(range(7))
    for entry in head.provenance:
        every = {
            (name, row, column): presence[row][column][entry["prototype"]]
            for batch in loader()
            for presence, name in zip(presence_by_loops(head, batch.images), batch.ids, strict=True)
            for row in range(3)
            for column in range(4)
        }
        best = max(every, key=lambda cell: every[cell])
        assert (entry["image"], *entry["cell"]) == best and entry["class"] is None
        assert entry["proximity"] == pytest.approx(every[best], abs=1e-5)
        assert entry["box"][0] == 10 * best[2] + 5 - 10
    mean = sum(entry["proximity"] for entry in head.provenance) / 7
    assert numbers == {"projection_proximity": pytest.approx(mean)}
    assert json.loads(json.dumps(head.provenance)) == head.provenance


def test_pruning_drops_what_is_never_shown_or_never_counts() -> None:
    head = PIPNet(5, 2)
    images = torch.zeros(2, 5, 1, 2)
    images[:, 4] = -9  # never shown
    images[0, 0, 0, 1] = images[1, 1, 0, 0] = 9
    with torch.no_grad():
        head.classifier.weight.fill_(1)
        head.classifier.weight[:, 1] = torch.tensor([0.0, -1.0])
    assert head.prune([Images(images, torch.tensor([0, 1]), ["a", "b"])], Plain(head)) == {"prototypes": 3.0}
    assert head.is_kept.tolist() == [True, False, True, True, False]
    assert not head.weight[:, [1, 4]].any()
    head.is_kept.fill_(True)
    head.threshold = 0.5
    head.prune([Images(images, torch.tensor([0, 1]), ["a", "b"])], Plain(head))
    assert head.is_kept.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prototypes": 1}, "num_prototypes=1"),
        ({"threshold": 1.1}, "threshold=1.1"),
        ({"shrink": -1e-3}, "shrink=-0.001"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PIPNet(5, 2, **options)


def gradients(head: nn.Module, features: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of all terms; `features` v b d h w."""
    _, terms = head(features.flatten(0, 1), targets)
    torch.stack(list(terms.values())).sum().backward()
    return {
        name.removeprefix("module.head."): parameter.grad.clone()
        for name, parameter in head.named_parameters()
        if parameter.grad is not None
    }


class WithLosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = PIPNet(5, 3, num_prototypes=40)

    def forward(self, features: Tensor, targets: Tensor) -> tuple[Any, dict[str, Tensor]]:
        return self.head.forward_with_losses(features, targets)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 6, 5, 3, 3), torch.tensor([0, 1, 2, 0, 1, 2])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    features, targets = batch()
    found = gradients(DistributedDataParallel(WithLosses()), features.chunk(2, 1)[rank], targets.chunk(2)[rank])
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_devices_learn_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    alone = {name.removeprefix("head."): grad for name, grad in gradients(WithLosses(), *batch()).items()}
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys() and len(alone) == 3
        for name, grad in alone.items():
            torch.testing.assert_close(together[name], grad, atol=1e-6, rtol=1e-4)


RECIPE = """
data: {name: critters, options: {size: 64, count: 80}, validation: 0.25, batch_size: 16}
model: {backbone: test_resnet, head: pipnet, image_size: 64, crop_pct: 1.0, head_kwargs: {num_prototypes: 16}}
epochs: 4
"""


def test_a_run_of_its_own_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    trainer = Trainer(load_recipe(str(path)), tmp_path / "run", shows_progress=False)
    assert [phase.name for phase in trainer.plan] == ["pretrain", "classifier", "joint", "judged"]
    head = trainer.model.get_classifier()
    assert isinstance(head, PIPNet)
    moved, run = [], trainer._run_phase

    def watched(phase: Any) -> None:
        before = copy.deepcopy(trainer.model.state_dict(keep_vars=False))
        run(phase)
        after = trainer.model.state_dict()
        names = [name for name, _ in trainer.model.named_parameters() if not torch.equal(before[name], after[name])]
        moved.append({name.split(".")[1] if name.startswith("head") else "backbone" for name in names})

    monkeypatch.setattr(trainer, "_run_phase", watched)
    trainer.fit()
    assert moved == [{"backbone", "add_on"}, {"classifier"}, {"backbone", "add_on", "classifier"}, set()]
    pretrain, _, joint, judged = trainer.progress.history
    assert pretrain["train_loss"] == pytest.approx(0.5 * pretrain["align"] + 5 * pretrain["uniformity"], rel=1e-4)
    wanted = sum(weight * joint[name] for name, weight in head.loss_weights().items())
    assert joint["train_loss"] == pytest.approx(wanted, rel=1e-4)
    assert judged["prototypes"] == float(head.is_kept.sum())
    published = glasszoo.load_pretrained(f"local-dir:{tmp_path / 'run' / 'best'}")
    assert published.provenance == head.provenance and len(head.provenance) == 16
