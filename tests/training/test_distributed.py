"""Two and four processes with parts of a batch give the gradients of one process with the whole: for every head."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import glasszoo
from glasszoo.heads import list_heads
from glasszoo.training.objective import Objective

EVIDENCE = {
    "evidence_energy": 0.5,
    "evidence_outside": 0.3,
    "class_contrast": 0.2,
    "evidence_l1": 1e-3,
    "evidence_tv": 1e-2,
}
CASES: dict[str, tuple[str, dict[str, float]]] = {head: (head, {}) for head in list_heads()}
CASES |= {f"{head}, evidence": (head, EVIDENCE) for head in ("cam", "gated_attention", "topk")}
PROCESSES = (2, 4)


def objective(case: str) -> Objective:
    head, weights = CASES[case]
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head=head, num_classes=5)
    for parameter in model.get_classifier().parameters():  # zeros would hide what they multiply
        torch.nn.init.normal_(parameter, std=0.3)
    # Batch norms see their own process's part of the batch; with their statistics fixed the rest must agree.
    return Objective(model.eval().double(), 0.1, weights)


def gradients(module: torch.nn.Module, *inputs: Tensor, share: float = 1.0) -> dict[str, Tensor]:
    module(*inputs, share).total.backward()
    return {
        name.removeprefix("module."): parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and regions; of some images nothing is known, so that processes know of different numbers."""
    torch.manual_seed(1)
    region = torch.rand(8, 64, 64) < 0.3
    region[[0, 1, 6]] = False
    return torch.randn(8, 3, 64, 64).double(), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]), region


def parts(count: int) -> list[slice]:
    """Which images each process gets."""
    return [slice(8 * rank // count, 8 * (rank + 1) // count) for rank in range(count)]


def work(rank: int, folder: str, count: int) -> None:
    os.environ.update(MASTER_ADDR="localhost", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    own = [tensor[parts(count)[rank]] for tensor in batch()]
    found = {case: gradients(DistributedDataParallel(objective(case)), *own) for case in CASES}
    # Three of eight images against five, as after unreadable ones.
    uneven = [tensor[:3] if rank == 0 else tensor[3:] for tensor in batch()] if count == 2 else own
    share = len(uneven[0]) / (8 / count)
    found["uneven"] = gradients(DistributedDataParallel(objective("cam, evidence")), *uneven, share=share)
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=PROCESSES)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Of every case, from several processes."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(work, args=(str(folder), request.param), nprocs=request.param)
    return torch.load(folder / "gradients.pt", weights_only=True)


@pytest.mark.parametrize("case", [*CASES, "uneven"])
def test_processes_together_give_the_gradients_of_one(case: str, together: dict[str, dict[str, Tensor]]) -> None:
    alone = gradients(objective("cam, evidence" if case == "uneven" else case), *batch())
    assert together[case].keys() == alone.keys()
    for name, expected in alone.items():
        gap = (together[case][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert gap <= 1e-6, f"{name}: {gap:.1e}"
