"""The nearest patches: those of a loop over everything, the same on two devices as on one, and no cell given twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prototype_stubs import Images
from torch import Tensor, distributed, multiprocessing, nn

from glasszoo.heads.nearest import Patch, Search, assigned, nearest_patches


class Plain(nn.Module):
    """A model whose features are its images."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))


OWNERS = [0, 0, 1, 1, -1]  # −1: both classes
OWN = torch.tensor([[owner in (label, -1) for owner in OWNERS] for label in range(2)])


def batches(seed: int = 0) -> list[Images]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Images(
            torch.randn(size, 3, 4, 5, generator=generator),
            torch.randint(2, (size,), generator=generator),
            [f"{number}_{place}" for place in range(size)],
        )
        for number, size in enumerate((4, 4, 3))
    ]


def prototypes() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(9))


def embed(features: Any) -> tuple[Tensor, Tensor]:
    return torch.einsum("pd,bdhw->bphw", prototypes(), features), features


def by_loops(loader: list[Images], owners: list[int] | None, count: int, per_image: int) -> list[list[Patch]]:
    result = []
    for number, prototype in enumerate(prototypes()):
        everything: list[Patch] = []
        for batch in loader:
            for image, label, name in zip(batch.images, batch.labels.tolist(), batch.ids, strict=True):
                if owners is not None and owners[number] not in (label, -1):
                    continue
                own = [
                    Patch(float(image[:, row, column] @ prototype), name, row, column, label, image[:, row, column])
                    for row in range(4)
                    for column in range(5)
                ]
                everything += sorted(own, key=lambda patch: -patch.proximity)[:per_image]
        result.append(sorted(everything, key=lambda patch: -patch.proximity)[:count])
    return result


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize(("owners", "own"), [(OWNERS, OWN), (None, None)])
def test_the_nearest_of_all(owners: list[int] | None, own: Tensor | None, per_image: int) -> None:
    found = nearest_patches(batches(), Plain(), Search(embed, 4, own, per_image))
    expected = by_loops(batches(), owners, 4, per_image)
    for ours, theirs in zip(found, expected, strict=True):
        assert [patch[1:5] for patch in ours] == [patch[1:5] for patch in theirs]
        for one, two in zip(ours, theirs, strict=True):
            assert one.proximity == pytest.approx(two.proximity, abs=1e-5)
            assert torch.equal(one.vector, two.vector)


def test_the_model_is_judged_as_it_predicts() -> None:
    model = Plain().train()
    nearest_patches(batches(), model, Search(embed, 1))
    assert not model.training


def test_vectors_may_differ_by_prototype() -> None:
    def own(features: Any) -> tuple[Tensor, Tensor]:
        proximity, cells = embed(features)
        return proximity, torch.stack([cells * (number + 1) for number in range(5)], dim=1)

    plain = nearest_patches(batches(), Plain(), Search(embed, 2))
    for number, (ours, theirs) in enumerate(
        zip(nearest_patches(batches(), Plain(), Search(own, 2)), plain, strict=True)
    ):
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.vector, two.vector * (number + 1))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def own() -> Iterator[Images]:
        return (batch for number, batch in enumerate(batches()) if number % 2 == rank)

    found = nearest_patches(list(own()), Plain(), Search(embed, 4, OWN, 3))
    torch.save([[tuple(patch) for patch in patches] for patches in found], f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_devices_find_what_one_does(tmp_path: Path) -> None:
    alone = nearest_patches(batches(), Plain(), Search(embed, 4, OWN, 3))
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for ours, theirs in zip(alone, together, strict=True):
            assert [patch[:5] for patch in ours] == [patch[:5] for patch in theirs]
            assert all(torch.equal(one.vector, two[5]) for one, two in zip(ours, theirs, strict=True))


def patch(proximity: float, image: str, row: int = 0) -> Patch:
    return Patch(proximity, image, row, 0, 0, torch.zeros(1))


def test_no_cell_is_given_twice_within_a_class() -> None:
    """The nearest pair chooses first; another class may have the same cell."""
    patches = [
        [patch(0.8, "a"), patch(0.7, "b")],
        [patch(0.9, "a"), patch(0.1, "b")],
        [patch(0.5, "a"), patch(0.4, "a", row=1)],
        [],
    ]
    chosen = assigned(patches, [0, 0, 1, 1])
    assert [found and (found.image, found.row) for found in chosen] == [("b", 0), ("a", 0), ("a", 0), None]


def test_equals_are_taken_by_name() -> None:
    assert assigned([[patch(0.5, "b"), patch(0.5, "a")]], [0])[0] == patch(0.5, "a")
