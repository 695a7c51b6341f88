"""From a data set to batches: the same batches whatever the number of workers, at any epoch, after any restart."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from zlib import crc32

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.errors import InputError
from ..common.processes import ALONE, Place
from ..common.seeds import mixed_seed
from .order import Order
from .samples import Batch, ImageDataset, Sample, Unreadable, collate, read_samples

OnError = Literal["raise", "skip"]


class Loader:
    """Batches of `dataset`, transformed; an epoch's batches depend on `seed` and the epoch alone.

    Every sample's random transforms draw from a generator keyed by (seed, epoch, index), so results do not depend on
    the number of workers or on what was drawn before, and a resumed run continues to the bit.
    `with_truth`: masks and boxes come along; without them a batch is ready sooner.
    `on_error`: an unreadable image is fatal ("raise"), or left out and listed in `unreadable` ("skip").
    `place`: which of several processes this is; each gets its share, as `Order` deals it out, in the same number of
    rounds. `batch_size` is that of all together.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Callable[[Any], Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        with_truth: bool = True,
        on_error: OnError = "raise",
        place: Place = ALONE,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if not len(dataset):
            raise InputError("the data set holds no images")
        self.dataset = dataset
        self.unreadable: dict[str, Unreadable] = {}
        self._on_error = on_error
        self._order = Order(
            len(dataset),
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            place=place,
            shard_sizes=getattr(dataset, "shard_sizes", None),
        )
        self._loader: DataLoader[Batch] = DataLoader(
            _Transformed(dataset, transform, seed, with_truth),
            batch_sampler=self._order,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=_heed_parent_alone,
            # torch draws a seed for each pass; from here, so that reading images does not disturb the training.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches an epoch, or rounds of dealing them out to several processes."""
        return len(self._order)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch whose order and random transforms the next passes draw, and the batch they begin with."""
        self._order.epoch, self._order.first = epoch, first

    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches; one that has lost all its images is passed over.

        Raises:
            InputError: An image cannot be read, unless `on_error` is "skip".
        """
        return (batch for batch in self.batches() if batch.ids)

    def batches(self) -> Iterator[Batch]:
        """As when iterated over, but a batch without images comes as well: every round has one."""
        for batch in self._arriving():
            for missing in batch.unreadable:
                if self._on_error == "raise":
                    raise InputError(f"{missing.reason} (unreadable images can be skipped)")
                self.unreadable[missing.id] = missing
            yield batch

    def _arriving(self) -> Iterator[Batch]:
        try:
            with dead_readers_told():
                yield from self._loader
        except InputError as error:
            # One met by a reading process comes with its traceback.
            raise InputError(str(error).strip().rpartition(f"{InputError.__name__}: ")[2]) from error


@contextmanager
def dead_readers_told() -> Iterator[None]:
    """Raise InputError where a process that reads images died; torch says so wherever this process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that reads images died, most often for want of memory: lower data.num_workers or "
            f"data.batch_size ({' '.join(str(error).split())})"
        ) from error


def _heed_parent_alone(worker: int) -> None:
    """Take SIGTERM from the process that reads for, and from no other.

    Schedulers send it to all processes of a run at once, and the readers are needed until that run has stopped.
    """
    if not hasattr(signal, "sigwaitinfo"):  # who sent a signal is told on Linux alone
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class _Transformed(Dataset[Any]):
    """`dataset` under `transform`, addressed by (epoch, index)."""

    def __init__(self, dataset: ImageDataset, transform: Callable[[Any], Any], seed: int, with_truth: bool) -> None:
        self._dataset, self._transform, self._seed, self._with_truth = dataset, transform, seed, with_truth

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample | Unreadable]:
        samples = read_samples(self._dataset, [index for _, index in keys])
        # One saved random state a batch: saving it for every image would cost as much as a flip.
        with torch.random.fork_rng(devices=[]):
            return [self._transformed(sample, key) for sample, key in zip(samples, keys, strict=True)]

    def _transformed(self, sample: Sample | Unreadable, key: tuple[int, int]) -> Sample | Unreadable:
        if isinstance(sample, Unreadable):
            return sample
        if not self._with_truth:
            kept: Any = {key: sample[key] for key in ("image", "label", "id", "targets") if key in sample}
            sample = kept
        # The CPU's generator alone: torch.manual_seed also notes a stack trace for each kind of accelerator.
        torch.default_generator.manual_seed(mixed_seed(self._seed, *key))
        result: Sample = self._transform(sample)
        if "boxes" in result:
            boxes = result["boxes"]
            is_left = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            result["boxes"] = boxes[is_left]  # a crop can leave nothing of a box
        return result


def image_numbers(ids: Sequence[str]) -> torch.Tensor:
    """A number for each id, its own wherever it stands: what is drawn for an image depends on it, not on the batch."""
    return torch.tensor([crc32(identifier.encode()) for identifier in ids])
