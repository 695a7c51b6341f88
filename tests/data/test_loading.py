"""Loaders: the same batches whatever the workers, image, mask and box moved together, unreadable images counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from glasszoo.common.errors import InputError
from glasszoo.common.seeds import mixed_seed
from glasszoo.data.augmentation import Augmentation, Views
from glasszoo.data.folder import ImageFolder
from glasszoo.data.loading import Loader
from glasszoo.data.samples import Batch, Sample
from glasszoo.data.subsets import Cached, Subset, split_validation


class Squares:
    """Images of a white square on black; the mask is the square, the box its outline."""

    def __init__(self, count: int = 24, classes: int = 3, group_size: int = 1) -> None:
        self.classes = tuple(f"class {number}" for number in range(classes))
        self.labels = torch.arange(count) % classes
        self.groups = torch.arange(count) // (group_size * classes) * classes + self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        left, top = torch.randint(4, 20, (2,), generator=generator).tolist()
        mask = torch.zeros(48, 48, dtype=torch.uint8)
        mask[top : top + 20, left : left + 12] = 255
        box = torch.tensor([[left, top, left + 12, top + 20]], dtype=torch.float32)
        return Sample(
            image=tv_tensors.Image(mask.expand(3, -1, -1)),
            label=int(self.labels[index]),
            id=str(index),
            mask=tv_tensors.Mask(mask),
            boxes=tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(48, 48)),
        )


AUGMENTED = v2.Compose(
    [
        Augmentation(scale=(0.5, 1.0), hflip=0.5, vflip=0.5).transform((48, 48), InterpolationMode.BILINEAR),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
    ]
)
PLAIN = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


def batches(loader: Loader, epoch: int = 0) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        a.ids == b.ids and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
        for a, b in zip(one, two, strict=True)
    )


def loader(**options: Any) -> Loader:
    return Loader(Squares(), AUGMENTED, 5, shuffle=True, seed=3, **options)


def test_batches_do_not_depend_on_workers_or_history() -> None:
    alone, helped = loader(), loader(num_workers=2)
    first = batches(alone, 4)
    torch.rand(7)  # what was drawn elsewhere
    assert same(first, batches(helped, 4)) and same(first, batches(alone, 4)) and same(first, batches(helped, 4))


def test_epochs_and_seeds_differ() -> None:
    assert not same(batches(loader(), 0), batches(loader(), 1))
    other = Loader(Squares(), AUGMENTED, 5, shuffle=True, seed=4)
    assert not same(batches(loader(), 0), batches(other, 0))


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(loader())
    assert torch.equal(torch.rand(3), expected)


def test_every_image_once() -> None:
    seen = [identifier for batch in batches(loader()) for identifier in batch.ids]
    assert sorted(seen, key=int) == [str(index) for index in range(24)] and seen != sorted(seen, key=int)
    assert [len(batch.ids) for batch in batches(Loader(Squares(), PLAIN, 5, drop_last=True))] == [5, 5, 5, 5]
    assert len(Loader(Squares(), PLAIN, 5)) == 5 and len(Loader(Squares(), PLAIN, 5, drop_last=True)) == 4
    assert len(Loader(Squares(3), PLAIN, 5, drop_last=True)) == 1, "a set smaller than a batch is not dropped whole"


def test_image_mask_and_box_move_together() -> None:
    moved = 0
    for batch in batches(loader()):
        for image, mask, boxes in zip(batch.images, batch.masks, batch.boxes, strict=True):
            assert ((image[0] > 0.5) == (mask == 255)).float().mean() > 0.97
            rows, columns = (mask == 255).nonzero().unbind(1)
            tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (boxes[0] - tight).abs().max() <= 2
            moved += int(boxes[0].long().tolist() not in [[4, 4, 16, 24]])
    assert moved > 12


def test_a_box_that_a_crop_leaves_nothing_of_is_dropped() -> None:
    tiny = v2.Compose([v2.CenterCrop(2), PLAIN])
    kept = [len(boxes) for batch in batches(Loader(Squares(), tiny, 8)) for boxes in batch.boxes]
    hit = [bool(batch.masks[row].any()) for batch in batches(Loader(Squares(), tiny, 8)) for row in range(8)]
    assert kept == [int(was_hit) for was_hit in hit] and 0 < sum(kept) < 24


@pytest.fixture
def with_broken(tmp_path: Path) -> ImageFolder:
    for index in range(6):
        path = tmp_path / f"c{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    (tmp_path / "c0" / "2.png").write_bytes(b"broken")
    return ImageFolder(tmp_path)


TO_TENSOR = v2.Compose([v2.ToImage(), PLAIN])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_are_fatal_or_counted(with_broken: ImageFolder, num_workers: int) -> None:
    with pytest.raises(InputError, match=r"2\.png is no image \(unreadable images can be skipped\)$"):
        list(Loader(with_broken, TO_TENSOR, 2, num_workers=num_workers))
    skipping = Loader(with_broken, TO_TENSOR, 2, num_workers=num_workers, on_error="skip")
    for _ in range(2):  # counted once, however often it is met
        assert sum(len(batch.ids) for batch in skipping) == 5
    assert list(skipping.unreadable) == ["c0/2.png"]


def test_a_batch_that_lost_all_its_images_is_passed_over(with_broken: ImageFolder) -> None:
    assert [batch.ids for batch in Loader(with_broken, TO_TENSOR, 1, on_error="skip")] == [
        ["c0/0.png"], ["c0/4.png"], ["c1/1.png"], ["c1/3.png"], ["c1/5.png"],
    ]  # fmt: skip


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        Loader(Squares(), PLAIN, 0)
    with pytest.raises(InputError, match="holds no images"):
        Loader(Subset(Squares(), []), PLAIN, 2)
    with pytest.raises(InputError, match=r"augmentation\.scale must be two numbers 0 < low ≤ high"):
        Augmentation(scale=(0.5, 0.1))
    with pytest.raises(InputError, match=r"augmentation\.hflip is a probability"):
        Augmentation(hflip=2)


def test_validation_is_stratified_and_keeps_groups_together() -> None:
    dataset = Squares(count=120, classes=3, group_size=4)
    training, validation = split_validation(dataset, 0.2, seed=1)
    assert sorted([*training.indices, *validation.indices]) == list(range(120))
    assert torch.bincount(validation.labels).tolist() == [8, 8, 8]
    assert not set(training.groups.tolist()) & set(validation.groups.tolist())
    again, other = split_validation(dataset, 0.2, seed=1)[1], split_validation(dataset, 0.2, seed=2)[1]
    assert again.indices == validation.indices != other.indices


def test_too_few_groups_to_split_are_named() -> None:
    with pytest.raises(InputError, match="class 'class 0' has 4 images: too few groups"):
        split_validation(Squares(count=12, classes=3, group_size=4), 0.2, seed=0)
    with pytest.raises(InputError, match="must lie between 0 and 1, got 1"):
        split_validation(Squares(), 1.0, seed=0)


def test_cached_samples_are_the_same_and_stay_so() -> None:
    plain, cached = Squares(), Cached(Squares())
    first = batches(Loader(cached, AUGMENTED, 5, seed=3))
    assert same(first, batches(Loader(plain, AUGMENTED, 5, seed=3)))
    assert same(first, batches(Loader(cached, AUGMENTED, 5, seed=3)))


def test_mixed_seeds_scatter() -> None:
    seeds = {mixed_seed(seed, epoch, index) for seed in range(10) for epoch in range(10) for index in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 2) != mixed_seed(2, 1)


def test_views_are_one_crop_in_several_colours() -> None:
    """Mask and box move with all of them; without a change of colours they are the same."""
    torch.manual_seed(0)
    for jitter in (0.0, 0.5):
        augmentation = Augmentation(scale=(0.3, 0.6), color_jitter=jitter)
        to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        geometric = augmentation.geometric((16, 16), InterpolationMode.NEAREST)
        views = Views(geometric, augmentation.photometric(), to_tensor, 3)
        sample = views(Squares()[0])
        first, *others = sample["image"]
        assert sample["image"].shape == (3, 3, 16, 16)
        for other in others:
            assert torch.equal(first, other) == (jitter == 0)
            is_square = sample["mask"] > 0
            bright = other.mean(0) > other.mean(0)[~is_square].max() if jitter else other.mean(0) > 0.5
            assert torch.equal(bright, is_square.bool())
