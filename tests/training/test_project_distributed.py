"""Two processes that each see half of the images project to the bits of one process that sees all of them: by gloo."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

import glasszoo
from glasszoo.heads import Head, list_heads
from glasszoo.heads.registry import head_class

HEADS = [name for name in list_heads() if head_class(name).project is not Head.project]
# These two choose features and concepts, from sums over images, which are rounded by the order of their terms.
BY_SUMS = ("concepts", "sparse_features")
IMAGES, BATCH, CLASSES, PROCESSES = 16, 4, 3, 2


class Images(NamedTuple):
    """A batch, as far as heads look at one."""

    images: Tensor
    labels: Tensor
    ids: list[str]


def batches(rank: int) -> list[Images]:
    """Every second image from `rank` on, as torch's DistributedSampler deals them out; both processes see all classes.

    All batches are equally long, and one process that sees everything gets the same ones, one process's after the
    other's: what a convolution makes of an image can differ in the last bit with what else is in the batch.
    """
    pictures = torch.randn(IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(IMAGES) // PROCESSES % CLASSES
    own = torch.arange(rank, IMAGES, PROCESSES).split(BATCH)
    return [Images(pictures[chosen], labels[chosen], [str(number) for number in chosen.tolist()]) for chosen in own]


def projected(head: str, loader: list[Images]) -> dict[str, Any]:
    """What a projection changes, and what it reports."""
    torch.manual_seed(0)
    options = {"per_class": 2} if head == "concepts" else {}
    model = glasszoo.create_model("test_resnet", head=head, num_classes=CLASSES, head_kwargs=options)
    numbers = model.project(loader)
    return {"weights": model.state_dict(), "provenance": model.provenance, "numbers": numbers}


def work(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    sent, gather = [], distributed.all_gather_object

    def counted(gathered: list[Any], own: Any) -> None:
        sent.append(len(pickle.dumps(own)))
        gather(gathered, own)

    distributed.all_gather_object = counted
    found = {}
    for head in HEADS:
        sent.clear()
        found[head] = projected(head, batches(rank)) | {"sent": sum(sent)}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of the processes has, for every head."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes: more threads can add sums up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("head", HEADS)
def test_two_processes_project_as_one(head: str, shared: list[dict[str, dict[str, Any]]]) -> None:
    alone = projected(head, [batch for rank in range(PROCESSES) for batch in batches(rank)])
    if head in BY_SUMS:
        same_but_for_rounding(alone, [one[head] for one in shared])
        return
    origins = {int(entry["image"]) % PROCESSES for entry in alone["provenance"]}
    assert origins == {0, 1}, "patches of one process alone would not show whether anything was exchanged"
    for rank, together in enumerate(one[head] for one in shared):
        assert together["provenance"] == alone["provenance"], rank
        assert together["numbers"] == alone["numbers"], rank
        assert together["weights"].keys() == alone["weights"].keys()
        for name, expected in alone["weights"].items():
            assert torch.equal(together["weights"][name], expected), (rank, name)


def same_but_for_rounding(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    for one in together:
        assert one["numbers"] == pytest.approx(alone["numbers"], rel=1e-6)
        for name, expected in alone["weights"].items():
            torch.testing.assert_close(one["weights"][name], expected, rtol=1e-5, atol=1e-6)


def test_a_process_sends_each_vector_once(shared: list[dict[str, dict[str, Any]]]) -> None:
    """A vector is a view of all that were found, which pickle would send along with every patch."""
    prototypes, width = shared[0]["protopnet"]["weights"]["head.prototypes"].shape
    patches = prototypes * prototypes // CLASSES  # of each prototype as many as its class has prototypes
    for each in shared:
        assert each["protopnet"]["sent"] < patches * (4 * width + 1000)
