"""Parts of a data set: a validation split carved from the training images, and samples kept in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..common.errors import InputError
from ..common.processes import is_first
from .samples import ImageDataset, Sample, Unreadable, read_samples, targets_of


class Subset:
    """The images of `dataset` at `indices`, as a data set.

    `shard_sizes`: how many of each shard are left, where `dataset` has shards and the indices increase; else None.
    """

    def __init__(self, dataset: ImageDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.classes = dataset.classes
        self.license: str | None = getattr(dataset, "license", None)
        self.description: str | None = getattr(dataset, "description", None)
        self.labels = dataset.labels[self.indices]
        self.groups = dataset.groups[self.indices]
        self.shard_sizes = self._left_of_shards(getattr(dataset, "shard_sizes", None))
        targets = targets_of(dataset)
        self.targets = None if targets is None else targets[self.indices]

    def _left_of_shards(self, sizes: Sequence[int] | None) -> list[int] | None:
        chosen = torch.tensor(self.indices, dtype=torch.int64)
        if sizes is None or bool((chosen.diff() <= 0).any()):
            return None
        ends = torch.searchsorted(chosen, torch.tensor(sizes).cumsum(0))
        return ends.diff(prepend=ends.new_zeros(1)).tolist()

    @property
    def ids(self) -> list[str] | None:
        """The ids of all samples; None where `dataset` does not know them without reading."""
        known = getattr(self.dataset, "ids", None)
        return None if known is None else [known[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """Several samples in one call."""
        return read_samples(self.dataset, [self.indices[index] for index in indices])


class Cached:
    """`dataset` with every sample read once, now, and kept: for sets that fit memory and are slow to read or draw."""

    def __init__(self, dataset: ImageDataset, description: str = "reading") -> None:
        self.classes, self.labels, self.groups = dataset.classes, dataset.labels, dataset.groups
        self.targets = targets_of(dataset)
        self._samples: list[Sample | Unreadable] = []
        indices = range(len(dataset))
        for start in tqdm(
            range(0, len(dataset), 256), desc=description, unit="×256 images", leave=False, disable=not is_first()
        ):
            self._samples += read_samples(dataset, indices[start : start + 256])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        sample = self._samples[index]
        return sample if isinstance(sample, Unreadable) else sample.copy()


def split_validation(dataset: ImageDataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Training and validation part of `dataset`: about `fraction` of each class's images, whole groups at a time.

    Where images can show several classes, the rarest class is dealt out first (Sechidis et al., "On the Stratification
    of Multi-label Data", ECML 2011), and images of none are a class as well.

    Raises:
        InputError: `fraction` is not inside (0, 1), or would leave a class without training or validation images.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the validation fraction must lie between 0 and 1, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    held_out, is_dealt = torch.zeros(2, len(dataset), dtype=torch.bool)
    _, group_of = torch.as_tensor(dataset.groups).unique(return_inverse=True)
    in_group = _members(group_of, int(group_of.max()) + 1)
    for name, own in _strata(dataset):
        wanted = max(1, round(fraction * len(own)))
        # Images that a rarer class has dealt out stay where they are, unless too few are left.
        for some in (own[~is_dealt[own]], own[is_dealt[own]]):
            groups = group_of[some].unique()
            for group in groups[torch.randperm(len(groups), generator=generator)].tolist():
                if int(held_out[own].sum()) >= wanted:
                    break
                held_out[in_group[group]] = True
        is_dealt[own] = True
        if not 0 < int(held_out[own].sum()) < len(own):
            raise InputError(f"class {name!r} has {len(own)} images: too few groups to carve a validation split from")
    return Subset(dataset, (~held_out).nonzero()[:, 0].tolist()), Subset(dataset, held_out.nonzero()[:, 0].tolist())


def _strata(dataset: ImageDataset) -> list[tuple[str, Tensor]]:
    """Classes by name, each with the places of its images."""
    targets = targets_of(dataset)
    if targets is None:
        return list(zip(dataset.classes, _members(dataset.labels, len(dataset.classes)), strict=True))
    strata = [(name, column.nonzero()[:, 0]) for name, column in zip(dataset.classes, targets.T == 1, strict=True)]
    of_none = (targets.sum(1) == 0).nonzero()[:, 0]
    if len(of_none):
        strata.append(("none", of_none))
    return sorted(strata, key=lambda stratum: len(stratum[1]))


def _members(numbers: Tensor, count: int) -> tuple[Tensor, ...]:
    """The places in `numbers` of each of 0 … `count` - 1: by one sort, where comparing for each would take hours."""
    return numbers.argsort(stable=True).split(numbers.bincount(minlength=count).tolist())
