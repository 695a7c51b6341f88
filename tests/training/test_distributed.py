"""Two processes with half a batch each give the gradients of one process with the whole: for every head, by gloo."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import glasszoo
from glasszoo.heads import list_heads
from glasszoo.training.objective import Objective

HEADS = list_heads()


def objective(head: str) -> Objective:
    torch.manual_seed(0)
    model = glasszoo.create_model("test_resnet", head=head, num_classes=5)
    for parameter in model.get_classifier().parameters():  # zeros would hide what they multiply
        torch.nn.init.normal_(parameter, std=0.3)
    # Batch norms see their own process's half of the batch; with their statistics fixed the rest must agree.
    return Objective(model.eval(), 0.1, {})


def gradients(module: torch.nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    module(images, labels).total.backward()
    return {
        name.removeprefix("module."): parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 3, 64, 64), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def work(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images, labels = (part.chunk(2)[rank] for part in batch())
    found = {head: gradients(DistributedDataParallel(objective(head)), images, labels) for head in HEADS}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared_gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Of every head, from two processes."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return torch.load(folder / "gradients.pt", weights_only=True)


@pytest.mark.parametrize("head", HEADS)
def test_two_processes_give_the_gradients_of_one(head: str, shared_gradients: dict[str, dict[str, Tensor]]) -> None:
    alone = gradients(objective(head), *batch())
    together = shared_gradients[head]
    assert together.keys() == alone.keys()
    for name, expected in alone.items():
        gap = (together[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert gap <= 1e-3, f"{name}: {gap:.1e}"
