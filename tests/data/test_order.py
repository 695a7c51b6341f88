"""The order of images: all of them once, alike for any number of processes, from any place on, in little memory."""

from collections.abc import Iterable
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasszoo.common.processes import Place
from glasszoo.data.order import SHARDS_MIXED, Order


def indices(order: Order) -> list[list[int]]:
    return [[index for _, index in batch] for batch in order]


def joined(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def orders(count: int, length: int, batch_size: int, **options: object) -> list[Order]:
    """Of all of `count` processes."""
    return [Order(length, batch_size, place=Place(rank, count), **options) for rank in range(count)]  # type: ignore[arg-type]


shapes = given(
    length=st.integers(1, 200), batch_size=st.integers(1, 40), count=st.integers(1, 5), drop_last=st.booleans()
)


@shapes
def test_slices_of_a_shuffled_batch_are_the_batch_of_one_process(
    length: int, batch_size: int, count: int, drop_last: bool
) -> None:
    alone = indices(Order(length, batch_size, shuffle=True, drop_last=drop_last, seed=5))
    shared = [indices(order) for order in orders(count, length, batch_size, shuffle=True, drop_last=drop_last, seed=5)]
    assert {len(each) for each in shared} == {len(alone)}
    assert [joined(slices) for slices in zip(*shared, strict=True)] == alone
    for slices in zip(*shared, strict=True):
        sizes = [len(each) for each in slices]
        assert max(sizes) - min(sizes) <= 1


@shapes
def test_in_order_every_image_is_dealt_out_once_in_whole_batches(
    length: int, batch_size: int, count: int, drop_last: bool
) -> None:
    alone = indices(Order(length, batch_size))
    assert joined(alone) == list(range(length))
    dealt = [indices(order) for order in orders(count, length, batch_size)]
    assert {len(each) for each in dealt} == {len(orders(count, length, batch_size)[0])}, "as many rounds for all"
    assert [batch for turn in zip(*dealt, strict=True) for batch in turn if batch] == alone


@given(
    length=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    count=st.integers(1, 4),
    first=st.integers(0, 12),
    shuffle=st.booleans(),
)
def test_a_pass_can_begin_with_any_batch(length: int, batch_size: int, count: int, first: int, shuffle: bool) -> None:
    for order in orders(count, length, batch_size, shuffle=shuffle):
        order.epoch = 3
        whole = indices(order)
        order.first = first
        assert indices(order) == whole[first:]


def sharded(seed: int = 0) -> tuple[Order, list[int]]:
    sizes = [3 + number % 4 for number in range(50)]
    return Order(sum(sizes), 7, shuffle=True, seed=seed, shard_sizes=sizes), sizes


@pytest.mark.parametrize("first", [0, 1, 9, 25])
def test_shards_are_mixed_window_by_window(first: int) -> None:
    order, sizes = sharded()
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    whole = joined(indices(order))
    assert sorted(whole) == list(range(sum(sizes)))
    spans = [[place for place, index in enumerate(whole) if shard_of[index] == shard] for shard in range(50)]
    longest = SHARDS_MIXED * max(sizes)
    assert max(places[-1] - places[0] for places in spans) < longest, "a shard is opened for a while, and then done"
    assert max(places[-1] - places[0] for places in spans) > longest / 3, "its images are mixed with those of others"
    order.first = first
    assert joined(indices(order)) == whole[7 * first :]


def test_epochs_and_seeds_order_shards_differently() -> None:
    order, _ = sharded()
    one = indices(order)
    order.epoch = 1
    assert one != indices(order)
    assert one != indices(sharded(seed=1)[0])


def test_the_start_of_a_huge_epoch_is_made_without_the_rest() -> None:
    """A billion images: a list of their indices would take 8 GB."""
    order = Order(10**9, 4096, shuffle=True, shard_sizes=[10**4] * 10**5)
    order.first = len(order) - 3
    made, permutation = [], torch.randperm

    def counted(size: int, **options: object) -> torch.Tensor:
        made.append(size)
        return permutation(size, **options)  # type: ignore[call-overload,no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", counted)
        last = indices(order)
    assert len(last) == 3 and made == [10**5, 10**4 * SHARDS_MIXED]
