"""Deletion of a patch in training: one cell of the grid, in as many images as asked for, and nothing else touched."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from glasszoo.common.errors import InputError
from glasszoo.data.augmentation import Augmentation, PatchDeletion, grid_cell
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Sample


class Noise:
    """Images without a single zero, with a mask, a box and a point."""

    classes = ("a", "b")

    def __init__(self, count: int = 400, size: tuple[int, int] = (12, 8)) -> None:
        self.labels = torch.arange(count) % 2
        self.groups = torch.arange(count)
        self.size = size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        height, width = self.size
        image = 1 + torch.rand(3, height, width, generator=torch.Generator().manual_seed(index))
        return Sample(
            image=tv_tensors.Image(image),
            label=int(self.labels[index]),
            id=str(index),
            mask=tv_tensors.Mask(torch.full(self.size, 255, dtype=torch.uint8)),
            boxes=tv_tensors.BoundingBoxes([[0, 0, width, height]], format="XYXY", canvas_size=self.size),
            points=tv_tensors.KeyPoints([[1.0, 1.0]], canvas_size=self.size),
        )


def images(probability: float, dataset: Noise, **options: Any) -> Tensor:
    loader = Loader(dataset, PatchDeletion(probability), options.pop("batch_size", 50), **options)
    return torch.cat([batch.images for batch in loader])


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (224, 224)])
def test_cells_cover_the_image_once(size: tuple[int, int]) -> None:
    covered = torch.zeros(size)
    cells = [grid_cell(size, number) for number in range(16)]
    for cell in cells:
        covered[cell] += 1
    assert (covered == 1).all()
    areas = [covered[cell].numel() for cell in cells]
    assert max(areas) - min(areas) <= sum(size) // 4 + 1
    assert grid_cell((8, 16), 6) == (slice(2, 4), slice(8, 12))
    # 6 rows as 2, 2, 1, 1; 7 columns as 2, 2, 2, 1.
    assert [grid_cell((6, 7), number) for number in (0, 6, 11, 15)] == [
        (slice(0, 2), slice(0, 2)),
        (slice(2, 4), slice(4, 6)),
        (slice(4, 5), slice(6, 7)),
        (slice(5, 6), slice(6, 7)),
    ]


def test_one_cell_is_deleted_in_half_of_the_images_and_every_cell_has_its_turn() -> None:
    dataset = Noise()
    deleted = images(0.5, dataset) == 0
    assert (deleted.any(1) == deleted.all(1)).all()  # in all channels alike
    holes = deleted[:, 0].flatten(1)
    cells = torch.zeros(16, 12, 8, dtype=torch.bool)
    for number in range(16):
        cells[(number, *grid_cell((12, 8), number))] = True
    is_cell = (holes[:, None] == cells.flatten(1)).all(2)
    assert (is_cell.any(1) == holes.any(1)).all()
    assert 160 <= int(holes.any(1).sum()) <= 240  # four standard deviations to each side
    assert is_cell.any(0).all()


def test_only_the_cell_of_the_image_changes() -> None:
    dataset = Noise(count=20)
    for batch in Loader(dataset, PatchDeletion(1.0), 20):
        plain = torch.stack([torch.as_tensor(dataset[index]["image"]) for index in range(20)])
        assert (batch.images[batch.images != 0] == plain[batch.images != 0]).all()
        assert (batch.images == 0).sum() == 20 * 3 * 3 * 2
        assert (batch.masks == 255).all() and batch.has_mask.all()
        assert all(boxes.tolist() == [[0, 0, 8, 12]] for boxes in batch.boxes)
        assert all(points.tolist() == [[1, 1]] for points in batch.points)


def test_the_stored_image_is_left_alone() -> None:
    sample = Noise()[0]
    before = sample["image"].clone()
    PatchDeletion(1.0)(sample)  # type: ignore[arg-type]
    assert torch.equal(sample["image"], before)


def test_what_is_deleted_depends_on_seed_epoch_and_image_alone() -> None:
    dataset = Noise(count=30)
    first = images(0.5, dataset, seed=3)
    assert torch.equal(first, images(0.5, dataset, seed=3, batch_size=7))
    assert not torch.equal(first, images(0.5, dataset, seed=4))
    loader = Loader(dataset, PatchDeletion(0.5), 30, seed=3)
    loader.set_epoch(1)
    assert not torch.equal(first, next(iter(loader)).images)


def test_nothing_is_deleted_or_drawn_by_default() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sample = Noise()[0]
    assert Augmentation().deletion()(sample) is sample  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def test_all_views_lose_the_same_cell() -> None:
    views = torch.ones(2, 3, 8, 8)
    found = PatchDeletion(1.0)({"image": views})["image"]
    assert (found == 0).sum() == 2 * 3 * 4 and torch.equal(found[0], found[1])


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_it_is_a_probability(probability: float) -> None:
    with pytest.raises(InputError, match="augmentation.patch_deletion is a probability"):
        Augmentation(patch_deletion=probability)
