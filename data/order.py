"""Which images come when, and to which of several processes; made as it goes, so that no epoch is held in memory."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from ..common.processes import ALONE, Place
from ..common.seeds import mixed_seed

SHARDS_MIXED = 16  # shards whose images are shuffled together, and so are read side by side


class Order:
    """Batches of (epoch, index) for one of several processes; an epoch's depend on `seed` and its number alone.

    Shuffled, every process gets its slice of each batch, so that together they learn from the batches of one process.
    In order, whole batches are dealt out in turn, so that each image is computed in the same company as by one process;
    the last round is filled up with empty batches, so that all processes go the same number of rounds.

    Args:
        length: How many images.
        batch_size: Of all processes together.
        shuffle: In an order keyed by seed and epoch.
        drop_last: Leave out a last batch that is short, unless it is the only one.
        seed: Of the order.
        place: Which of the processes.
        shard_sizes: Images of each shard, where images lie in shards one after another. Then shards are shuffled, and
            images within each `SHARDS_MIXED` of them: few files are read side by side, and little is held in memory.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        place: Place = ALONE,
        shard_sizes: Sequence[int] | None = None,
    ) -> None:
        self.epoch, self.first = 0, 0  # `first`: the batch that the next pass begins with
        self._length, self._batch_size, self._shuffle, self._seed = length, batch_size, shuffle, seed
        self._place, self._shard_sizes = place, shard_sizes
        # A last batch that is short is dropped only if another is left.
        self._used = length - (length % batch_size if drop_last and length > batch_size else 0)

    def __len__(self) -> int:
        """Batches an epoch; in order, rounds of dealing them out."""
        batches = -(-self._used // self._batch_size)
        return batches if self._shuffle else -(-batches // self._place.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, count = self._place
        a_round = self._batch_size if self._shuffle else self._batch_size * count
        start = self.first * a_round
        indices = islice(self._indices(start), max(0, self._used - start))
        for _ in range(self.first, len(self)):
            joint = list(islice(indices, a_round))
            if self._shuffle:
                mine = joint[len(joint) * rank // count : len(joint) * (rank + 1) // count]
            else:
                mine = joint[rank * self._batch_size : (rank + 1) * self._batch_size]
            yield [(self.epoch, index) for index in mine]

    def _indices(self, start: int) -> Iterator[int]:
        """The epoch's indices from place `start` on."""
        if not self._shuffle:
            yield from range(start, self._length)
            return
        for number, window in enumerate(self._windows()):
            size = sum(len(span) for span in window)
            if start < size:
                own = () if self._shard_sizes is None else (number,)
                generator = torch.Generator().manual_seed(mixed_seed(self._seed, self.epoch, *own))
                indices = torch.cat([torch.arange(span.start, span.stop) for span in window])
                yield from indices[torch.randperm(size, generator=generator)[start:]].tolist()
            start = max(0, start - size)

    def _windows(self) -> Iterator[list[range]]:
        """Spans of indices that are shuffled together, one window after another."""
        if self._shard_sizes is None:
            yield [range(self._length)]
            return
        ends = torch.tensor(self._shard_sizes).cumsum(0).tolist()
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, self.epoch))
        shards = torch.randperm(len(ends), generator=generator).tolist()
        for first in range(0, len(shards), SHARDS_MIXED):
            chosen = shards[first : first + SHARDS_MIXED]
            yield [range(ends[shard] - self._shard_sizes[shard], ends[shard]) for shard in chosen]
